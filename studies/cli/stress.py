"""`vlm-guard stress`: the guard when answers are sampled, longer, or come later in a conversation."""

from typing import TYPE_CHECKING, Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.messages import print_paths, quieten
from studies.cli.options import words
from studies.cli.run_options import SavedGuard, opened_run, runs_study
from studies.cli.verbs import VerbResult, Verbs

if TYPE_CHECKING:
    from studies.experiment.config import Config

app = Verbs()


def _lengths(text: str) -> str:
    """Check that lengths are whole numbers."""
    if not all(word.isascii() and word.isdigit() for word in words(text)):
        raise arguments.ArgumentError(f"lengths {text!r}; expected whole numbers of tokens, as 128,256")
    return text


@app.command()
@runs_study("results/stress")
def stress(
    guard: SavedGuard = None,
    draws: Annotated[int, typer.Option(min=1, metavar="N", help="Draws of each sampled answer.")] = 5,
    temperature: Annotated[float, typer.Option(metavar="T", help="Temperature of sampled answers.")] = 1.0,
    lengths: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS",
            help="Lengths of answers in tokens, shortest first, as 128,256.",
            callback=_lengths,
        ),
    ] = "128,256",
    *,
    config: "Config",
) -> VerbResult:
    """Answer in other ways, with and without the guard: sampled, longer, after other turns, with two pictures.

    The guard stays as it was chosen, for greedy short answers in one turn. Rerun it to resume.
    """
    quieten()

    import figures
    from studies import claims
    from studies import stress as study
    from studies.bookkeeping.provenance import write_provenance
    from studies.bookkeeping.tables import write_table

    settings = study.StressSettings(draws, temperature, tuple(map(int, words(lengths))))
    settings.check()
    console = plain_console()
    with opened_run(config, vars(settings), guard) as (folder, experiment, saved):
        result = study.run(config, settings, experiment, saved)
        verdict = claims.stress_verdict(result.table)
        tables = [write_table(result.table, folder, "stress")]
        write_provenance(folder, experiment.inputs(), config.seed, tables)
        written = [*tables, *figures.save(figures.stress_map(result.table), folder, "stress")]
    if result.earlier:
        console.print(
            f"- {study.LATER}: {result.earlier[0]!r}, answered {result.earlier[1]!r}", soft_wrap=True, markup=False
        )
    for name, reason in result.left_out.items():
        console.print(f"- left out: {name}, {reason}", soft_wrap=True)
    console.print(f"- {verdict.claim}: {verdict.verdict} ({verdict.ours})", soft_wrap=True)
    print_paths(console, written)
    return VerbResult({"claim": verdict, "left_out": result.left_out, "earlier": result.earlier}, written)
