"""`vlm-guard data check`: what the files of a benchmark hold."""

from pathlib import Path
from typing import Annotated

import typer

from studies.cli.options import StandIn

app = typer.Typer(help="Check files of published benchmarks, or of your own.", no_args_is_help=True)


@app.command("check")
def data_check(
    path: Annotated[Path, typer.Argument(help="File or folder, as its authors publish it.")],
    name: Annotated[str | None, typer.Option(help="Name of the benchmark; by default it is recognised.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of the pictures; by default where the set has them.")
    ] = None,
    stand_in: StandIn = False,
    anchors: Annotated[
        Path | None,
        typer.Option(help="Queries a direction is fitted on, as a CSV; by default the built-in anchors."),
    ] = None,
) -> None:
    """Show what a benchmark's files hold. Exit code 1 if a picture is damaged, or missing without a stand-in."""
    from studies.datasets import QueryFileError, check, read_queries
    from studies.organism import language

    texts = [query.text for query in (read_queries(anchors) if anchors else language.queries("anchors"))]
    try:
        findings = check(path, name, pictures, stand_in, texts)
    except QueryFileError:
        raise
    except ValueError as error:
        raise QueryFileError(str(error)) from None
    for label, text in findings.lines():
        print(f"{label:<13} {text}")
    raise typer.Exit(0 if findings.is_usable else 1)
