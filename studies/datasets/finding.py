"""Finds out which benchmark a file or folder is, and which of a folder's files are read."""

import re
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

from studies.datasets.arrow_rows import SPLITS, is_saved_dataset
from studies.datasets.files import SUFFIXES, VALUE, DataFile, read_file
from studies.datasets.opening import stem_of, suffix_of
from studies.datasets.record import SkippedRow
from studies.datasets.registry import ENTRIES, Entry
from studies.datasets.responses import READERS
from studies.datasets.rows import QueryFileError


def recognise(path: str | Path) -> str:
    """Return the name of the benchmark that a file, or the files of a folder, belong to.

    Raises:
        QueryFileError: they belong to none, or to several; the message says what was found, and what is expected.
    """
    return find_files(Path(path), None)[0].name


def find_files(path: Path, entry: Entry | None) -> tuple[Entry, list[DataFile], list[DataFile], list[SkippedRow]]:
    """Find the files of a benchmark.

    Returns:
        The benchmark, its files that are read, its files that are not, and the files that can't be read.

    Raises:
        QueryFileError: see `read_benchmark`.
    """
    if not path.is_dir() or is_saved_dataset(path):
        file = read_file(path)
        return _entry_of(file, entry), [file], [], []
    files, unreadable = _read_folder(path)
    present = {match.name: match for file in files for match in matching_entries(file)}
    if unreadable and not (any(map(entry.is_form_of, files)) if entry else present):
        raise QueryFileError(unreadable[0].reason)
    if entry is None and len(present) != 1:
        raise QueryFileError(f"{path}: {_why_not_one(files, present)}")
    entry = entry or next(iter(present.values()))
    matching = [file for file in files if entry.is_form_of(file)]
    chosen = list(entry.choose(matching))
    if not chosen or (len(chosen) > 1 and not entry.has_several_files):
        names = ", ".join(str(file.path.relative_to(path)) for file in chosen) or "none"
        raise QueryFileError(f"{path}: files of {entry.name}: {names}; expected one, so give the path of the file")
    _check_parts(entry, chosen, unreadable)
    return entry, chosen, [file for file in matching if file not in chosen], unreadable


def _read_folder(folder: Path) -> tuple[list[DataFile], list[SkippedRow]]:
    files, unreadable = [], []
    for path in _data_files(folder):
        try:
            files.append(read_file(path))
        except QueryFileError as error:
            unreadable.append(SkippedRow(str(path), str(error)))
    return files, unreadable


def _check_parts(entry: Entry, chosen: Sequence[DataFile], unreadable: Sequence[SkippedRow]) -> None:
    """Check that no part of a benchmark of several files was passed over.

    Raises:
        QueryFileError: an unreadable file is in the same folder and of the same kind as the parts, so it may be one.
    """
    kinds = {(file.path.parent, file.path.suffix) for file in chosen} if entry.has_several_files else set()
    for skip in unreadable:
        if (Path(skip.where).parent, Path(skip.where).suffix) in kinds:
            raise QueryFileError(skip.reason)


def _data_files(folder: Path) -> list[Path]:
    """Return the files that may be data: no hidden ones, and plain text only if its name is that of a benchmark.

    A dataset that was saved to a folder is one file.

    Raises:
        QueryFileError: a file is a link that leads outside the folder.
    """
    patterns = [form.name_pattern for entry in ENTRIES for form in entry.forms if form.keys == (VALUE,)]
    paths = sorted(path for path in folder.rglob("*") if suffix_of(path) in SUFFIXES and path.is_file())
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    outside = [path for path in paths if not path.resolve().is_relative_to(folder.resolve())]
    if outside:
        raise QueryFileError(f"{outside[0]} is a link that leads outside {folder}; copy the file into the folder")
    saved = set(filter(is_saved_dataset, {path.parent for path in paths}))
    paths = [path for path in paths if path.parent not in saved and path.name != SPLITS]
    is_named = [suffix_of(path) != ".txt" or any(re.search(p, stem_of(path), re.I) for p in patterns) for path in paths]
    return sorted([*compress(paths, is_named), *saved])


def matching_entries(file: DataFile) -> list[Entry]:
    """Return the benchmarks that a file belongs to by its contents and, where these don't suffice, its name."""
    return [entry for entry in ENTRIES if entry.is_form_of(file)]


def _entry_of(file: DataFile, entry: Entry | None) -> Entry:
    possible = [entry for entry in ENTRIES if any(form.is_possible(file) for form in entry.forms)]
    if entry is not None and not any(form.is_possible(file) for form in entry.forms):
        other = f"; it looks like {possible[0].name}" if possible else ""
        raise QueryFileError(f"{file.path}: {file.summary()}, which is not a form of {entry.name}{other}")
    matching = matching_entries(file)
    if entry is None and len(matching) != 1:
        raise QueryFileError(f"{file.path}: {_why_unknown(file, possible)}")
    return entry or matching[0]


def _why_unknown(file: DataFile, possible: Sequence[Entry]) -> str:
    if possible:
        return (
            f"{file.summary()}; it may be {_names(possible)}, but neither contents nor file name show which, so name it"
        )
    if any(file.keys >= set(keys) for keys, _ in READERS):
        return f"{file.summary()}: labelled answers, which `vlm-guard judges` reads; expected requests"
    names = _names(ENTRIES[:-1])
    return (
        f"{file.summary()}, which is not a known form of {names}; a table of your own needs text and harmful, or "
        "--columns text=NAME,harmful=NAME"
    )


def _why_not_one(files: Sequence[DataFile], present: dict[str, Entry]) -> str:
    if present:
        return f"holds files of {', '.join(present)}; name one, or give the path of a file"
    seen = "; ".join(f"{file.path.name}: {file.summary()}" for file in files[:5]) or f"no {', '.join(SUFFIXES)}"
    return f"no known benchmark among {len(files)} data files ({seen}); expected one of {_names(ENTRIES)}"


def _names(entries: Sequence[Entry]) -> str:
    return ", ".join(entry.name for entry in entries)
