"""A file or folder of a published benchmark -> its records."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from interp.pictures import LazyPicture, Picture, PictureError, open_picture, read_picture
from studies.datasets.files import DataFile
from studies.datasets.finding import find
from studies.datasets.leakage import normal
from studies.datasets.places import find_picture
from studies.datasets.record import DECIDES, Record, SkippedRow, Source
from studies.datasets.registry import Entry, entry_named
from studies.datasets.table import QueryFileError


@dataclass(frozen=True)
class Benchmark:
    """What was read, and what was odd about it."""

    source: Source
    records: tuple[Record, ...]
    files: tuple[Path, ...]
    aside: tuple[Path, ...] = ()
    """Files in the same folder that were not read: of the same benchmark, or unreadable."""
    unread: tuple[SkippedRow, ...] = ()
    """Those that can't be read, and why."""
    left_out: tuple[SkippedRow, ...] = ()
    """Rows that are no records, and why."""
    repeated_ids: tuple[str, ...] = ()
    """Ids that stood there more than once; from the second on they were numbered."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Pictures that are not there, by name, stand-ins included; of one name in two folders, both."""
        absent = (record for record in self.records if record.is_missing_picture or record.is_stand_in)
        return tuple({record.picture_place: record.picture_path for record in absent}.values())

    @property
    def not_drawn(self) -> tuple[SkippedRow, ...]:
        """Rows without their picture that none is drawn for, whatever was asked, and why."""
        absent = (record for record in self.records if record.is_missing_picture and record.needs_picture)
        return tuple(SkippedRow(record.id, DECIDES) for record in absent)

    @property
    def n_repeated(self) -> int:
        """Records that say again, up to case, punctuation and spaces, what one before them says."""
        same = ((normal(r.query.text), normal(r.said), r.modality, r.picture_path) for r in self.records)
        return len(self.records) - len(set(same))


def read_benchmark(
    path: str | Path, name: str | None = None, pictures: str | Path | None = None, stand_in: bool = False
) -> Benchmark:
    """Reads a benchmark as its authors publish it.

    Args:
        path: of a file, or of a folder that holds the files of one benchmark.
        name: which benchmark it is, in any case; by default it is recognised.
        pictures: folder of its pictures; by default where its authors put them, seen from the file.
        stand_in: whether a picture is drawn in place of each that is missing, and its record marked so; rows in which
            the picture decides what is right stay without.

    Raises:
        QueryFileError: it is not known, not what `name` says, or can't be read; or a picture's path leads outside
            the folder of pictures, which is found out before any picture is opened; or one folder of pictures is
            given to files that name the same pictures and have folders of their own.
        ValueError: no benchmark is called so.
    """
    entry, chosen, aside, unread = find(Path(path), entry_named(name) if name else None)
    records, left_out, owners = [], [], {}
    for file in chosen:
        roots = _roots(entry, file, pictures)
        for part in entry.read(file):
            if isinstance(part, SkippedRow):
                left_out.append(replace(part, where=f"{file.path.name}: {part.where}"))
            else:
                records.append(_with_picture(file, roots, part))
                if pictures is not None and part.picture_path:
                    _check_owner(owners.setdefault(part.picture_path, file), file, part.picture_path)
    records = _decided_by_pictures(records)
    if stand_in:
        records = [_drawn(entry, record) for record in records]
    records, repeated = _told_apart(entry, chosen, records)
    source = records[0].source if records else entry.source
    not_read = (*_paths(aside), *(Path(part.where) for part in unread))
    return Benchmark(source, records, _paths(chosen), not_read, tuple(unread), tuple(left_out), repeated)


def _paths(files: Sequence[DataFile]) -> tuple[Path, ...]:
    return tuple(file.path for file in files)


def _roots(entry: Entry, file: DataFile, pictures: str | Path | None) -> list[Path]:
    if pictures is None:
        try:
            return entry.roots(file.path)
        except ValueError as error:
            raise QueryFileError(f"{file.path}: {error}; give the folder of pictures itself") from None
    if not Path(pictures).is_dir():
        raise QueryFileError(f"folder of pictures {str(pictures)!r} does not exist")
    inside = [folder.format(stem=file.path.stem) for folder in entry.folders if ".." not in folder]
    return [Path(pictures), *(Path(pictures) / folder for folder in inside)]


def _check_owner(first: DataFile, file: DataFile, name: str) -> None:
    if first.path.parent != file.path.parent:
        raise QueryFileError(
            f"picture {name!r} is named by {first.path} and by {file.path}, and is not the same one; expected each "
            "set's pictures beside its file, or one file at a time with its folder of pictures"
        )


def _with_picture(file: DataFile, roots: list[Path], record: Record) -> Record:
    if not record.picture_path:
        return record
    try:
        path = find_picture(roots, record.picture_path)
    except ValueError as error:
        raise QueryFileError(f"{file.path}: row {record.id}: picture {error}") from None
    if path is not None:
        return replace(record, picture=LazyPicture(read_picture, (str(path),)), picture_place=str(path))
    return replace(record, picture_place=str(roots[0] / record.picture_path))


def _decided_by_pictures(records: Sequence[Record]) -> list[Record]:
    """Marks harmful rows whose harmless partner says the same words, and that partner; or is not there to tell."""
    said = defaultdict(set)
    for record in records:
        said[record.query.pair, record.query.harmful].add(normal(record.query.text))
    return [replace(r, needs_picture=True) if r.picture_path and _is_decided(r, said) else r for r in records]


def _is_decided(record: Record, said: Mapping[tuple[str | None, bool], set[str]]) -> bool:
    query = record.query
    if record.needs_picture or query.pair is None:
        return record.needs_picture
    partners = said.get((query.pair, not query.harmful))
    return query.harmful if partners is None else normal(query.text) in partners


def _drawn(entry: Entry, record: Record) -> Record:
    if record.needs_picture or not record.is_missing_picture:
        return record
    return replace(record, picture=entry.stand_in(record), is_stand_in=True)


def damaged(benchmark: Benchmark) -> tuple[str, ...]:
    """Where pictures lie that are there and can't be read; reads every one of them once."""
    shown = {r.picture_place: r.picture for r in benchmark.records if r.picture is not None and not r.is_stand_in}
    return tuple(place for place, picture in shown.items() if not _is_readable(picture))


def _is_readable(picture: Picture) -> bool:
    try:
        open_picture(picture)
    except PictureError:
        return False
    return True


def without(benchmark: Benchmark, places: Collection[str]) -> Benchmark:
    """The same where the pictures in some places, as `damaged` names them, count as missing."""
    return replace(
        benchmark,
        records=tuple(replace(r, picture=None) if r.picture_place in places else r for r in benchmark.records),
    )


def _told_apart(
    entry: Entry, files: Sequence[DataFile], records: Sequence[Record]
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """The records with ids of their own, and the ids that stood there twice."""
    counts, seen, apart = Counter(record.id for record in records), Counter(), []
    repeated = tuple(id for id, n in counts.items() if n > 1)
    if repeated and entry.joins_by_id:
        raise QueryFileError(
            f"{', '.join(map(str, _paths(files)))}: id {repeated[0]!r} stands there {counts[repeated[0]]} times, and "
            f"{len(repeated)} ids do; expected each once, since pictures, partners and answers are found by it"
        )
    for record in records:
        seen[record.id] += 1
        apart.append(replace(record, id=f"{record.id}#{seen[record.id]}") if seen[record.id] > 1 else record)
    return tuple(apart), repeated
