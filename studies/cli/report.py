"""`vlm-guard report`: saved results as one page."""

from pathlib import Path
from typing import Annotated

import typer

from studies.cli.options import ResultFolders, flag
from studies.cli.verbs import VerbResult, Verbs

app = Verbs()


@app.command()
def report(
    results: ResultFolders,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page, a single file.")] = Path("report.html"),
    harmful_answers: Annotated[
        bool,
        flag("--harmful-answers", "Show a real model's answers to harmful requests, which are withheld otherwise."),
    ] = False,
) -> VerbResult:
    """Show results as one page that needs no network: headline, claims, samples, figures, tables, hidden states."""
    from studies import report as page
    from studies.bookkeeping.progress import phase
    from studies.report.gallery import FIGURES
    from studies.report.results import Results

    loaded = Results.of(*results)
    with phase("figures", len(FIGURES)) as advance:
        written = page.write(loaded, out, lambda name: advance(note=name), harmful_answers=harmful_answers)
    print(f"  {written}")
    return VerbResult({"report": written}, [written])
