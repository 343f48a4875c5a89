"""Guards in the terminal: fit and save one, look at it, answer with and without it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from interp.guard import REFERENCES, Guard
from interp.guard_files import read_settings
from interp.inputs import MODALITIES, Prompt, Query, to_prompts
from interp.rows import run_rows
from interp.vlm import VLM
from studies import layer_sweep, readings
from studies.answers import Generation, reference_texts
from studies.datasets import QueryFileError, read_queries, write_queries
from studies.guarding import reference_for
from studies.material import Config, ConfigError, load, writable_folder
from studies.organism import language
from studies.reading_grid import Reading, rows_of
from studies.records import first_judge

ANCHORS = "anchors.csv"
"""Beside a guard: what it was fitted on, so that no test set is measured on it unnoticed."""
SHOWN = ("refusal_rate", "over_refusal_rate", "coherence", "refusal_score", "kl")


def fit(config: Config, out: Path) -> Guard:
    """Direction from the anchors, layer from the sweep, the rest from the grid of readings; all of it on validation.

    Raises:
        ConfigError, QueryFileError, ModelError: see `studies.material.load`; or a folder can't be written to.
    """
    material = load(config)
    for folder in (out, config.out):
        writable_folder(folder)
    layer = layer_sweep.chosen_layer(layer_sweep.run(config, material))
    table, reading = readings.select(material, layer)
    guard = replace(reading.guard, source=reading.source)
    guard.save_pretrained(out, resolved(material.vlm), validation_numbers(table, reading))
    write_queries(out / ANCHORS, material.queries["anchors"])
    return guard


def anchors_of(folder: str | Path) -> tuple[Query, ...]:
    """What a guard was fitted on; empty where its folder does not tell."""
    path = Path(folder) / ANCHORS
    return read_queries(path, look=False) if path.exists() else ()


def resolved(vlm: VLM) -> VLM:
    """By its whole path: whoever loads its guard may stand in another folder."""
    return replace(vlm, name=str(Path(vlm.name).resolve())) if Path(vlm.name).is_dir() else vlm


def validation_numbers(table: pd.DataFrame, reading: Reading) -> dict[str, float]:
    """What the reading reached on validation, and the unguarded model beside it."""
    table = first_judge(table)
    rows = {"": rows_of(table, reading), "unguarded, ": table[table.defence == "unguarded"]}
    numbers = {}
    for name, some in rows.items():
        some = some[some.metric.isin(SHOWN) & some.value.notna() & ~((some.metric == "kl") & (name != ""))]
        for row in some.itertuples():
            about = [f"{row.metric} {row.category}" if isinstance(row.category, str) else row.metric, row.modality]
            about += [f"reference {row.reference}"] if isinstance(row.reference, str) else []
            numbers[f"{name}{', '.join(about)} (n = {row.n})"] = float(row.value)
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


@dataclass(frozen=True)
class Asked:
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
    ) -> "Asked":
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
class Answered:
    """One prompt, with and without the guard."""

    prompt: Prompt
    reference: str
    is_open: bool
    unguarded: str
    guarded: str


def apply(vlm: VLM, guard: Guard, asked: Asked, how: Generation) -> list[Answered]:
    """Greedy answers with and without the guard; where its reference is in the pictures, they are read first."""
    prompts = to_prompts(asked.queries, asked.modality, vlm.picture_size)
    texts = reference_texts(vlm, prompts, asked.reference, how)
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
