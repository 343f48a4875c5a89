"""Guards in the terminal: fit and save one, look at it, answer with and without it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from interp.guard import Guard
from interp.guard_files import read_settings
from interp.inputs import MODALITIES, Prompt, Query
from interp.rows import run_rows
from interp.vlm import VLM
from studies import layer_sweep
from studies.answers import REFERENCES, Generation, reference_texts
from studies.datasets import read_queries
from studies.material import Config, ConfigError, load
from studies.organism import language
from studies.records import first_judge
from studies.repro import writable_folder

SHOWN = ("refusal_rate", "over_refusal_rate", "coherence", "refusal_score", "kl")


def fit(config: Config, out: Path) -> Guard:
    """Direction from the anchors, layer, rule and strength from validation; saved with the numbers it was chosen by.

    Raises:
        ConfigError, QueryFileError, ModelError: see `studies.material.load`; or `out` can't be written to.
    """
    writable_folder(out)
    writable_folder(config.out)
    material = load(config)
    table = layer_sweep.run(config, material)
    guard = layer_sweep.chosen_guard(table, material)
    guard.save_pretrained(out, material.vlm, validation_numbers(table))
    return guard


def validation_numbers(table: pd.DataFrame) -> dict[str, float]:
    """What the chosen configuration reached on validation, and the unguarded model beside it."""
    table = first_judge(table)
    rows = {"": table[table.selection_rule.notna()], "unguarded, ": table[table.defence == "unguarded"]}
    numbers = {}
    for name, some in rows.items():
        some = some[some.metric.isin(SHOWN) & some.value.notna() & ~((some.metric == "kl") & (name != ""))]
        for row in some.itertuples():
            about = f"{row.metric} {row.category}" if isinstance(row.category, str) else row.metric
            numbers[f"{name}{about}, {row.modality} (n = {row.n})"] = float(row.value)
    return numbers


def show(folder: str, console: Console) -> None:
    """Settings, model, and the numbers it was chosen by; needs no model.

    Raises:
        GuardFileError: there is no guard, or it is damaged.
    """
    about = read_settings(folder)
    settings = Table(title=f"Guard for {about['model']['name']} ({about['model']['weights']})", show_header=False)
    for name, value in (about["guard"] | {f"direction: {k}": v for k, v in about["direction"].items()}).items():
        if value is not None:
            settings.add_row(name, str(value))
    console.print(settings)
    measured = Table("on validation", "")
    for name, value in about["validation"].items():
        measured.add_row(name, f"{value:.3g}")
    console.print(measured if about["validation"] else "Nothing was measured on validation.")


def asked_queries(text: str | None, picture: Path | None, file: Path | None, limit: int) -> tuple[Query, ...]:
    """One request, or the first of each class in a file, or of the built-in validation queries.

    Raises:
        ConfigError: a text and a file, or a picture without a text.
        QueryFileError: the file holds no queries.
    """
    if (text and file) or (picture and not text):
        raise ConfigError("expected --text, with or without --picture, or --queries, or none of them")
    if text:
        return (Query(text, harmful=False, picture=str(picture) if picture else None),)
    known = read_queries(file) if file else language.queries("validation")
    return tuple(query for label in (True, False) for query in [q for q in known if q.harmful == label][:limit])


def check_asked(modality: str, reference: str) -> None:
    """Raises:
    ConfigError: no such modality or reference, or one that takes the true request to be known.
    """
    if modality not in MODALITIES:
        raise ConfigError(f"modality {modality!r} does not exist; expected one of {', '.join(MODALITIES)}")
    honest = [name for name in REFERENCES if name != "oracle"]
    if reference not in honest:
        raise ConfigError(f"reference {reference!r} can't be used; expected one of {', '.join(honest)}")


@dataclass(frozen=True)
class Answered:
    """One prompt, with and without the guard."""

    prompt: Prompt
    reference: str
    is_open: bool
    unguarded: str
    guarded: str


def apply(vlm: VLM, guard: Guard, prompts: Sequence[Prompt], reference: str, how: Generation) -> list[Answered]:
    """Greedy answers with and without the guard.

    Args:
        reference: of `studies.answers.REFERENCES`; where it reads pictures, they are read first.
    """
    texts = reference_texts(vlm, prompts, reference, how)
    states = guard.read(vlm, texts)
    rows = run_rows(vlm, prompts, [None, guard], states, max_new_tokens=how.max_new_tokens)
    said = [vlm.tokenizer.batch_decode(tokens, skip_special_tokens=True) for tokens in rows.tokens]
    told = zip(prompts, texts, guard.opens(states).tolist(), *said, strict=True)
    return [Answered(prompt, text, is_open, *map(str.strip, both)) for prompt, text, is_open, *both in told]


def print_answers(answered: Sequence[Answered], console: Console) -> None:
    """Side by side."""
    table = Table("request", "gate", "unguarded", "guarded", show_lines=True)
    for one in answered:
        # What people ask and models say is no markup.
        request, reference, unguarded, guarded = map(
            escape, (one.prompt.query.text, one.reference, one.unguarded, one.guarded)
        )
        shown = request if reference == request else f"{request}\n[dim]reference: {reference}[/dim]"
        gate = "[red]open[/red]" if one.is_open else "shut"
        table.add_row(shown, gate, unguarded, f"[bold]{guarded}[/bold]" if guarded != unguarded else guarded)
    console.print(table)
    n_changed = sum(one.guarded != one.unguarded for one in answered)
    n_open = sum(one.is_open for one in answered)
    console.print(f"{n_changed} of {len(answered)} answers differ; the gate is open for {n_open}.")
