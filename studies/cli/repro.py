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
    Limit,
    Loading,
    Model,
    Queries,
    Scale,
    Split,
    loads_model,
    query_columns,
)
from studies.cli.verbs import VerbResult, Verbs

app = Verbs()


@app.command()
@loads_model
def repro(
    model: Model = DEFAULT_MODEL,
    queries: Queries = None,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
    scale: Scale = "quick",
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Folder for tables, figures and the report; finished work in it is reused."
        ),
    ] = Path("results/repro"),
    split: Split = "test",
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of folds, of the division of your own requests, and of controls.")
    ] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Another training of the built-in model, as `python -m studies.organism --seed N` writes it.",
        ),
    ] = None,
    limit: Limit = None,
    *,
    loading: Loading,
) -> VerbResult:
    """Run the paper's whole argument on one model: a verdict for each of its claims, tables, figures and a report.

    Does a picture blur harmful and harmless? Which guard is best? Does it bring refusals back, and at what cost?
    """
    quieten()

    from studies import repro as study
    from studies.experiment.config import Config

    queries_, weights_ = (str(path) if path else None for path in (queries, weights))
    mapped = query_columns(queries, columns, harmful_values)
    config = Config(
        model,
        queries_,
        scale,
        str(out),
        split,
        seed,
        loading=loading,
        weights=weights_,
        columns=mapped,
        limit=limit,
    )
    study.run(config, plain_console())
    return VerbResult({"report": out / study.REPORT}, study.files_of(out))
