"""`vlm-guard reproduce`: a published experiment on its own model, held to its published numbers."""

from pathlib import Path
from typing import Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.messages import quieten
from studies.cli.options import Loading, loads_model

app = typer.Typer()


@app.command()
@loads_model
def reproduce(
    preset: Annotated[str, typer.Argument(help="Name of a preset, a .toml file of your own, or 'list'.")],
    data: Annotated[Path, typer.Option(help="Folder of the data sets; the plan says what is missing in it.")] = Path(
        "data"
    ),
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for answers and tables; by default one in results named after preset and options. Rerun to "
            "resume."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, load nothing.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few requests and short answers, to find mistakes.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most N requests of each data set.")] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Another model than the preset's, or 'random': the preset's shape with random weights, to rehearse "
            "memory and time before a download."
        ),
    ] = "",
    judge: Annotated[
        list[str] | None,
        typer.Option(help="Judges other than the preset's, named as for `vlm-guard defend`; repeatable."),
    ] = None,
    blank: Annotated[
        str | None,
        typer.Option(
            help="Colour of the blank picture, white or grey; by default the preset's.",
            callback=arguments.one_of("colour", ("white", "grey")),
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per batch; halved where memory runs out.")] = 16,
    *,
    loading: Loading,
) -> None:
    """Run a published experiment, and say which of its numbers come out.

    Prints first what the run takes, and what is missing for it.
    """
    quieten()
    from studies.presets.preset import preset_names, read_preset

    if preset == "list":
        for name in preset_names():
            print(f"{name:<30} {read_preset(name).title}")
        return
    from studies import reproduce as study
    from studies.presets.reproduction import Reproduction

    chosen = read_preset(preset)
    parts = [chosen.name, "quick" * quick, Path(model).name, f"limit{limit}" * (limit is not None), blank or ""]
    folder = out or Path("results") / "-".join(filter(None, parts))
    reproduction = Reproduction(
        chosen, data, folder, model, quick, limit, tuple(judge or ()), blank or "", batch_size, loading
    )
    if dry_run:
        plain_console().print("\n".join(reproduction.plan().lines()), soft_wrap=True)
        return
    study.run(reproduction, plain_console())
