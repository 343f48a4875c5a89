"""All studies in one run: tables, figures, verdicts on the claims, and agreement with the committed reference."""

import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

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
from studies.bookkeeping.agreement import compare
from studies.bookkeeping.console import plain_console
from studies.bookkeeping.provenance import write_config, write_provenance
from studies.bookkeeping.tables import read_table, tidy, write_table
from studies.experiment.config import BUILT_IN, SPLITS, Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.experiment.run_folder import run_folder
from studies.probing.summary import summary_lines as probe_summary_lines
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
    "random_directions",
    "changes",
    "judges",
    "signal_path",
    "claims",
)
"""Names of the tables, in the order in which they are written."""
N_SHOWN = 10
"""At most this many differences from the reference are printed, of each kind."""


def run(config: Config, console: Console | None = None) -> claims.Tables:
    """Run every study and write tables, figures and a page into `config.out`.

    Raises:
        ConfigError: the folder can't be written to; checked before any long work.
        QueryFileError, ModelError: see `studies.experiment.experiment.load_experiment`.
    """
    console, start = console or plain_console(), time.monotonic()
    with run_folder(config) as out:
        # 1. the model and its queries
        experiment = load_experiment(config)
        write_config(out, config)
        _print_queries(console, experiment)
        # 2. where harmful and harmless requests come apart
        write_table(separability.run(config, experiment), out, "separability")
        write_table(separability.points(experiment), out, "points")
        # 3. the guard, chosen on validation; all that follows uses this one
        sweep = layer_sweep.run(config, experiment)
        write_table(sweep.table, out, "layer_sweep")
        write_table(layer_selection.run(config, experiment), out, "layer_selection")
        # 4. other readings of the method, around it
        reading = readings.run(config, experiment, sweep.chosen)
        write_table(reading.table, out, "readings")
        # 5. it against other defences, its changes prompt by prompt, and the judges behind the rates
        defended = defence_comparison.run(config, experiment, sweep.chosen)
        write_table(defended.table, out, "defence")
        random = pd.concat([sweep.random, reading.random, defended.random], ignore_index=True)
        write_table(tidy(random.to_dict("records")), out, "random_directions")
        write_table(prompt_changes.run(config, experiment, sweep.chosen, defended.answers), out, "changes")
        write_table(judge_agreement.run(experiment, defended.answers), out, "judges")
        # 6. how the refusal signal gets lost
        write_table(signal_path.run(config, experiment, sweep.choice.layer), out, "signal_path")
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
    for leakage in experiment.leakage.values():
        console.print(f"Leakage: {leakage}.", soft_wrap=True)


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
    names = [Path(model).name, *([Path(queries).stem] if queries else []), scale]
    config = Config(model, queries, scale, out=f"results/{'-'.join(names)}")
    run(config)
    return Path(config.out)


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
    settings = (config.model, config.weights, config.queries, config.split, config.seed)
    is_comparable = settings == (BUILT_IN, None, None, "test", 0)
    if not is_comparable or not reference.is_dir() or reference == Path(config.out).resolve():
        return
    agreement = compare(Path(config.out), reference, TABLES)
    console.print(f"Compared with results/reference/{config.scale}: {agreement}.", soft_wrap=True)
    for label, lines in (("differs", agreement.differing), ("flipped", agreement.flipped)):
        for line in lines[:N_SHOWN]:
            console.print(f"  {label}: {line}", soft_wrap=True)
        if len(lines) > N_SHOWN:
            console.print(f"  {label}: and {len(lines) - N_SHOWN} more")
