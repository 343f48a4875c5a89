"""All studies in one run: tables, figures, verdicts on the claims, and agreement with the committed reference."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from studies import (
    claims,
    defence_comparison,
    judge_agreement,
    layer_selection,
    layer_sweep,
    prompt_changes,
    readings,
    report,
    separability,
    signal_path,
)
from studies.bookkeeping.provenance import write_config, write_provenance
from studies.bookkeeping.tables import read_table, write_table
from studies.experiment.config import BUILT_IN, SPLITS, Config, writable_folder
from studies.experiment.experiment import Experiment, load_experiment
from studies.probing.rows import summary_lines as probe_summary_lines
from studies.report import gallery
from studies.report.results import Results

REFERENCE = Path(__file__).parents[1] / "results" / "reference"
TABLES = (
    "separability",
    "points",
    "layer_sweep",
    "layer_selection",
    "readings",
    "defence",
    "changes",
    "judges",
    "signal_path",
    "claims",
)
"""Names of the tables, in the order in which they are written."""
TOLERANCE = 0.02
"""Largest difference that counts as agreement: processors round differently, which can change one answer in 60."""
KL_TOLERANCE = 0.002
"""Tolerance of `kl` in nats: most values are far below the tolerance of rates."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of a run with the committed reference, within `TOLERANCE`."""

    n_compared: int
    differing: tuple[str, ...]


def run(config: Config, console: Console | None = None) -> claims.Tables:
    """Run every study and write tables, figures and a page into `config.out`.

    Raises:
        ConfigError: the folder can't be written to; checked before any long work.
        QueryFileError, ModelError: see `studies.experiment.experiment.load_experiment`.
    """
    console, start = console or Console(), time.monotonic()
    # 1. the model and its queries
    out = writable_folder(config.out)
    experiment = load_experiment(config)
    write_config(out, config)
    _print_queries(console, experiment)
    # 2. where harmful and harmless requests come apart
    write_table(separability.run(config, experiment), out, "separability")
    write_table(separability.points(experiment), out, "points")
    # 3. the layer, chosen on validation
    sweep = layer_sweep.run(config, experiment)
    write_table(sweep.table, out, "layer_sweep")
    write_table(layer_selection.run(config, experiment), out, "layer_selection")
    layer = sweep.choice.layer
    # 4. the rest of the guard, chosen on validation at that layer
    reading = readings.run(config, experiment, layer)
    write_table(reading.table, out, "readings")
    # 5. that guard against other defences, its changes prompt by prompt, and the judges behind the rates
    defended = defence_comparison.run(config, experiment, reading.chosen)
    write_table(defended.table, out, "defence")
    write_table(prompt_changes.run(config, experiment, reading.chosen, defended.answers), out, "changes")
    write_table(judge_agreement.run(experiment, defended.answers), out, "judges")
    # 6. how the refusal signal gets lost
    write_table(signal_path.run(config, experiment, layer), out, "signal_path")
    # 7. verdicts on the claims, from the files: the same as for any reader of them
    tables = read(out)
    verdicts = claims.verdicts(tables)
    write_table(pd.DataFrame([vars(verdict) for verdict in verdicts]), out, "claims")
    written = [out / f"{name}.csv" for name in TABLES]
    write_provenance(out, experiment.inputs(), config.seed, written)
    # 8. figures and the page
    written += _draw(out)
    print_summary(console, config, tables, verdicts, written, time.monotonic() - start)
    return tables


def _print_queries(console: Console, experiment: Experiment) -> None:
    if not experiment.is_paired:
        console.print("The queries are not paired: direction by mean_diff, folds by row where there is no pair.")
    sizes = ", ".join(f"{split} {len(experiment.queries[split])}" for split in SPLITS)
    console.print(f"Queries used: {sizes}.")
    for split, leakage in experiment.leakage.items():
        console.print(f"Leakage, {split}: {leakage}.", soft_wrap=True)


def _draw(out: Path) -> list[Path]:
    """Draw every figure from the tables on disk, write the page, and return the paths of both."""
    results = Results.of(out)
    figures = list(gallery.draw_figures(results))
    saved, _ = gallery.save_figures(figures, out)
    return [*saved, report.write(results, out / "report.html", drawn=figures)]


