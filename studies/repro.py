"""All studies in one run: tables, figures, verdicts on the claims, and how they agree with the committed reference."""

import time
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
from studies.experiment.experiment import load
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
"""In the order in which they are written."""
TOLERANCE = 0.02
"""Other processors round differently, which can turn one answer in 60."""
KL_TOLERANCE = 0.002
"""Nats; most are far below the tolerance of rates."""


@dataclass(frozen=True)
class Agreement:
    """How many values of a run equal those of the committed reference, within `TOLERANCE`."""

    n_compared: int
    differing: tuple[str, ...]


def run(config: Config, console: Console | None = None) -> claims.Tables:
    """The whole argument, written into `config.out`.

    Raises:
        ConfigError: the folder can't be written to; found out before any long work.
    """
    console, began = console or Console(), time.monotonic()
    out = writable_folder(config.out)
    material = load(config)
    write_config(out, config)
    if not material.is_paired:
        console.print("The queries are not paired: direction by mean_diff, folds by row where there is no pair.")
    sizes = ", ".join(f"{split} {len(material.queries[split])}" for split in SPLITS)
    console.print(f"Queries used: {sizes}.")
    for split, leakage in material.leakage.items():
        console.print(f"Leakage, {split}: {leakage}.", soft_wrap=True)
    separable = separability.run(config, material)
    write_table(separable, out, "separability")
    points = separability.points(material)
    write_table(points, out, "points")
    swept = layer_sweep.run(config, material)
    write_table(swept, out, "layer_sweep")
    write_table(layer_selection.run(config, material), out, "layer_selection")
    layer = layer_sweep.chosen_layer(swept)
    read_as = readings.run(config, material, layer)
    write_table(read_as, out, "readings")
    reading = readings.chosen_reading(read_as, material)
    asked, answers = defence_comparison.ask(config, material, reading)
    write_table(defence_comparison.tabled(config, material, asked, answers), out, "defence")
    write_table(prompt_changes.run(config, material, reading, answers), out, "changes")
    write_table(judge_agreement.run(material, answers), out, "judges")
    write_table(signal_path.run(config, material, layer), out, "signal_path")
    # From the files, so that the verdicts are those of anyone who reads them.
    tables = read(out)
    found = claims.verdicts(tables)
    write_table(pd.DataFrame([vars(verdict) for verdict in found]), out, "claims")
    written = [out / f"{name}.csv" for name in TABLES]
    write_provenance(out, material.inputs(), config.seed, written)
    results = Results.of(out)
    shown = list(gallery.drawn(results))
    drawn, _ = gallery.save(shown, out)
    page = report.write(results, out / "report.html", shown=shown)
    print_summary(console, config, tables, found, [*written, *drawn, page], time.monotonic() - began)
    return tables


def read(folder: str | Path) -> claims.Tables:
    """The tables of a finished run.

    Raises:
        FileNotFoundError: a study has not been run into this folder.
    """
    return claims.Tables(**{field.name: read_table(Path(folder), field.name) for field in fields(claims.Tables)})


def reference_or_run(scale: str, model: str = "organism", queries: str | None = None) -> Path:
    """Folder with the tables of a scale: the committed ones where they are, else those of a run of its own."""
    committed = REFERENCE / scale
    if model == BUILT_IN and queries is None and committed.is_dir():
        return committed
    config = Config(model, queries, scale, out=f"results/{Path(model).name}-{scale}")
    run(config)
    return Path(config.out)


def compare(folder: Path, reference: Path) -> Agreement:
    """Values of the run against the committed ones, row by row.

    A row that stands in one of the two only, counts as differing.
    """
    n_compared, differing = 0, []
    for field in fields(claims.Tables):
        ours, theirs = (read_table(place, field.name) for place in (folder, reference))
        keys = [c for c in ours.columns if c not in ("value", "ci_low", "ci_high", "n") and c in theirs.columns]
        # Merging on NaN keys is safe in pandas, but not across dtypes: as text they are alike.
        both = [table.assign(**{key: table[key].astype(str) for key in keys}) for table in (ours, theirs)]
        merged = both[0].merge(both[1], on=keys, how="outer", suffixes=("", "_reference"), indicator=True)
        absolute = np.where(merged.metric == "kl", KL_TOLERANCE, TOLERANCE)
        near = np.isclose(merged.value, merged.value_reference, rtol=TOLERANCE, atol=absolute, equal_nan=True)
        is_equal = near & (merged._merge == "both")
        n_compared += len(merged)
        for _, row in merged[~is_equal].iterrows():
            where = " ".join(f"{key}={row[key]}" for key in keys if row[key] not in ("nan", "None"))
            differing.append(f"{field.name}: {where}: {row.value:.4g}, reference {row.value_reference:.4g}")
    return Agreement(n_compared, tuple(differing))


def print_summary(
    console: Console, config: Config, tables: claims.Tables, found, written: list[Path], seconds: float
) -> None:
    """What a person wants to see at the end."""
    for told in (*probe_summary_lines(tables.separability), *layer_selection.summary_lines(tables.layer_selection)):
        console.print(f"- {told}", soft_wrap=True)
    table = Table(title=f"Claims of VLM-Guard (arXiv:2502.10486), {config.model}, scale {config.scale}")
    for column in ("claim", "theirs", "ours", "verdict"):
        table.add_column(column, overflow="fold")
    for verdict in found:
        table.add_row(verdict.claim, verdict.theirs, verdict.ours, verdict.verdict)
    console.print(table)
    reference = REFERENCE / config.scale
    if (
        (config.model, config.queries, config.split, config.seed) == (BUILT_IN, None, "test", 0)
        and reference.is_dir()
        and reference != Path(config.out).resolve()
    ):
        agreement = compare(Path(config.out), reference)
        n_equal = agreement.n_compared - len(agreement.differing)
        console.print(
            f"{n_equal} of {agreement.n_compared} values agree with results/reference/{config.scale} "
            f"within {TOLERANCE:g}."
        )
        for line in agreement.differing[:10]:
            console.print(f"  differs: {line}")
        if len(agreement.differing) > 10:
            console.print(f"  and {len(agreement.differing) - 10} more")
    console.print(f"{seconds:.0f} s. Written:")
    for path in written:
        if path.suffix != ".pdf":
            console.print(f"  {path}", soft_wrap=True)
