"""Benchmarks as prompt sets: options are read and checked before a model is loaded, then turned into prompts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from interp import IMAGE_AUGMENTED, LLM, TYPOGRAPHIC, VLM, Prompt, to_prompt
from interp.control_tokens import control_tokens_in
from interp.pictures import LazyPicture
from interp.typography import blank_picture
from studies.bookkeeping.suggestions import did_you_mean
from studies.datasets import (
    ANSWER,
    Benchmark,
    Columns,
    QueryFileError,
    Record,
    SkippedRow,
    read_benchmark,
    unreadable_pictures,
    without_pictures,
)
from studies.datasets.attacks import ATTACKS, Attack, apply
from studies.datasets.record import PICTURE_DECIDES
from studies.defences.prompt_sets import PromptSet
from studies.experiment.config import ConfigError

COLOURS = {"white": (255, 255, 255), "grey": (128, 128, 128)}
"""Colours of a picture without content."""


@dataclass(frozen=True)
class BenchmarkFile:
    """A file or folder to read, and the name of its benchmark if it can't be recognised."""

    path: str | Path
    name: str | None = None


@dataclass(frozen=True)
class BenchmarkOptions:
    """Benchmarks, how they are shown and which defences answer, read and checked before a model is loaded."""

    benchmarks: tuple[Benchmark, ...]
    modalities: tuple[str, ...]
    """Modalities in which requests that are published as text are shown."""
    defences: tuple[str, ...]
    """Names of the defences; empty for all."""
    limit: int | None
    """At most this many rows of the largest class of each set, in each modality that it is published in."""
    attacks: tuple[str, ...] = ()
    """Names of jailbreak templates that plain requests are also put into."""
    n_costed: int = 0
    """Prompts of each set on which the cost of an answer is measured, one by one."""
    blank: str = "white"
    """Colour of the picture of modality `blank`, one of `COLOURS`."""

    @classmethod
    def of(
        cls,
        files: Sequence[BenchmarkFile],
        modalities: Sequence[str] = ("text",),
        defences: Sequence[str] = (),
        limit: int | None = None,
        pictures: str | None = None,
        stand_in: bool = False,
        skip_missing: bool = False,
        attacks: Sequence[str] = (),
        n_costed: int = 0,
        columns: Columns | None = None,
    ) -> "BenchmarkOptions":
        """Read the benchmarks, check the options, and open every picture that will be shown.

        Args:
            files: the benchmarks.
            modalities: see the field.
            defences: see the field; their names are checked by `studies.defences.lineup.check_names`.
            limit: see the field.
            pictures: folder of pictures; by default where the benchmark's authors put them.
            stand_in: draw a picture in place of each missing one.
            skip_missing: leave out rows whose picture is missing; otherwise they are an error.
            attacks: see the field.
            n_costed: see the field.
            columns: columns and labels of tables of your own; benchmarks that are named or known have theirs.

        Raises:
            QueryFileError: a file can't be read, or pictures are missing.
            ConfigError: there is no file, or a benchmark, modality or attack does not exist.
        """
        _check_options(files, modalities, attacks)
        benchmarks = tuple(_read(file, pictures, stand_in, columns) for file in files)
        names = [benchmark.source.name for benchmark in benchmarks]
        if len(set(names)) < len(names):
            raise ConfigError(f"data {', '.join(names)}: expected each set once")
        chosen = tuple(_chosen(benchmark, limit, skip_missing) for benchmark in benchmarks)
        return cls(chosen, tuple(modalities), tuple(defences), limit, tuple(attacks), n_costed)

    def for_model(self, model: VLM | LLM) -> "BenchmarkOptions":
        """Leave out the rows that can't be shown to a model as text, since they hold its control tokens.

        Raises:
            QueryFileError: no row of a benchmark is left.
        """
        return replace(self, benchmarks=tuple(_readable(benchmark, model) for benchmark in self.benchmarks))


