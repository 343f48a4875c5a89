"""`vlm-guard detect`: detectors of harmful requests, fitted on one set and applied to others, next to the guard."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.messages import print_paths, quieten
from studies.cli.options import StandIn, choices, words
from studies.cli.run_options import runs_study
from studies.cli.verbs import VerbResult, Verbs

if TYPE_CHECKING:
    from studies.defences.benchmark_sets import BenchmarkOptions
    from studies.experiment.config import Config

app = Verbs()

SetLimit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Use at most N harmful and N harmless requests of each part of the data, and N rows of the largest class "
        "of each set of --data.",
    ),
]


@app.command()
@runs_study("results/detect", limit=SetLimit)
def detect(
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Also fit on and apply to this set: NAME=PATH of a benchmark as published, or PATH of a file of your "
            "own; repeatable. A set of one class is only applied to.",
        ),
    ] = None,
    modality: Annotated[
        str, choices("modality", arguments.MODALITIES, "How requests of --data that are published as text are shown")
    ] = "text",
    guard: Annotated[
        str | None,
        typer.Option(
            metavar="GUARD",
            help="Folder of the guard to compare with, or hub id; by default the layer sweep chooses one.",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of the pictures of --data; by default where the benchmark publishes them."
        ),
    ] = None,
    stand_in: StandIn = False,
    *,
    config: "Config",
) -> VerbResult:
    """Measure how well detectors find harmful requests, and what they do as refusers and as gates of the guard.

    Layers and thresholds come from validation. Rerun it to resume where it stopped.
    """
    quieten()
    from studies.cli.benchmark_options import benchmark_file
    from studies.defences.benchmark_sets import BenchmarkOptions

    files = None
    if data:
        files = BenchmarkOptions.of(
            [benchmark_file(text) for text in data],
            words(modality),
            limit=config.limit,
            pictures=str(pictures) if pictures else None,
            stand_in=stand_in,
        )
    options = {"data": list(data or ()), "modality": modality, "guard": guard}
    return run(config, guard, files, options, plain_console())


def run(
    config: "Config", guard: str | None, files: "BenchmarkOptions | None", options: dict, console: Console
) -> VerbResult:
    """Run the study, write its tables and figures, and print what came out.

    Args:
        config: settings of the run.
        guard: folder of a guard, or hub id; None for the sweep's choice.
        files: sets of the user's own.
        options: what was typed, which results depend on.
        console: where the summary is printed.

    Raises:
        ConfigError, GuardFileError, QueryFileError, ModelError: input is wrong, or another process writes the folder.
    """
    import pandas as pd

    import figures
    from interp import Guard, read_guard_settings
    from studies import detection
    from studies.bookkeeping.provenance import write_config, write_provenance
    from studies.bookkeeping.tables import write_table
    from studies.experiment.experiment import load_experiment
    from studies.experiment.run_folder import run_folder

    if guard:
        read_guard_settings(guard)  # a folder that holds none shows before the model is loaded
    with run_folder(config, options) as out:
        experiment = load_experiment(config)
        write_config(out, config, options)
        fitted = Guard.from_pretrained(guard, experiment.vlm) if guard else None
        found = detection.run(config, experiment, fitted, files)
        verdicts = pd.DataFrame([vars(verdict) for verdict in found.verdicts])
        named = {"detection": found.table, "detector_defences": found.defences, "detector_claims": verdicts}
        tables = [write_table(table, out, name) for name, table in named.items()]
        write_provenance(out, experiment.inputs(), config.seed, tables)
        drawn = figures.save(figures.detection_auroc(found.table), out, "detection_auroc")
        drawn += figures.save(figures.detection_matrix(found.table), out, "detection_matrix")
    for verdict in found.verdicts:
        console.print(f"- {verdict.claim}: {verdict.verdict}. {verdict.ours}", soft_wrap=True)
    print_paths(console, [*tables, *drawn])
    return VerbResult({"verdicts": found.verdicts}, [*tables, *drawn])
