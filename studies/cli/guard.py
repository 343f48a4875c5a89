"""`vlm-guard guard`: fit and save a guard, show one, answer with and without it."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.messages import quieten
from studies.cli.options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    ColumnNames,
    HarmfulValues,
    Limit,
    Loading,
    MaxNewTokens,
    Model,
    Queries,
    Scale,
    SplitSeed,
    choice,
    loads_model,
    query_columns,
)
from studies.cli.verbs import VerbResult, Verbs

if TYPE_CHECKING:
    from studies.cli.side_by_side import SideBySide

RATE = re.compile(
    r"(?P<unguarded>unguarded, )?(?P<metric>(?:over_)?refusal_rate), (?P<modality>\w+)(?:, reference .*)? "
    r"\(n = (?P<n>\d+)\)"
)
"""Name of a guard's number on validation, as `studies.guard_choice.validation_numbers` writes it."""
app = Verbs(help="Fit a guard, show its settings, or compare answers with and without it.", no_args_is_help=True)

Folder = Annotated[str, typer.Argument(metavar="GUARD", help="Folder of a guard, or hub id.")]


@app.command("fit")
@loads_model
def guard_fit(
    model: Model = DEFAULT_MODEL,
    queries: Queries = None,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
    scale: Scale = "quick",
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the guard.")] = Path("results/guard"),
    work: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for intermediate results; finished work in it is reused.")
    ] = Path("results/guard_fit"),
    seed: SplitSeed = 0,
    limit: Limit = None,
    *,
    loading: Loading,
) -> VerbResult:
    """Fit a guard to a model and save it: its direction on one part of the requests, its settings on another."""
    quieten()
    from studies import guard_choice
    from studies.experiment.config import Config

    path, mapped = str(queries) if queries else None, query_columns(queries, columns, harmful_values)
    config = Config(model, path, scale, str(work), "validation", seed, loading=loading, columns=mapped, limit=limit)
    guard_choice.fit(config, out)
    return show(str(out), plain_console())


@app.command("show")
def guard_show(folder: Folder) -> VerbResult:
    """Show what a guard is, which model it is for, and what it did on the requests that it was chosen on."""
    return show(folder, plain_console())


@app.command("apply")
@loads_model
def guard_apply(
    folder: Folder,
    text: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A single request, in place of the built-in ones or --queries.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Picture to send with --text.")] = None,
    queries: Queries = None,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Use at most N harmful and N harmless requests.")] = 5,
    modality: Annotated[
        str | None,
        choice(
            "modality",
            arguments.MODALITIES,
            "How requests are shown; by default scene if they have pictures, else blank",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        choice(
            "reference",
            arguments.REFERENCES,
            "Text that the guard compares with; by default its own",
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 40,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help=f"{MODEL_HELP} By default the one that the guard was fitted on."),
    ] = None,
    *,
    loading: Loading,
) -> VerbResult:
    """Show answers with and without the guard, side by side; by default to 5 built-in queries of each class."""
    quieten()
    from interp import Guard, read_guard_settings
    from studies.cli.side_by_side import ApplyOptions, apply
    from studies.experiment.model_loading import load_model
    from studies.generation.generate import Generation
    from studies.guards.wording import saved_in_words

    saved = read_guard_settings(folder)
    mapped = query_columns(queries, columns, harmful_values)
    options = ApplyOptions.of(text, picture, queries, limit, modality, reference, saved["guard"]["reference"], mapped)
    precision = saved["model"]["dtype"] if loading["dtype"] == "auto" else loading["dtype"]
    vlm = load_model(model or saved["model"]["name"], **loading | {"dtype": precision})
    guard = Guard.from_pretrained(folder, vlm)
    answers = apply(vlm, guard, options, Generation(max_new_tokens))
    print_answers(answers, plain_console())
    return VerbResult({"guard": saved_in_words(saved), "answers": [answer.record() for answer in answers]})


def show(folder: str, console: Console) -> VerbResult:
    """Print in some ten lines what a guard is, its model, and its numbers on validation; no model is needed.

    Raises:
        GuardFileError: the folder holds no guard, or it is damaged.
    """
    from interp import read_guard_settings
    from studies.guards.wording import saved_in_words

    saved = read_guard_settings(folder)
    model = saved["model"]
    lines = [
        f"Guard: {saved_in_words(saved)}.",
        f"Model: {model['name']} ({model['weights']}, {model['dtype']})",
        *_validation_lines(saved["validation"]),
        f"Answers with it: vlm-guard guard apply {folder}",
        f"Compare it: vlm-guard defend --model {model['name']} --guard {folder} --data FILE",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)
    return VerbResult({"name": saved_in_words(saved), **saved})


def _validation_lines(measured: Mapping[str, float]) -> list[str]:
    """Return the numbers on validation, a line for each modality: shares refused without the guard, and with it."""
    shares, sizes = defaultdict(dict), {}
    for name, value in measured.items():
        if match := RATE.fullmatch(name):
            shares[match["modality"]][match["metric"], bool(match["unguarded"])] = f"{value:.0%}"
            sizes[match["modality"]] = match["n"]
    lines = []
    for modality, share in shares.items():
        changes = [
            f"{who} {share.get((metric, True), '?'):>4} -> {share.get((metric, False), '?'):>4}"
            for metric, who in (("refusal_rate", "harmful"), ("over_refusal_rate", "harmless"))
        ]
        lines.append(f"  {modality:<18} {', '.join(changes)} (n = {sizes[modality]} of each)")
    title = "Refused on validation, without -> with the guard:" if lines else "Nothing was measured on validation."
    return [title, *lines]


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
