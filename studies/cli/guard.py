"""`vlm-guard guard`: fit and save a guard, show one, answer with and without it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from studies.bookkeeping.console import plain_console
from studies.cli.messages import quieten
from studies.cli.options import (
    DEFAULT_MODEL,
    ColumnNames,
    HarmfulValues,
    Loading,
    MaxNewTokens,
    Model,
    Queries,
    Scale,
    SplitSeed,
    loads_model,
    query_columns,
)

if TYPE_CHECKING:
    from studies.cli.side_by_side import SideBySide

app = typer.Typer(help="Fit a guard, show its settings, or compare answers with and without it.", no_args_is_help=True)

Folder = Annotated[str, typer.Argument(help="Folder of a guard, or hub id.")]


@app.command("fit")
@loads_model
def guard_fit(
    out: Annotated[Path, typer.Option(help="Folder of the guard.")],
    model: Model = DEFAULT_MODEL,
    queries: Queries = None,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
    scale: Scale = "quick",
    work: Annotated[Path, typer.Option(help="Folder for traces, which are reused.")] = Path("results/guard_fit"),
    seed: SplitSeed = 0,
    *,
    loading: Loading,
) -> None:
    """Fit the direction on anchors, choose layer, rule and strength on validation, and save the guard."""
    quieten()
    from studies import guard_choice
    from studies.experiment.config import Config

    path, mapped = str(queries) if queries else None, query_columns(queries, columns, harmful_values)
    config = Config(model, path, scale, str(work), "validation", seed, loading=loading, columns=mapped)
    guard_choice.fit(config, out)
    show(str(out), plain_console())
    print(f"{out} holds the guard; `vlm-guard guard apply {out}` answers with it")


@app.command("show")
def guard_show(folder: Folder) -> None:
    """Show what a guard is, which model it is for, and its numbers on validation."""
    show(folder, plain_console())


@app.command("apply")
@loads_model
def guard_apply(
    folder: Folder,
    text: Annotated[str | None, typer.Option(help="A single request, instead of --queries.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Picture to send with --text.")] = None,
    queries: Queries = None,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
    limit: Annotated[int, typer.Option(min=1, help="At most N queries per class.")] = 5,
    modality: Annotated[
        str | None,
        typer.Option(
            help="text, blank, noise, scene, typographic or typographic_scene; by default scene if the queries have "
            "pictures, else blank."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Text shown to the language model for the guard: prompt_text, transcription, caption, "
            "prompt_text+transcription or prompt_text+caption; by default the guard's own."
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 40,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder in Hugging Face format, hub id, or 'organism'; by default the model the guard was fitted on."
        ),
    ] = None,
    *,
    loading: Loading,
) -> None:
    """Show answers with and without the guard, side by side; by default to 5 built-in queries of each class."""
    quieten()
    from interp import Guard, read_guard_settings
    from studies.cli.side_by_side import ApplyOptions, apply
    from studies.experiment.model_loading import load_model
    from studies.generation.generate import Generation

    saved = read_guard_settings(folder)
    mapped = query_columns(queries, columns, harmful_values)
    options = ApplyOptions.of(text, picture, queries, limit, modality, reference, saved["guard"]["reference"], mapped)
    precision = saved["model"]["dtype"] if loading["dtype"] == "auto" else loading["dtype"]
    vlm = load_model(model or saved["model"]["name"], **loading | {"dtype": precision})
    guard = Guard.from_pretrained(folder, vlm)
    print_answers(apply(vlm, guard, options, Generation(max_new_tokens)), plain_console())


def show(folder: str, console: Console) -> None:
    """Print a guard's settings, its model, and its numbers on validation; no model is needed.

    Raises:
        GuardFileError: the folder holds no guard, or it is damaged.
    """
    from interp import read_guard_settings
    from studies.guards.wording import saved_in_words

    saved = read_guard_settings(folder)
    console.print(f"Guard: {saved_in_words(saved)}.", soft_wrap=True)
    settings = Table(title=f"Guard for {saved['model']['name']} ({saved['model']['weights']})", show_header=False)
    direction = {f"direction: {name}": value for name, value in saved["direction"].items()}
    for name, value in (saved["guard"] | direction).items():
        if value is not None:
            settings.add_row(name, str(value))
    console.print(settings)
    measured = Table("on validation", "")
    for name, value in saved["validation"].items():
        measured.add_row(name, f"{value:.3g}")
    console.print(measured if saved["validation"] else "Nothing was measured on validation.")


def print_answers(answers: "Sequence[SideBySide]", console: Console) -> None:
    """Print both answers to each prompt in a row, and how many differ."""
    table = Table("request", "gate", "unguarded", "guarded", show_lines=True)
    for answer in answers:
        request, reference = answer.prompt.query.text, answer.reference
        unguarded, guarded = answer.unguarded, answer.guarded
        cell = Text(request) if reference == request else Text.assemble(request, (f"\nreference: {reference}", "dim"))
        gate = Text("open", "red") if answer.is_open else Text("shut")
        table.add_row(cell, gate, Text(unguarded), Text(guarded, "bold" if guarded != unguarded else ""))
    console.print(table)
    n_changed = sum(answer.guarded != answer.unguarded for answer in answers)
    n_open = sum(answer.is_open for answer in answers)
    console.print(f"{n_changed} of {len(answers)} answers differ; the gate is open for {n_open}.")
