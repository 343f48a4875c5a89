"""`vlm-guard compare`: the claims on several models, side by side."""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli.arguments import ArgumentError
from studies.cli.messages import quieten

app = typer.Typer()


@app.command()
def compare(
    results: Annotated[
        list[str], typer.Argument(help="Finished runs: FOLDER, or NAME=FOLDER such as 'mine=results/repro'.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the table and the figures.")] = Path("results/compare"),
) -> None:
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
    console = plain_console()
    for row in claims_by_model.mismatches(table).itertuples():
        console.print(f"- {row.model}: {row.claim}: {row.outcome}, planted: {row.planted}", soft_wrap=True)
    for path in paths:
        console.print(f"  {path}", soft_wrap=True)


def _named(entry: str) -> tuple[str, str]:
    """Return name and folder of a run; a folder without a name is called as its last part."""
    name, equals, folder = entry.partition("=")
    return (name, folder) if equals else (Path(entry).name, entry)