def read(folder: str | Path) -> claims.Tables:
    """Read the tables of a finished run.

    Raises:
        FileNotFoundError: a study has not been run into this folder.
    """
    return claims.Tables(**{field.name: read_table(Path(folder), field.name) for field in fields(claims.Tables)})


def reference_or_run(scale: str, model: str = BUILT_IN, queries: str | None = None) -> Path:
    """Return a folder with the tables of a scale: the committed ones if they exist, else those of a new run."""
    committed = REFERENCE / scale
    if model == BUILT_IN and queries is None and committed.is_dir():
        return committed
    config = Config(model, queries, scale, out=f"results/{Path(model).name}-{scale}")
    run(config)
    return Path(config.out)


def compare(folder: Path, reference: Path) -> Agreement:
    """Compare the values of a run with the committed ones, row by row.

    A row that only one of them has counts as differing.
    """
    n_compared, differing = 0, []
    for field in fields(claims.Tables):
        merged, keys = _merged(*(read_table(place, field.name) for place in (folder, reference)))
        tolerance = np.where(merged.metric == "kl", KL_TOLERANCE, TOLERANCE)
        is_near = np.isclose(merged.value, merged.value_reference, rtol=TOLERANCE, atol=tolerance, equal_nan=True)
        is_equal = is_near & (merged._merge == "both")
        n_compared += len(merged)
        for _, row in merged[~is_equal].iterrows():
            where = " ".join(f"{key}={row[key]}" for key in keys if row[key] not in ("nan", "None"))
            differing.append(f"{field.name}: {where}: {row.value:.4g}, reference {row.value_reference:.4g}")
    return Agreement(n_compared, tuple(differing))


def _merged(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Merge two tables on the columns that identify a row, and return these columns too."""
    values = ("value", "ci_low", "ci_high", "n")
    keys = [column for column in ours.columns if column not in values and column in theirs.columns]
    # pandas merges NaN keys correctly, but not across dtypes, so keys are compared as text.
    ours, theirs = (table.assign(**{key: table[key].astype(str) for key in keys}) for table in (ours, theirs))
    return ours.merge(theirs, on=keys, how="outer", suffixes=("", "_reference"), indicator=True), keys


def print_summary(
    console: Console,
    config: Config,
    tables: claims.Tables,
    verdicts: Sequence[claims.ClaimVerdict],
    written: Sequence[Path],
    seconds: float,
) -> None:
    """Print the main results, the verdicts and the files.

    Args:
        console: where it is printed.
        config: settings of the run.
        tables: the run's tables.
        verdicts: one per claim.
        written: files of the run.
        seconds: duration of the run.
    """
    lines = (*probe_summary_lines(tables.separability), *layer_selection.summary_lines(tables.layer_selection))
    for line in lines:
        console.print(f"- {line}", soft_wrap=True)
    table = Table(title=f"Claims of VLM-Guard (arXiv:2502.10486), {config.model}, scale {config.scale}")
    for column in ("claim", "theirs", "ours", "verdict"):
        table.add_column(column, overflow="fold")
    for verdict in verdicts:
        table.add_row(verdict.claim, verdict.theirs, verdict.ours, verdict.verdict)
    console.print(table)
    _print_agreement(console, config)
    console.print(f"{seconds:.0f} s. Written:")
    for path in written:
        if path.suffix != ".pdf":
            console.print(f"  {path}", soft_wrap=True)


def _print_agreement(console: Console, config: Config) -> None:
    """Print how a run of the built-in model agrees with the committed reference, if there is one for its scale."""
    reference = REFERENCE / config.scale
    is_comparable = (config.model, config.queries, config.split, config.seed) == (BUILT_IN, None, "test", 0)
    if not is_comparable or not reference.is_dir() or reference == Path(config.out).resolve():
        return
    agreement = compare(Path(config.out), reference)
    n_equal = agreement.n_compared - len(agreement.differing)
    console.print(
        f"{n_equal} of {agreement.n_compared} values agree with results/reference/{config.scale} within {TOLERANCE:g}."
    )
    for line in agreement.differing[:10]:
        console.print(f"  differs: {line}")
    if len(agreement.differing) > 10:
        console.print(f"  and {len(agreement.differing) - 10} more")
