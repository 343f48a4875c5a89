"""All studies in one run: tables, figures, verdicts on the claims, and agreement with the committed reference."""

import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pandas as pd
from rich.console import Console

from interp.whole_files import write_whole
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
from studies.bookkeeping.agreement import Agreement, compare
from studies.bookkeeping.console import note, plain_console
from studies.bookkeeping.progress import Stages
from studies.bookkeeping.provenance import write_config, write_provenance
from studies.bookkeeping.tables import read_table, tidy, write_table
from studies.experiment.config import BUILT_IN, SPLITS, Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.experiment.run_folder import run_folder
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
REPORT = "report.html"
DIFFERENCES = "differences.txt"
"""Differences from the committed results, a line each."""
STAGES = {
    "loading the model and the requests": 0.02,
    "where harmful and harmless separate": 0.08,
    "trying guards, layer by layer": 0.17,
    "rules for choosing a layer": 0.17,
    "other readings of the method": 0.25,
    "the guard against other defences": 0.17,
    "what the guard changed, by which judges": 0.02,
    "how the refusal signal gets lost": 0.05,
    "verdicts, figures and the report": 0.07,
}
"""Stages of a run, and about the share of its time that each takes with the built-in model at scale quick."""


def run(config: Config, console: Console | None = None) -> claims.Tables:
    """Run every study and write tables, figures and a page into `config.out`.

    Raises:
        ConfigError: the folder can't be written to; checked before any long work.
        QueryFileError, ModelError: see `studies.experiment.experiment.load_experiment`.
    """
    console, start = console or plain_console(), time.monotonic()
    stages, stage = Stages(STAGES), iter(STAGES)
    with run_folder(config) as out:
        # 1. the model and its queries
        stages.start(next(stage))
        experiment = load_experiment(config)
        write_config(out, config)
        _print_queries(experiment)
        # 2. where harmful and harmless requests come apart
        stages.start(next(stage))
        write_table(separability.run(config, experiment), out, "separability")
        write_table(separability.points(experiment), out, "points")
        # 3. the guard, chosen on validation; all that follows uses this one
        stages.start(next(stage))
        sweep = layer_sweep.run(config, experiment)
        write_table(sweep.table, out, "layer_sweep")
        # 4. rules that choose a layer without a sweep, compared with it
        stages.start(next(stage))
        write_table(layer_selection.run(config, experiment), out, "layer_selection")
        # 5. other readings of the method, around it
        stages.start(next(stage))
        reading = readings.run(config, experiment, sweep.chosen)
        write_table(reading.table, out, "readings")
        # 6. it against other defences
        stages.start(next(stage))
        defended = defence_comparison.run(config, experiment, sweep.chosen)
        write_table(defended.table, out, "defence")
        random = pd.concat([sweep.random, reading.random, defended.random], ignore_index=True)
        write_table(tidy(random.to_dict("records")), out, "random_directions")
        # 7. its changes prompt by prompt, and the judges behind the rates
        stages.start(next(stage))
        write_table(prompt_changes.run(config, experiment, sweep.chosen, defended.answers), out, "changes")
        write_table(judge_agreement.run(experiment, defended.answers), out, "judges")
        # 8. how the refusal signal gets lost
        stages.start(next(stage))
        write_table(signal_path.run(config, experiment, sweep.choice.layer), out, "signal_path")
        # 9. verdicts on the claims, from the files: the same as for any reader of them; figures and the page
        stages.start(next(stage))
        tables = read(out)
        verdicts = claims.verdicts(tables)
        write_table(pd.DataFrame([vars(verdict) for verdict in verdicts]), out, "claims")
        write_provenance(out, experiment.inputs(), config.seed, [out / f"{name}.csv" for name in TABLES])
        _draw(out)
        agreement = _agreement(config)
        differences = (*agreement.differing, *agreement.flipped) if agreement else ()
        # A list of an earlier run would be out of date.
        (out / DIFFERENCES).unlink(missing_ok=True)
        if differences:
            write_whole(out / DIFFERENCES, "".join(f"{line}\n" for line in differences))
    print_summary(console, config, verdicts, agreement, time.monotonic() - start)
    return tables


def _print_queries(experiment: Experiment) -> None:
    """Say which queries are used, before the long work."""
    if not experiment.is_paired:
        note("The queries are not paired: direction by mean_diff, folds by row where there is no pair.")
    note(f"Queries used: {', '.join(f'{split} {len(experiment.queries[split])}' for split in SPLITS)}.")
    for leakage in experiment.leakage.values():
        note(f"Leakage: {leakage}.")


def _draw(out: Path) -> None:
    """Draw every figure from the tables on disk, and write the page."""
    results = Results.of(out)
    figures = list(gallery.draw_figures(results))
    gallery.save_figures(figures, out)
    report.write(results, out / REPORT, drawn=figures)


def files_of(out: Path) -> list[Path]:
    """Return the files of a finished run: tables, the report, and the list of differences if there is one."""
    names = (*(f"{name}.csv" for name in TABLES), REPORT, DIFFERENCES)
    return [out / name for name in names if (out / name).exists()]


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
    verdicts: Sequence[claims.ClaimVerdict],
    agreement: Agreement | None,
    seconds: float,
) -> None:
    """Print a line for each claim, how far the run agrees with the committed results, and where its report is.

    Args:
        console: where it is printed.
        config: settings of the run.
        verdicts: one per claim.
        agreement: with the committed results; None if there are none for these settings.
        seconds: duration of the run.
    """
    out, width = Path(config.out), max(len(verdict.verdict) for verdict in verdicts)
    console.print(f"Claims of VLM-Guard (arXiv:2502.10486) on {config.model}, scale {config.scale}:")
    for verdict in verdicts:
        console.print(f"{verdict.verdict:<{width}}  {verdict.claim}", soft_wrap=True)
    if agreement:
        where = f"; see {out / DIFFERENCES}" if agreement.differing or agreement.flipped else ""
        console.print(f"Compared with results/reference/{config.scale}: {agreement}{where}.", soft_wrap=True)
    console.print(f"{_minutes(seconds)}. Report, with the numbers behind each verdict: {out / REPORT}", soft_wrap=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def _agreement(config: Config) -> Agreement | None:
    """Compare a run of the built-in model with the committed results, if there are any for its scale."""
    reference = REFERENCE / config.scale
    settings = (config.model, config.weights, config.queries, config.split, config.seed, config.limit)
    is_comparable = settings == (BUILT_IN, None, None, "test", 0, None)
    if not is_comparable or not reference.is_dir() or reference == Path(config.out).resolve():
        return None
    return compare(Path(config.out), reference, TABLES)
