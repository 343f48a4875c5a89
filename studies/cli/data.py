"""`vlm-guard data`: what the files of a benchmark hold, and which benchmarks can be read."""

from pathlib import Path
from typing import Annotated

import typer

from studies.cli import arguments
from studies.cli.options import ColumnNames, HarmfulValues, StandIn
from studies.cli.verbs import VerbResult, Verbs

app = Verbs(help="Check files of published benchmarks, or of your own; list benchmarks.", no_args_is_help=True)


@app.command("list")
def data_list() -> VerbResult:
    """List the benchmarks that can be read: what each is, its source, its licence, and how to get its files."""
    from studies.datasets.catalogue import catalogue

    benchmarks = list(catalogue())
    for benchmark in benchmarks:
        name, *parts = benchmark.values()
        print(f"{name:<20} {' | '.join(parts)}")
    return VerbResult({"benchmarks": benchmarks})


@app.command("check")
def data_check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="File or folder of a benchmark as its authors publish it, or a table of your own.",
            callback=arguments.existing("data file or folder"),
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Which benchmark it is, see `vlm-guard data list`; by default it is recognised."
        ),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the pictures; by default where the set has them.")
    ] = None,
    stand_in: StandIn = False,
    anchors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Requests that a guard is fitted on (its anchors), as a CSV: those that recur in the benchmark are "
            "counted; by default the built-in ones.",
        ),
    ] = None,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
) -> VerbResult:
    """Show what a benchmark's files hold: how many requests of which class, what is missing, repeated or damaged.

    Ends with exit code 1 if a picture is damaged, or missing without a stand-in.
    """
    from studies.datasets import Columns, QueryFileError, check, read_queries
    from studies.organism import language

    own = read_queries(anchors, check_pictures=False) if anchors else language.queries("anchors")
    mapped = Columns.parse(columns, harmful_values)
    try:
        findings = check(path, name, pictures, stand_in, [query.text for query in own], mapped)
    except QueryFileError:
        raise
    except ValueError as error:
        raise QueryFileError(str(error)) from None
    lines = list(findings.lines())
    for label, text in lines:
        print(f"{label:<13} {text}")
    if findings.damaged_inside:
        raise QueryFileError(
            f"{len(findings.damaged_inside)} pictures inside the file can't be read, the first in {path}, "
            f"{findings.damaged_inside[0].partition('#')[2]}; expected bytes or base64 of a picture"
        )
    rows = [{"about": label, "found": text} for label, text in lines]
    return VerbResult({"findings": rows}, is_ok=findings.is_usable)