def _readable(benchmark: Benchmark, model: VLM | LLM) -> Benchmark:
    kept, skipped = [], list(benchmark.skipped)
    for record in benchmark.records:
        if found := control_tokens_in(model, f"{record.said} {record.query.text}"):
            skipped.append(SkippedRow(record.id, f"holds {found[0]!r}, a control token of {model.name!r}"))
        else:
            kept.append(record)
    if not kept:
        raise QueryFileError(f"{benchmark.source.name}: no row can be shown to it; the last {skipped[-1].reason}")
    return replace(benchmark, records=tuple(kept), skipped=tuple(skipped))


def _check_options(files: Sequence[BenchmarkFile], modalities: Sequence[str], attacks: Sequence[str]) -> None:
    """Raise a ConfigError if there is no file, or a modality or attack does not exist."""
    if not files:
        raise ConfigError("no data; expected --data NAME=PATH once or several times, as --data XSTest=prompts.csv")
    available = ("text", *IMAGE_AUGMENTED, *TYPOGRAPHIC)
    unknown = [name for name in modalities if name not in available]
    if unknown or not modalities:
        suggestion = did_you_mean(unknown[0], available) if unknown else ""
        raise ConfigError(
            f"modality {', '.join(unknown) or 'none'} does not exist; expected {', '.join(available)}{suggestion}"
        )
    unknown = [name for name in attacks if name not in ATTACKS]
    if unknown:
        suggestion = did_you_mean(unknown[0], ATTACKS)
        raise ConfigError(f"attack {unknown[0]!r} does not exist; expected any of {', '.join(ATTACKS)}{suggestion}")


def _read(file: BenchmarkFile, pictures: str | None, stand_in: bool, columns: Columns | None) -> Benchmark:
    try:
        benchmark = read_benchmark(file.path, file.name, pictures, stand_in, columns)
    except QueryFileError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not benchmark.records:
        raise QueryFileError(f"{file.path}: {benchmark.source.name} has no row; expected at least one")
    return benchmark


def _chosen(benchmark: Benchmark, limit: int | None, skip_missing: bool) -> Benchmark:
    """Return the benchmark with the rows that are asked; all their pictures can be read.

    Raises:
        QueryFileError: pictures are missing or can't be read, and may not be skipped; or no row is left.
    """
    n_rows = len(benchmark.records)
    # Only the pictures that the limit keeps are opened.
    limited = replace(benchmark, records=_limited_by_modality(benchmark.records, limit))
    benchmark = without_pictures(benchmark, unreadable_pictures(limited))
    absent = [record for record in benchmark.records if record.is_missing_picture]
    kept = [record for record in benchmark.records if not (skip_missing and record.is_missing_picture)]
    kept = _limited_by_modality(kept, limit)
    if not kept or any(record.is_missing_picture for record in kept):
        raise QueryFileError(
            f"{benchmark.source.name}: {len(absent)} of {n_rows} rows lack a picture that can be read, the first "
            f"{absent[0].picture_path!r}; give --pictures FOLDER, or --stand-in or --skip-missing{_not_drawn(absent)}"
        )
    return replace(benchmark, records=tuple(kept))


def _not_drawn(absent: Sequence[Record]) -> str:
    n_needed = sum(record.needs_picture for record in absent)
    return f" ({n_needed} of them can't have a stand-in: {PICTURE_DECIDES})" if n_needed else ""


def _limited_by_modality(records: Sequence[Record], limit: int | None) -> tuple[Record, ...]:
    modalities = dict.fromkeys(record.modality for record in records)
    by_modality = ([record for record in records if record.modality == modality] for modality in modalities)
    return tuple(record for group in by_modality for record in _limited(group, limit))


