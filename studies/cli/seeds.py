"""`vlm-guard seeds`: the built-in model's results on other trainings of its recipe."""

from pathlib import Path
from typing import Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli.messages import print_paths, quieten
from studies.cli.options import Limit, Scale
from studies.cli.verbs import VerbResult, Verbs

app = Verbs()


@app.command()
def seeds(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="Folders seed1, seed2, ... that `python -m studies.organism --seed N` has trained.",
        ),
    ],
    scale: Scale = "quick",
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the tables; each seed's results get one of their own.")
    ] = Path("results/seeds"),
    limit: Limit = None,
) -> VerbResult:
    """Run every study on other trainings of the built-in model: is a result more than one lucky run?"""
    quieten()

    from studies import seeds as study
    from studies.bookkeeping.provenance import write_provenance
    from studies.bookkeeping.tables import write_table

    result = study.run(folders, scale, out, limit)
    paths = [write_table(result.table, out, "seeds"), write_table(result.claims, out, "seed_claims")]
    write_provenance(out, result.inputs, tables=paths)
    console = plain_console()
    by_seed = result.claims.pivot(index="claim", columns="seed", values="verdict")
    for claim in result.claims.claim.unique():
        verdicts = ", ".join(f"seed {seed} {verdict}" for seed, verdict in by_seed.loc[claim].items())
        console.print(f"- {claim}: {verdicts}", soft_wrap=True)
    print_paths(console, paths)
    return VerbResult(files=paths)
