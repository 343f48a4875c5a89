"""Which files of a folder are which benchmark, and which of them are read."""

import re
from collections.abc import Sequence
from pathlib import Path

from studies.datasets.files import SUFFIXES, TEXT, DataFile, read_file
from studies.datasets.record import SkippedRow
from studies.datasets.registry import ENTRIES, Entry
from studies.datasets.table import QueryFileError


def recognise(path: str | Path) -> str:
    """The name of the benchmark that a file, or the files of a folder, belong to.

    Raises:
        QueryFileError: to none, or to several; says what was seen, and which are known.
    """
    return find(Path(path), None)[0].name


def find(path: Path, entry: Entry | None) -> tuple[Entry, list[DataFile], list[DataFile], list[SkippedRow]]:
    """The benchmark, its files that are read, those that are not, and those that can't be.

    Raises:
        QueryFileError: see `read_benchmark`.
    """
    if not path.is_dir():
        file = read_file(path)
        return _entry_of(file, entry), [file], [], []
    files, unread = _read_folder(path)
    owners = {told.name: told for file in files for told in told_by(file)}
    if unread and not (entry.name in owners if entry else owners):
        raise QueryFileError(unread[0].reason)
    if entry is None and len(owners) != 1:
        raise QueryFileError(f"{path}: {_seen(files, owners)}")
    entry = entry or next(iter(owners.values()))
    found = [file for file in files if entry in told_by(file)]
    chosen = list(entry.choose(found))
    if not chosen or (len(chosen) > 1 and not entry.is_joined):
        names = ", ".join(str(file.path.relative_to(path)) for file in chosen) or "none"
        raise QueryFileError(f"{path}: files of {entry.name}: {names}; expected one, so give the path of the file")
    _check_parts(entry, chosen, unread)
    return entry, chosen, [file for file in found if file not in chosen], unread


def _read_folder(folder: Path) -> tuple[list[DataFile], list[SkippedRow]]:
    files, unread = [], []
    for path in _data_files(folder):
        try:
            files.append(read_file(path))
        except QueryFileError as error:
            unread.append(SkippedRow(str(path), str(error)))
    return files, unread


def _check_parts(entry: Entry, chosen: Sequence[DataFile], unread: Sequence[SkippedRow]) -> None:
    """Raises:
    QueryFileError: a file beside the parts of a set, and of their kind, can't be read: it may be one of them.
    """
    beside = {(file.path.parent, file.path.suffix) for file in chosen} if entry.is_joined else set()
    for part in unread:
        if (Path(part.where).parent, Path(part.where).suffix) in beside:
            raise QueryFileError(part.reason)


def _data_files(folder: Path) -> list[Path]:
    """Those that may be data: nothing hidden, and plain text only where its name tells a benchmark."""
    names = [form.named for entry in ENTRIES for form in entry.forms if form.kind == TEXT]
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    outside = [path for path in found if not path.resolve().is_relative_to(folder.resolve())]
    if outside:
        raise QueryFileError(f"{outside[0]} is a link that leads outside {folder}; copy the file into the folder")
    return [path for path in found if path.suffix != ".txt" or any(re.search(n, path.stem, re.I) for n in names)]


def told_by(file: DataFile) -> list[Entry]:
    return [entry for entry in ENTRIES if any(form.is_told(file) for form in entry.forms)]


def _entry_of(file: DataFile, entry: Entry | None) -> Entry:
    possible = [known for known in ENTRIES if any(form.is_possible(file) for form in known.forms)]
    if entry is not None and entry not in possible:
        others = f"; it looks like {possible[0].name}" if possible else ""
        raise QueryFileError(f"{file.path}: {file.sketch()}, which is no form of {entry.name}{others}")
    told = told_by(file)
    if entry is None and len(told) != 1:
        raise QueryFileError(f"{file.path}: {_unknown(file, possible)}")
    return entry or told[0]


def _unknown(file: DataFile, possible: Sequence[Entry]) -> str:
    if possible:
        return f"{file.sketch()}; it may be {_names(possible)}, which neither contents nor file name tell, so name it"
    if file.keys & {"final_label", "action"}:
        return f"{file.sketch()}: labelled answers, which `read_responses` reads; expected requests"
    known = _names(ENTRIES[:-1])
    return f"{file.sketch()}, which is no known form of {known}; a table of your own needs text and harmful"


def _seen(files: Sequence[DataFile], owners: dict[str, Entry]) -> str:
    if owners:
        return f"holds files of {', '.join(owners)}; name one, or give the path of a file"
    seen = "; ".join(f"{file.path.name}: {file.sketch()}" for file in files[:5]) or f"no {', '.join(SUFFIXES)}"
    return f"no known benchmark among {len(files)} data files ({seen}); known are {_names(ENTRIES)}"


def _names(entries: Sequence[Entry]) -> str:
    return ", ".join(entry.name for entry in entries)