def _limited(records: Sequence[Record], limit: int | None) -> list[Record]:
    """Thin out records to `limit` of the largest class and the same share of the other classes.

    Kept records are evenly spaced, since published sets are sorted by category; pairs are kept whole or not at all.
    """
    counts = Counter(record.expected for record in records)
    if limit is None or limit >= max(counts.values()):
        return list(records)
    units: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        units.setdefault(f"pair {record.query.pair}" if record.query.pair else f"row {i}", []).append(i)
    # Units of the same make-up, such as (answer, refuse) for a pair, are thinned together.
    strata: dict[tuple, list[list[int]]] = {}
    for unit in units.values():
        strata.setdefault(tuple(sorted(records[i].expected for i in unit)), []).append(unit)
    kept: set[int] = set()
    for stratum in strata.values():
        n = max(1, round(limit * len(stratum) / max(counts.values())))
        for k in np.linspace(0, len(stratum) - 1, min(n, len(stratum))).round().astype(int):
            kept |= set(stratum[k])
    return [record for i, record in enumerate(records) if i in kept]


def prompt_sets_of(options: BenchmarkOptions, picture_size: int) -> list[PromptSet]:
    """Return the benchmarks as published, and what is published as text also in every chosen modality and attack."""
    prompt_sets = []
    for benchmark in options.benchmarks:
        published = list(dict.fromkeys(record.modality for record in benchmark.records))
        # A modality that the set is itself published in is not drawn a second time.
        drawn = [name for name in options.modalities if name == "text" or name not in published]
        for modality in published:
            records = [record for record in benchmark.records if record.modality == modality]
            shown = drawn if modality == "text" else [modality]
            plain = [_prompt_set(benchmark.source.name, records, name, picture_size, options.blank) for name in shown]
            prompt_sets += plain
            if modality == "text":
                prompt_sets += [
                    _attacked(prompt_set, ATTACKS[attack])
                    for prompt_set in plain
                    for attack in options.attacks
                    if prompt_set.setting == "plain"
                ]
    return prompt_sets


def _attacked(prompt_set: PromptSet, attack: Attack) -> PromptSet:
    """Put the prompts into a jailbreak template; the setting is its name and version."""
    prompts = tuple(replace(prompt, text=apply(prompt.text, attack)) for prompt in prompt_set.prompts)
    return replace(prompt_set, setting=attack.label, prompts=prompts)


def _prompt_set(
    dataset: str, records: Sequence[Record], modality: str, picture_size: int, blank: str = "white"
) -> PromptSet:
    """Return records of one set as prompts; the setting is `ability`, `multimodal` or `plain`.

    A safety benchmark may also say what a good answer is; it is not scored by looking for that answer.
    """
    prompts = [
        record.prompt() if modality == record.modality else _drawn(record, modality, picture_size, blank)
        for record in records
    ]
    is_ability = all(record.answers and record.expected == ANSWER for record in records)
    setting = "ability" if is_ability else ("multimodal" if modality in TYPOGRAPHIC else "plain")
    return PromptSet(
        setting,
        modality,
        tuple(prompts),
        tuple(record.id for record in records),
        dataset,
        stand_ins=tuple(record.is_stand_in and modality == record.modality for record in records),
        expected=tuple(record.expected for record in records),
        right=tuple(record.answers for record in records) if is_ability else (),
        choices=tuple(record.choices for record in records) if is_ability else (),
    )


def with_blank(prompt: Prompt, colour: str, picture_size: int) -> Prompt:
    """Return a prompt of modality `blank` with a picture of this colour; publications choose different ones."""
    picture = LazyPicture(blank_picture, (picture_size, COLOURS[colour]))
    return replace(prompt, pictures=(picture,))


def _drawn(record: Record, modality: str, picture_size: int, blank: str) -> Prompt:
    """Show a request that is published as text in or next to a picture; its published wording is kept next to one."""
    prompt = to_prompt(record.query, modality, picture_size)
    if modality == "blank" and blank != "white":
        prompt = with_blank(prompt, blank, picture_size)
    return prompt if modality in TYPOGRAPHIC or not record.said else replace(prompt, text=record.said)
