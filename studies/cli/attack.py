"""`vlm-guard attack`: adaptive attacks on the guard and on other defences, to measure what they withstand."""

from typing import TYPE_CHECKING, Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.messages import print_paths, quieten
from studies.cli.options import choice, words
from studies.cli.run_options import SavedGuard, opened_run, runs_study
from studies.cli.verbs import VerbResult, Verbs

if TYPE_CHECKING:
    from studies.experiment.config import Config

app = Verbs()


@app.command()
@runs_study("results/attack")
def attack(
    guard: SavedGuard = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Attacks, separated by commas: universal_suffix, request_suffix (a tenth of the budget for each), "
            "wording, picture (blank; a fifth of the budget), reference_path (typographic modalities). By default all "
            "that the modality allows.",
        ),
    ] = None,
    defences: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Defences to attack, separated by commas: self_reminder, safety_prompt, text_verdict, gate_refuser, "
            "guard; with a countermeasure guard_stronger, guard_more_layers, guard_references, guard_random_layer, "
            "guard_perplexity, guard_bigrams, guard_detector, guard_text_score. By default all.",
        ),
    ] = None,
    budget: Annotated[int, typer.Option(metavar="N", help="Queries per search: candidates that are scored.")] = 500,
    requests: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Harmful validation requests that a universal candidate is scored on."),
    ] = 11,
    modality: Annotated[str, choice("modality", arguments.MODALITIES, "How the attacked requests are shown")] = "blank",
    *,
    config: "Config",
) -> VerbResult:
    """Attack the guard as somebody would who knows it: attack success against queries spent, for every defence.

    An evaluation of defences: answers are judged and not kept. What was found is kept for the built-in model only.
    Rerun it to resume.
    """
    quieten()

    import figures
    from studies import adaptive, claims
    from studies.bookkeeping.provenance import write_json, write_provenance
    from studies.bookkeeping.tables import write_table

    settings = adaptive.AttackSettings(words(attacks or ""), words(defences or ""), budget, requests, modality)
    settings.check()
    console = plain_console()
    with opened_run(config, vars(settings), guard) as (folder, experiment, saved):
        result = adaptive.run(config, settings, experiment, saved)
        verdict = claims.attack_verdict(result.table)
        tables = [write_table(result.table, folder, "adaptive")]
        write_json(folder / "adaptive_found.json", {"searches": list(result.found)})
        write_provenance(folder, experiment.inputs(), config.seed, tables)
        written = [*tables, *figures.save(figures.attack_curves(result.table), folder, "adaptive")]
    console.print(f"- {verdict.claim}: {verdict.verdict} ({verdict.ours})", soft_wrap=True)
    print_paths(console, written)
    return VerbResult({"claim": verdict, "searches": result.found}, written)
