"""`vlm-guard guard`: fit and save a guard, show one, answer with and without it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from interp.guard import REFERENCES, Guard
from interp.guard_batches import run_guards
from interp.guard_files import read_settings
from interp.inputs import MODALITIES, Prompt, Query, to_prompts
from interp.vlm import VLM
from studies.datasets import QueryFileError, read_queries
from studies.experiment.config import ConfigError
from studies.generation.generate import Generation
from studies.generation.reference_texts import reference_for, reference_texts
from studies.organism import language


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


@dataclass(frozen=True)
class ApplyOptions:
    """Queries, how they reach the model, and what the guard is shown of them."""

    queries: tuple[Query, ...]
    modality: str
    reference: str

    @classmethod
    def of(
        cls,
        text: str | None,
        picture: Path | None,
        file: Path | None,
        limit: int,
        modality: str | None,
        reference: str | None,
        guards_own: str,
    ) -> "ApplyOptions":
        """From what was typed: all of it is checked before a model is loaded.

        Args:
            text: one request, with a picture or without.
            picture: stands beside it.
            file: of queries, the first `limit` of each class; by default the built-in validation queries.
            modality: by default `scene` where queries bring pictures, else `blank`.
            reference: by default the guard's own, or in typographic modalities what is read in the picture.
            guards_own: the reference that the guard was saved with.

        Raises:
            ConfigError: things that exclude each other, an empty text, no such modality or reference.
            QueryFileError: the file holds no queries.
        """
        if (text is not None and file) or (picture and text is None):
            raise ConfigError("expected --text, with or without --picture, or --queries, or none of them")
        if text is not None and not text.strip():
            raise ConfigError("--text is empty; expected a request")
        if picture and modality not in (None, "scene"):
            raise ConfigError(f"--picture with --modality {modality}; a picture of yours is shown in modality scene")
        queries = _asked_queries(text, picture, file, limit)
        modality = modality or ("scene" if any(query.picture for query in queries) else "blank")
        if modality not in MODALITIES:
            raise ConfigError(f"modality {modality!r} does not exist; expected one of {', '.join(MODALITIES)}")
        if reference is None:
            reference = reference_for(modality) if guards_own == "prompt_text" else guards_own
        honest = [name for name in REFERENCES if name != "oracle"]
        if reference not in honest:
            raise ConfigError(f"reference {reference!r} can't be used; expected one of {', '.join(honest)}")
        return cls(queries, modality, reference)


def _asked_queries(text: str | None, picture: Path | None, file: Path | None, limit: int) -> tuple[Query, ...]:
    if text is not None:
        return (Query(text, harmful=False, picture=str(picture) if picture else None),)
    known = read_queries(file) if file else language.queries("validation")
    if not known:
        raise QueryFileError(f"{file} holds no queries; expected at least one row")
    return tuple(query for label in (True, False) for query in [q for q in known if q.harmful == label][:limit])


@dataclass(frozen=True)
class SideBySide:
    """One prompt, with and without the guard."""

    prompt: Prompt
    reference: str
    is_open: bool
    unguarded: str
    guarded: str


def apply(vlm: VLM, guard: Guard, asked: ApplyOptions, how: Generation) -> list[SideBySide]:
    """Greedy answers with and without the guard; where its reference is in the pictures, they are read first."""
    prompts = to_prompts(asked.queries, asked.modality, vlm.picture_size)
    texts = reference_texts(vlm, prompts, asked.reference, how)
    states = guard.read(vlm, texts)
    rows = run_guards(vlm, prompts, [None, guard], states, max_new_tokens=how.max_new_tokens)
    said = [vlm.tokenizer.batch_decode(tokens, skip_special_tokens=True) for tokens in rows.tokens]
    told = zip(prompts, texts, guard.opens(states).tolist(), *said, strict=True)
    return [SideBySide(prompt, text, is_open, *map(str.strip, both)) for prompt, text, is_open, *both in told]


def print_answers(answered: Sequence[SideBySide], console: Console) -> None:
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
