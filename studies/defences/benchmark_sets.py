"""Sets that a model is asked: what was typed is read and checked before a model is loaded, then put as trials."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from interp.inputs import IMAGE_AUGMENTED, TYPOGRAPHIC, Prompt, to_prompt
from studies.datasets import ANSWER, Benchmark, QueryFileError, Record, damaged, read_benchmark, without
from studies.datasets.attacks import ATTACKS, Attack, apply
from studies.datasets.record import DECIDES
from studies.defences.prompt_sets import PromptSet
from studies.experiment.config import ConfigError


@dataclass(frozen=True)
class BenchmarkOptions:
    """Everything that is checked before a model is loaded."""

    benchmarks: tuple[Benchmark, ...]
    modalities: tuple[str, ...]
    """In which requests that are published as text are shown."""
    defences: tuple[str, ...]
    """By name; empty for all that there are."""
    limit: int | None
    """Rows of the largest class that are taken from each set, in each modality that it is published in."""
    attacks: tuple[str, ...] = ()
    """Jailbreak templates, by name, that the same requests are also put into."""

    @classmethod
    def of(
        cls,
        data: Sequence[str],
        modalities: Sequence[str] = ("text",),
        defences: Sequence[str] = (),
        limit: int | None = None,
        pictures: str | None = None,
        stand_in: bool = False,
        leave_out: bool = False,
        attacks: Sequence[str] = (),
    ) -> "BenchmarkOptions":
        """From what was typed.

        Args:
            data: `NAME=PATH`, or `PATH` of what tells by itself which benchmark it is.
            leave_out: whether rows without their picture are left out; else they are an error.

        Raises:
            QueryFileError: a file that can't be read, pictures that are missing.
            ConfigError: nothing to read, or no such benchmark, modality or defence.
        """
        if not data:
            raise ConfigError("no data; expected --data NAME=PATH once or several times, as --data XSTest=prompts.csv")
        known = ("text", *IMAGE_AUGMENTED, *TYPOGRAPHIC)
        strange = [name for name in modalities if name not in known]
        if strange or not modalities:
            raise ConfigError(f"modality {', '.join(strange) or 'none'} does not exist; expected {', '.join(known)}")
        unknown = [name for name in attacks if name not in ATTACKS]
        if unknown:
            raise ConfigError(f"attack {unknown[0]!r} does not exist; expected some of {', '.join(ATTACKS)}")
        benchmarks = tuple(_read(one, pictures, stand_in) for one in data)
        names = [one.source.name for one in benchmarks]
        if len(set(names)) < len(names):
            raise ConfigError(f"data {', '.join(names)}: expected each set once")
        chosen = tuple(_chosen(one, limit, leave_out) for one in benchmarks)
        return cls(chosen, tuple(modalities), tuple(defences), limit, tuple(attacks))


def _chosen(one: Benchmark, limit: int | None, leave_out: bool) -> Benchmark:
    """The rows that are asked; every picture of theirs has been looked at.

    Raises:
        QueryFileError: some pictures are missing or can't be read, and are not to be left out; or nothing is left.
    """
    n_rows, one = len(one.records), without(one, damaged(replace(one, records=_by_modality(one.records, limit))))
    absent = [record for record in one.records if record.is_missing_picture]
    kept = [record for record in one.records if not record.is_missing_picture] if leave_out else one.records
    kept = _by_modality(kept, limit)
    missing = [record for record in kept if record.is_missing_picture]
    if missing or not kept:
        raise QueryFileError(
            f"{one.source.name}: {len(absent)} of {n_rows} rows lack a picture that can be read, the first "
            f"{absent[0].picture_path!r}; give --pictures FOLDER, or --stand-in or --skip-missing{_not_drawn(absent)}"
        )
    return replace(one, records=tuple(kept))


def _not_drawn(absent: Sequence[Record]) -> str:
    n_needed = sum(record.needs_picture for record in absent)
    return f" (for {n_needed} of them nothing can be drawn: {DECIDES})" if n_needed else ""


def _by_modality(records: Sequence[Record], limit: int | None) -> tuple[Record, ...]:
    modalities = dict.fromkeys(record.modality for record in records)
    thinned = (_thinned([record for record in records if record.modality == name], limit) for name in modalities)
    return tuple(record for some in thinned for record in some)


def _thinned(records: Sequence[Record], limit: int | None) -> list[Record]:
    """So many rows of the largest class and as large a share of the others, evenly spaced, since published sets are
    sorted by category; whole pairs or none of a pair."""
    counts = Counter(record.expected for record in records)
    if limit is None or limit >= max(counts.values()):
        return list(records)
    units: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        units.setdefault(f"pair {record.query.pair}" if record.query.pair else f"row {i}", []).append(i)
    kinds: dict[tuple, list[list[int]]] = {}
    for places in units.values():
        kinds.setdefault(tuple(sorted(records[i].expected for i in places)), []).append(places)
    kept: set[int] = set()
    for some in kinds.values():
        n = max(1, round(limit * len(some) / max(counts.values())))
        for k in np.linspace(0, len(some) - 1, min(n, len(some))).round().astype(int):
            kept |= set(some[k])
    return [record for i, record in enumerate(records) if i in kept]


def _read(data: str, pictures: str | None, stand_in: bool) -> Benchmark:
    name, path = "", data
    if "=" in data and not Path(data).exists():
        name, _, path = data.partition("=")
    try:
        found = read_benchmark(path, name or None, pictures, stand_in)
    except QueryFileError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not found.records:
        raise QueryFileError(f"{path}: {found.source.name} without a row; expected at least one")
    return found


def prompt_sets_of(asked: BenchmarkOptions, picture_size: int) -> list[PromptSet]:
    """As published; what is published as text in every modality that was asked for."""
    found = []
    for one in asked.benchmarks:
        published = list(dict.fromkeys(record.modality for record in one.records))
        # What a set shows in a picture itself is not drawn a second time.
        rendered = [name for name in asked.modalities if name == "text" or name not in published]
        for modality in published:
            some = [record for record in one.records if record.modality == modality]
            shown = rendered if modality == "text" else [modality]
            found += [_trial(one.source.name, some, name, picture_size) for name in shown]
            found += [
                _attacked(trial, ATTACKS[attack])
                for trial in found[-len(shown) :]
                for attack in asked.attacks
                if trial.setting == "plain" and modality == "text"
            ]
    return found


def _attacked(trial: PromptSet, attack: Attack) -> PromptSet:
    """The same prompts in a jailbreak template, under the template's name and version."""
    prompts = tuple(replace(prompt, text=apply(prompt.text, attack)) for prompt in trial.prompts)
    return replace(trial, setting=attack.label, prompts=prompts)


def _trial(dataset: str, records: Sequence[Record], modality: str, picture_size: int) -> PromptSet:
    """Sets of what a model can do are `ability`, requests in a picture `multimodal`, all others `plain`.

    A set that judges safety may say what a good answer is, too: that is no right answer to be found word by word.
    """
    prompts = [
        record.prompt() if modality == record.modality else _rendered(record, modality, picture_size)
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


def _rendered(record: Record, modality: str, picture_size: int) -> Prompt:
    """A request that is published as text, in a picture or beside one: whatever was said with it is said here too."""
    prompt = to_prompt(record.query, modality, picture_size)
    return prompt if modality in TYPOGRAPHIC or not record.said else replace(prompt, text=record.said)
