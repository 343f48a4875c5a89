"""`vlm-guard repro`: the paper's argument, from separability to verdicts."""

from pathlib import Path
from typing import Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli.messages import quieten
from studies.cli.options import (
    DEFAULT_MODEL,
    ColumnNames,
    HarmfulValues,
    Loading,
    Model,
    Queries,
    Scale,
    Split,
    loads_model,
    query_columns,
)

app = typer.Typer()


@app.command()
@loads_model
def repro(
    model: Model = DEFAULT_MODEL,
    queries: Queries = None,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
    scale: Scale = "quick",
    out: Annotated[Path, typer.Option(help="Folder for tables and figures; saved traces in it are reused.")] = Path(
        "results/repro"
    ),
    split: Split = "test",
    seed: Annotated[int, typer.Option(help="Seed for folds, splits of your own queries, and shuffled labels.")] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="Another training of the built-in model, or a control: its folder.")
    ] = None,
    *,
    loading: Loading,
) -> None:
    """Reproduce the paper's argument: separability, sweep, readings, defences, signal path; figures and verdicts."""
    quieten()

    from studies import repro as study
    from studies.experiment.config import Config

    queries_, weights_ = (str(path) if path else None for path in (queries, weights))
    mapped = query_columns(queries, columns, harmful_values)
    config = Config(model, queries_, scale, str(out), split, seed, loading=loading, weights=weights_, columns=mapped)
    study.run(config, plain_console())
