"""`vlm-guard compare`: the claims on several models, side by side."""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli.arguments import ArgumentError
from studies.cli.messages import print_paths, quieten
from studies.cli.verbs import VerbResult, Verbs

app = Verbs()


@app.command()
def compare(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULTS...",
            help="Folders of finished `repro` runs: FOLDER, or NAME=FOLDER to name it in table and figure.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the table and the figures.")] = Path(
        "results/compare"
    ),
) -> VerbResult:
    """Show which claims hold on which model, as a table and figures."""
    folders = dict(_named(entry) for entry in results)
    if len(folders) < len(results) or not all(chain(*folders.items())):
        raise ArgumentError(f"{' '.join(results)}: expected FOLDER or NAME=FOLDER, each name once")
    missing = [folder for folder in folders.values() if not (Path(folder) / "claims.csv").is_file()]
    if missing:
        raise ArgumentError(f"{missing[0]} has no claims.csv; run `vlm-guard repro --out {missing[0]}` first")
    quieten()

    import figures
    from studies import claims_by_model
    from studies.bookkeeping.tables import write_table
    from studies.experiment.run_folder import held

    table, attacks = claims_by_model.run(folders), claims_by_model.attacks(folders)
    with held(out) as folder:
        paths = [write_table(table, folder, "claims_by_model")]
        paths += figures.save(figures.claims_by_model(table), folder, "claims_by_model")
        if not attacks.empty:
            paths += figures.save(figures.headline(attacks), folder, "headline")
            paths += figures.save(figures.attack_success_by_model(attacks), folder, "attack_success_by_model")
    console, mismatches = plain_console(), claims_by_model.mismatches(table)
    for row in mismatches.itertuples():
        console.print(f"- {row.model}: {row.claim}: {row.outcome}, planted: {row.planted}", soft_wrap=True)
    print_paths(console, paths)
    return VerbResult({"mismatches": mismatches}, paths)


def _named(entry: str) -> tuple[str, str]:
    """Return name and folder of a run; a folder without a name is called as its last part."""
    name, equals, folder = entry.partition("=")
    return (name, folder) if equals else (Path(entry).name, entry)
