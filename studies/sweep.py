"""A finished sweep as one value: the table, what it chose, and that as a guard."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from interp import display
from interp.display import Line
from interp.guard import Guard
from studies import layer_sweep
from studies.bookkeeping.tables import first_judge
from studies.datasets import write_queries
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load
from studies.guard_choice import ANCHORS, resolved
from studies.guards.configuration import GuardConfiguration
from studies.guards.selection import judged_selection_metrics
from studies.guards.sweep_grid import Grid

OF_CONFIGURATION = ("layer", "last_layer", "direction_layer", "source", "estimator", "rank", "rule", "gate")
OF_CONFIGURATION += ("gate_scope", "positions", "strength", "token")
WHERE = ("layer", "last_layer", "direction_layer")
SHOWN = ("layers", "rule", "gate", "strength", "refused", "harmless_refused", "kl", "mark")
BEST, BEST_SINGLE = "best", "best single layer"


@dataclass(frozen=True, eq=False)
class Sweep:
    """What was measured, and what was chosen by it on validation."""

    table: pd.DataFrame = field(repr=False)
    """Of `studies.layer_sweep.run`, which says what stands in it."""
    chosen: GuardConfiguration
    """The configuration that it marks."""
    model: str
    """Its name."""

    @classmethod
    def run(
        cls,
        config: Config,
        material: Experiment | None = None,
        grid: Grid | None = None,
        top: int | None = None,
        halving: bool = False,
        ray: str | None = None,
        cpus_per_worker: int = 1,
    ) -> "Sweep":
        """Runs what is not there yet; arguments and errors are those of `studies.layer_sweep.run`."""
        material = material or load(config)
        return cls.of(layer_sweep.run(config, material, grid, top, halving, ray, cpus_per_worker), material, grid)

    @classmethod
    def of(cls, table: pd.DataFrame, material: Experiment, grid: Grid | None = None) -> "Sweep":
        """From a table that was made before, of the same material and grid.

        Raises:
            LookupError: it marks no configuration that the grid holds.
        """
        return cls(table, layer_sweep.chosen(table, material, grid), material.vlm.name)

    @property
    def layer(self) -> int:
        """The best single layer, which a window may beat.

        Raises:
            LookupError: the grid has no single layers.
        """
        return layer_sweep.chosen_layer(self.table)

    @cached_property
    def validation(self) -> dict[str, float]:
        """What the chosen configuration was chosen by.

        `refusal`: share of harmful requests refused, mean over modalities. `over_refusal`: of harmless ones, the
        largest. `kl`: from the unguarded model, harmless requests, mean, nats. `n`: harmful prompts in all.
        """
        standing = judged_selection_metrics(first_judge(layer_sweep.best_rows(self.table)))
        return {name: float(value) for name, value in standing.items() if name != "excess"}

    @cached_property
    def guard(self) -> Guard:
        """The chosen configuration, with what it reached on validation."""
        known = {"source": self.chosen.source, "model": self.model, "validation": self.validation}
        return replace(self.chosen.guard, **known)

    @cached_property
    def finalists(self) -> pd.DataFrame:
        """One row each, from the best by the first token on.

        Returns:
            `layers` in words, `rule gate strength`, shares `refused` and `harmless_refused`, `kl` in nats, as in
            `validation`; `mark` names the choice, and the best single layer.
        """
        rows = first_judge(self.table[(self.table.setting == "finalists") & (self.table.defence == "guard")])
        keys = [name for name in OF_CONFIGURATION if name in rows]
        return pd.DataFrame(
            [
                _finalist(dict(zip(keys, key, strict=True)), some)
                for key, some in rows.groupby(keys, dropna=False, sort=False)
            ],
            columns=SHOWN,
        )

    def save_guard(self, folder: str | Path, material: Experiment) -> None:
        """Writes the guard, and the anchors that it was fitted on beside it."""
        self.guard.save_pretrained(folder, resolved(material.vlm))
        write_queries(Path(folder) / ANCHORS, material.queries["anchors"])

    def _repr_html_(self) -> str:
        ranked = self.table[(self.table.setting == "ranked") & (self.table.metric == "on_front")]
        modalities = [name for name in self.table.modality.dropna().unique() if name]
        facts = {
            "tried": f"{len(ranked)} configurations in {', '.join(modalities)}",
            "chosen on": f"validation, {self.validation['n']:.0f} harmful prompts in all",
        }
        marked = [place for place, mark in enumerate(self.finalists.mark) if mark == BEST]
        names = ("layers", "rule", "gate", "strength", "harmful refused", "harmless refused", "KL, nats", "")
        shown = display.table(names, list(self.finalists.itertuples(index=False, name=None)), marked)
        title = "Share of answers that begin with a refusal, the chosen configuration at single layers"
        drawn = display.chart(title, self._openings(), self.chosen.guard.layers, (0.0, 1.0))
        return display.card("Sweep", self.model, facts, shown, drawn)

    def _openings(self) -> list[Line]:
        """By layer, means over modalities, of what differs from the choice in its layer alone."""
        ranked, best = self.table[self.table.setting == "ranked"], layer_sweep.best_rows(self.table).iloc[0]
        alike = ranked[ranked.last_layer.isna()] if "last_layer" in ranked else ranked
        for name in OF_CONFIGURATION:
            if name in alike and name not in WHERE:
                alike = alike[alike[name].isna() if pd.isna(best[name]) else alike[name] == best[name]]
        lines = []
        for name, metric, color, dash in (
            ("harmful", "opening_refusal_rate", display.HARMFUL, ""),
            ("harmless", "opening_over_refusal_rate", display.HARMLESS, "5 2"),
        ):
            rows = alike[alike.metric == metric]
            # What successive halving has dropped was measured on fewer prompts.
            by_layer = rows[rows.n == rows.n.max()].groupby("layer").value.mean()
            layers = by_layer.index.astype(int).tolist()
            lines.append(Line(f"{name}, guarded", layers, by_layer.tolist(), color, dash))
        unguarded = ranked[(ranked.metric == "opening_refusal_rate") & (ranked.defence == "unguarded")]
        before = [unguarded.value.mean()] * len(layers)
        return [*lines, Line("harmful, unguarded", layers, before, display.PLAIN, "1 3")]


def _finalist(one: dict, rows: pd.DataFrame) -> tuple:
    found, last, mark = judged_selection_metrics(rows), one.get("last_layer"), rows.selection_rule.dropna()
    layers = f"{one['layer']:.0f}" if pd.isna(last) else f"{one['layer']:.0f}-{last:.0f}"
    strength = None if pd.isna(one["strength"]) else float(one["strength"])
    told = "" if mark.empty else BEST_SINGLE if mark.iloc[0].endswith(layer_sweep.SINGLE) else BEST
    return layers, one["rule"], one["gate"], strength, found["refusal"], found["over_refusal"], found["kl"], told
