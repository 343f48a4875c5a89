"""Does it hold on other trainings of the same recipe? Every study on several seeds of the built-in model, side by side.

Layer, rule and strength of the guard are chosen for each seed anew, on validation. The column `seed` is the seed that
the model was trained with; rows without one summarise all seeds: the mean, from the lowest to the highest.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from figures import first_judge
from interp.json_text import parse_json
from studies import repro
from studies.bookkeeping.tables import read_table, tidy
from studies.experiment.config import Config, ConfigError

SHIPPED = 0
"""Seed of the weights that ship with the project."""
SPREAD = ["mean", "min", "max", "count"]


@dataclass(frozen=True)
class Selection:
    """Rows of one study that are compared between seeds."""

    table: str
    settings: tuple[str, ...]
    keys: tuple[str, ...]
    """Columns that identify a row in every seed; where the guard was chosen per seed, its settings are not among them.
    """
    metrics: tuple[str, ...] = ()
    """Empty for all."""

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the selected rows as the first judge sees them."""
        rows = first_judge(table)
        rows = rows[rows.setting.isin(self.settings)]
        return rows[rows.metric.isin(self.metrics)] if self.metrics else rows


GUARD = ("layer", "last_layer", "layers", "rule", "gate", "strength")
"""Columns that say which guard a seed has."""
WHERE = ("setting", "split", "modality", "category", "metric")
SELECTIONS = (
    Selection("layer_sweep", ("chosen",), (*WHERE, "defence")),
    Selection("readings", ("compared",), (*WHERE, "defence", "rule", "gate", "control", "selection_rule")),
    Selection(
        "defence",
        ("plain", "jailbreak", "multimodal"),
        (*WHERE, "defence", "reference"),
        ("asr", "refusal_rate", "over_refusal_rate"),
    ),
)


@dataclass(frozen=True, eq=False)
class SeedsResult:
    """The studies of several seeds side by side."""

    table: pd.DataFrame = field(repr=False)
    """Selected rows of each seed, and their spread."""
    claims: pd.DataFrame = field(repr=False)
    """Verdicts by seed: `seed`, `claim`, `ours`, `verdict`."""
    inputs: Mapping[str, dict] = field(repr=False)
    """Inputs of each seed's studies, such as hashes of weights and queries, from their provenance."""


def run(folders: Sequence[str | Path], scale: str, out: str | Path, limit: int | None = None) -> SeedsResult:
    """Run every study on other trainings of the recipe, and compare them with the weights that ship.

    Finished pieces in `out` are reused; the shipped weights' results are the committed ones where they exist.

    Args:
        folders: one folder `seedN` for each other training, as `python -m studies.organism --seed N` writes it.
        scale: how much is measured, see `studies.experiment.config.SCALES`.
        out: folder; each seed gets one of its own in it.
        limit: at most this many queries of each class, for a quick try; the shipped weights are run anew then.

    Raises:
        ConfigError: a folder is not called `seedN`, or two have the same N; see also `studies.repro.run`.
    """
    weights, results = {seed: str(folder) for seed, folder in _by_seed(folders).items()}, {}
    if limit is None:
        results[SHIPPED] = repro.reference_or_run(scale)
    else:
        weights = {SHIPPED: None, **weights}
    for seed, folder in weights.items():
        results[seed] = Path(out) / f"seed{seed}"
        repro.run(Config(scale=scale, out=str(results[seed]), weights=folder, limit=limit))
    return compare(results)


def _by_seed(folders: Sequence[str | Path]) -> dict[int, Path]:
    """Return the folders by the seed in their names.

    Raises:
        ConfigError: a name has no seed, or two folders have the same.
    """
    by_seed: dict[int, Path] = {}
    for folder in map(Path, folders):
        name = re.fullmatch(r"seed(\d+)", folder.name)
        if name is None or int(name[1]) in (SHIPPED, *by_seed):
            raise ConfigError(f"{folder}: expected folders seed1, seed2, ..., each of another seed than {SHIPPED}")
        by_seed[int(name[1])] = folder
    return by_seed


def compare(results: Mapping[int, Path]) -> SeedsResult:
    """Put the tables of finished runs side by side.

    Args:
        results: folders that `studies.repro.run` has written, by seed.

    Raises:
        FileNotFoundError: a study, or the provenance of a run, is missing.
    """
    rows = [row for seed, folder in results.items() for row in _rows(seed, folder)]
    rows += _spread(pd.DataFrame(rows))
    claims = [read_table(folder, "claims").assign(seed=seed) for seed, folder in results.items()]
    inputs = {f"seed{seed}": _inputs(folder) for seed, folder in results.items()}
    return SeedsResult(tidy(rows), pd.concat(claims, ignore_index=True)[["seed", "claim", "ours", "verdict"]], inputs)


def _inputs(folder: Path) -> dict:
    """Return what a run was given, and the commit that it ran at."""
    run = parse_json((folder / "provenance.json").read_text(encoding="utf-8"))
    return run["inputs"] | {"commit": run["commit"]}


def _rows(seed: int, folder: Path) -> Iterator[dict]:
    for selection in SELECTIONS:
        table = selection.of(read_table(folder, selection.table))
        if "selection_rule" in selection.keys and "selection_rule" in table:
            # The chosen guard, which is another one for each seed.
            table.loc[table.selection_rule.notna(), ["rule", "gate"]] = None
        columns = dict.fromkeys((*selection.keys, *GUARD, "value", "ci_low", "ci_high", "interval", "n"))
        for row in table[[name for name in columns if name in table]].to_dict("records"):
            yield {"seed": seed} | {name: value for name, value in row.items() if not pd.isna(value)}


def _spread(table: pd.DataFrame) -> Iterator[dict]:
    """Yield the mean of each row over the seeds, with the lowest and the highest value."""
    n_seeds = table.seed.nunique()
    for selection in SELECTIONS:
        rows = table[table.setting.isin(selection.settings)]
        keys = [name for name in selection.keys if name in rows]
        for key, summary in rows.groupby(keys, dropna=False, sort=False).value.agg(SPREAD).iterrows():
            columns = {name: value for name, value in zip(keys, key, strict=True) if not pd.isna(value)}
            mean, low, high, n = summary
            if n == n_seeds:
                interval = f"range of {n_seeds} seeds"
                yield columns | {"value": mean, "ci_low": low, "ci_high": high, "n": int(n), "interval": interval}
