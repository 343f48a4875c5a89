"""`vlm-guard figures`: figures and tables of saved results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from studies.bookkeeping.console import plain_console
from studies.cli.messages import print_paths
from studies.cli.options import ResultFolders
from studies.cli.verbs import VerbResult, Verbs

app = Verbs()


@app.command()
def figures(
    results: ResultFolders,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for figures, captions and tables.")] = Path(
        "results/figures"
    ),
    width: Annotated[
        float,
        typer.Option(
            metavar="INCHES",
            help="Width in inches at which the figures are placed, with text of 8 points: 5.5 for one column of text "
            "(NeurIPS, ICLR), 3.25 for one of two columns, 6.75 for both (ICML, ACL, CVPR).",
        ),
    ] = 5.5,
) -> VerbResult:
    """Draw every figure that the results allow, as PDF and PNG with captions, and tables as LaTeX and Markdown.

    Lists what is left out, with the reason.
    """
    return run(results, out, plain_console(), width)


def run(folders: Sequence[Path], out: Path, console: Console, width: float = 5.5) -> VerbResult:
    """Write every figure and table that the results allow; print their paths, and what is left out.

    Args:
        folders: finished results.
        out: folder that is written to.
        console: where paths are printed.
        width: inches of the page that the figures are for.

    Raises:
        ResultsError: folders without results, or results that do not belong together.
        ConfigError: `out` can't be written to, or no page is that wide.
    """
    from figures import page
    from studies.experiment.config import ConfigError
    from studies.experiment.run_folder import held
    from studies.report.gallery import draw_figures, save_figures, save_tables
    from studies.report.results import Results

    try:
        drawn_for = page(width)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    results = Results.of(*folders)
    with held(out) as folder, drawn_for:
        figure_files, omitted_figures = save_figures(draw_figures(results), folder)
        table_files, omitted_tables = save_tables(results, folder)
    omitted = (*omitted_figures, *omitted_tables)
    print_paths(console, (*figure_files, *table_files))
    for entry in omitted:
        console.print(f"left out: {entry.name}: {entry.reason}", soft_wrap=True)
    return VerbResult({"left_out": omitted}, (*figure_files, *table_files))
