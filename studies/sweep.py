"""A finished layer sweep that shows itself in Jupyter and saves its choice as a guard."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from interp import Guard, display
from interp.display import Line
from studies import guard_choice, layer_sweep
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.guards.choice_rule import Finalist
from studies.guards.configuration import GuardConfiguration
from studies.guards.random_directions import DECISIVE
from studies.guards.sweep_grid import Grid
from studies.guards.sweep_result import IDENTIFYING, SweepResult
from studies.guards.wording import chosen_in_words

WHERE = ("layer", "last_layer", "direction_layer")
"""Columns in which the lines of the chart vary."""
SHOWN = ("layers", "rule", "gate", "strength", "refused", "harmless_refused", "kl", "mark")
BEST, BEST_SINGLE = "best", "best single layer"


@dataclass(frozen=True, eq=False)
class Sweep:
    """The result of a sweep, with the name of its model."""

    result: SweepResult
    model: str

    @classmethod
    def run(
        cls,
        config: Config,
        experiment: Experiment | None = None,
        grid: Grid | None = None,
        top: int | None = None,
        halving: bool = False,
        ray: str | None = None,
        cpus_per_worker: int = 1,
    ) -> "Sweep":
        """Run `studies.layer_sweep.run`; finished runs in the output folder are reused.

        Args:
            config: settings of the run.
            experiment: loaded from the settings by default.
            grid: the configurations; by default those of the scale.
            top: number of finalists; by default that of the scale.
            halving: rank on a quarter of the prompts first and drop half of the configurations.
            ray: address of a cluster that the runs are spread over.
            cpus_per_worker: CPUs per worker on a cluster without GPUs.

        Raises:
            GridError: see `studies.layer_sweep.run`.
        """
        experiment = experiment or load_experiment(config)
        result = layer_sweep.run(config, experiment, grid, top, halving, ray, cpus_per_worker)
        return cls(result, experiment.vlm.name)

    @property
    def table(self) -> pd.DataFrame:
        """The table of `studies.layer_sweep`."""
        return self.result.table

    @property
    def random(self) -> pd.DataFrame:
        """The choice and every random direction that it is compared with, on the reported split."""
        return self.result.random

    @property
    def chosen(self) -> GuardConfiguration:
        """The best configuration on validation."""
        return self.result.chosen

    @property
    def layer(self) -> int:
        """The best single layer; a window may be better.

        Raises:
            LookupError: no single layer was swept.
        """
        return self.result.choice.layer

    @cached_property
    def validation(self) -> dict[str, float]:
        """The numbers that the chosen configuration was chosen by.

        `refusal`: share of harmful requests refused, mean over modalities. `over_refusal`: share of harmless ones, the
        largest. `kl`: from the unguarded model on harmless requests, mean, nats. `n`: harmful prompts in all.
        """
        return {name: float(value) for name, value in self.result.best.metrics.items() if name != "excess"}

    @cached_property
    def guard(self) -> Guard:
        """The chosen configuration as a guard, with its numbers on validation."""
        return guard_choice.chosen_guard(self.result, self.model)

    @cached_property
    def finalists(self) -> pd.DataFrame:
        """One row per finalist, from the best by the first token on.

        Returns:
            `layers` as text, `rule gate strength`, the shares `refused` and `harmless_refused`, and `kl` in nats, as in
            `validation`; `mark` names the best finalist and the best single layer.
        """
        return pd.DataFrame([self._finalist_row(finalist) for finalist in self.result.finalists], columns=SHOWN)

    def _finalist_row(self, finalist: Finalist) -> tuple:
        guard, metrics = finalist.configuration.guard, finalist.metrics
        first, last = guard.layers[0], guard.layers[-1]
        mark = "" if not finalist.mark else BEST if finalist is self.result.best else BEST_SINGLE
        return (
            f"{first}" if first == last else f"{first}-{last}",
            guard.rule,
            guard.gate,
            finalist.configuration.columns("")["strength"],
            metrics["refusal"],
            metrics["over_refusal"],
            metrics["kl"],
            mark,
        )

    def save_guard(self, folder: str | Path, experiment: Experiment) -> None:
        """Write the guard to a folder, with its anchors and hashes of all that it was fitted and chosen on."""
        guard_choice.save(self.guard, folder, experiment)

    def _repr_html_(self) -> str:
        ranked = self.table[self.table.setting == "ranked"]
        modalities = [name for name in ranked.modality.dropna().unique() if name]
        facts = {
            "tried": f"{(ranked.metric == 'on_front').sum()} configurations in {', '.join(modalities)}",
            "chosen on": f"validation, {self.validation['n']:.0f} harmful prompts in all",
            "chosen": chosen_in_words(self.table),
        }
        facts |= {"random directions": self._among_random()} if len(self.random) else {}
        best_rows = [i for i, mark in enumerate(self.finalists.mark) if mark == BEST]
        names = ("layers", "rule", "gate", "strength", "harmful refused", "harmless refused", "KL, nats", "")
        table = display.table(names, list(self.finalists.itertuples(index=False, name=None)), best_rows)
        title = "Share of answers that begin with a refusal, the chosen configuration at single layers"
        chart = display.chart(title, self._lines(), self.chosen.guard.layers, (0.0, 1.0))
        return display.card("Sweep", self.model, facts, table, chart)

    def _among_random(self) -> str:
        """Say how many random directions of the same size gain less than the choice, by modality."""
        rows = self.table[(self.table.metric == "random_percentile") & (self.table.category == DECISIVE)]
        shares = ", ".join(f"{100 * row.value:.3g} % ({row.modality})" for row in rows.itertuples())
        return f"the guard gains more refusal than {shares} of {rows.n.iloc[0]:.0f} of the same size"

    def _lines(self) -> list[Line]:
        """Return opening rates by layer, mean over modalities, of configurations that differ from the choice only in
        their layer."""
        ranked, best = self.table[self.table.setting == "ranked"], self.result.choice.columns
        alike = ranked[ranked.last_layer.isna()] if "last_layer" in ranked else ranked
        for name in (name for name in IDENTIFYING if name in alike and name not in WHERE):
            alike = alike[alike[name] == best[name] if name in best else alike[name].isna()]
        lines = []
        for name, metric, color, dash in (
            ("harmful", "opening_refusal_rate", display.HARMFUL, ""),
            ("harmless", "opening_over_refusal_rate", display.HARMLESS, "5 2"),
        ):
            rows = alike[alike.metric == metric]
            # Successive halving measures what it drops on fewer prompts; these rows can't be compared.
            by_layer = rows[rows.n == rows.n.max()].groupby("layer").value.mean()
            layers = by_layer.index.astype(int).tolist()
            lines.append(Line(f"{name}, guarded", layers, by_layer.tolist(), color, dash))
        unguarded = ranked[(ranked.metric == "opening_refusal_rate") & (ranked.defence == "unguarded")]
        baseline = [unguarded.value.mean()] * len(layers)
        return [*lines, Line("harmful, unguarded", layers, baseline, display.PLAIN, "1 3")]
