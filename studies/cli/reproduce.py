"""`vlm-guard reproduce`: a published experiment on its own model, held to its published numbers."""

from pathlib import Path
from typing import Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli.messages import quieten
from studies.cli.options import BatchSize, Loading, choice, flag, loads_model
from studies.cli.verbs import VerbResult, Verbs

app = Verbs()


@app.command()
@loads_model
def reproduce(
    preset: Annotated[
        str,
        typer.Argument(metavar="PRESET", help="Name of a preset, a .toml file of your own, or `list` to list them."),
    ],
    data: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the data sets; the plan says what is missing in it.")
    ] = Path("data"),
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for answers and tables; by default one in results named after preset and options. Rerun to "
            "resume.",
        ),
    ] = None,
    dry_run: Annotated[bool, flag("--dry-run", "Print the plan, load nothing.")] = False,
    quick: Annotated[bool, flag("--quick", "Few requests and short answers, to find mistakes.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N requests of each data set.")] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Another model than the preset's, or random: the preset's shape with random weights, to rehearse "
            "memory and time before a download.",
        ),
    ] = "",
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JUDGE",
            help="A judge in place of the preset's, named as in `vlm-guard judges list`; repeatable.",
        ),
    ] = None,
    blank: Annotated[
        str | None,
        choice("colour", ("white", "grey"), "Colour of the blank picture, by default the preset's"),
    ] = None,
    batch_size: BatchSize = 16,
    *,
    loading: Loading,
) -> VerbResult:
    """Run a published experiment, and say which of its numbers come out.

    Prints first what the run takes, and what is missing for it.
    """
    quieten()
    from studies.presets.preset import preset_names, read_preset

    if preset == "list":
        titles = {name: read_preset(name).title for name in preset_names()}
        for name, title in titles.items():
            print(f"{name:<30} {title}")
        return VerbResult({"presets": [{"name": name, "title": title} for name, title in titles.items()]})
    from studies import reproduce as study
    from studies.presets.reproduction import Reproduction

    chosen = read_preset(preset)
    parts = [chosen.name, "quick" * quick, Path(model).name, f"limit{limit}" * (limit is not None), blank or ""]
    folder = out or Path("results") / "-".join(filter(None, parts))
    reproduction = Reproduction(
        chosen, data, folder, model, quick, limit, tuple(judge or ()), blank or "", batch_size, loading
    )
    if dry_run:
        lines = list(reproduction.plan().lines())
        plain_console().print("\n".join(lines), soft_wrap=True)
        return VerbResult({"preset": chosen.name, "plan": lines})
    study.run(reproduction, plain_console())
    return VerbResult({"preset": chosen.name}, [folder / "targets.csv", folder / "targets.png"])
