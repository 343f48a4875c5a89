"""A file or folder of a published benchmark -> its records."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from interp.pictures import LazyPicture, Picture, PictureError, open_picture, read_picture
from studies.datasets.columns import Columns
from studies.datasets.files import DataFile
from studies.datasets.finding import find_files
from studies.datasets.leakage import normal
from studies.datasets.picture_paths import find_picture
from studies.datasets.record import PICTURE_DECIDES, Record, SkippedRow, Source
from studies.datasets.registry import OWN, Entry, entry_named, own_table
from studies.datasets.rows import EmbeddedPicture, QueryFileError, Row


@dataclass(frozen=True)
class Benchmark:
    """The records of a benchmark, and what was unusual about its files."""

    source: Source
    records: tuple[Record, ...]
    files: tuple[Path, ...]
    unused_files: tuple[Path, ...] = ()
    """Files in the same folder that were not read: other files of the same benchmark, or unreadable ones."""
    unreadable: tuple[SkippedRow, ...] = ()
    """The unreadable files, and why."""
    skipped: tuple[SkippedRow, ...] = ()
    """Rows that are not records, and why."""
    repeated_ids: tuple[str, ...] = ()
    """Ids that occur more than once; all but the first occurrence were numbered."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Published paths of the missing pictures, those with stand-ins included, once for each file."""
        absent = (record for record in self.records if record.is_missing_picture or record.is_stand_in)
        return tuple({record.picture_file: record.picture_path for record in absent}.values())

    @property
    def not_drawn(self) -> tuple[SkippedRow, ...]:
        """Rows without a picture that can't have a stand-in, and why."""
        absent = (record for record in self.records if record.is_missing_picture and record.needs_picture)
        return tuple(SkippedRow(record.id, PICTURE_DECIDES) for record in absent)

    @property
    def n_repeated(self) -> int:
        """Number of records that repeat an earlier one up to case, punctuation and spaces."""
        # Two pictures of one name in two folders are two pictures. Hashes take less memory than texts.
        contents = (hash((normal(r.query.text), normal(r.said), r.modality, r.picture_file)) for r in self.records)
        return len(self.records) - len(set(contents))


def read_benchmark(
    path: str | Path,
    name: str | None = None,
    pictures: str | Path | None = None,
    stand_in: bool = False,
    columns: Columns | None = None,
) -> Benchmark:
    """Read a benchmark as its authors publish it.

    Args:
        path: a file, or a folder that holds the files of one benchmark.
        name: name of the benchmark, in any case; by default it is recognised.
        pictures: folder of its pictures; by default where its authors put them, seen from the file.
        stand_in: draw a picture in place of each missing one and mark its record, except for rows in which the picture
            decides what is right.
        columns: columns and labels of a table of your own, if it has others than `text` and `harmful`; files that are
            given the name of a benchmark are read as that.

    Raises:
        QueryFileError: the benchmark is unknown, is not `name`, or can't be read; or the path of a picture leads
            outside the folder of pictures, which is checked before any picture is opened; or one folder of pictures is
            given for files that name the same pictures and have folders of their own.
        ValueError: no benchmark has this name.
    """
    entry = entry_named(name) if name else None
    if columns and (entry is None or entry.name == OWN.name):
        entry = own_table(columns)
    entry, chosen, unused, unreadable = find_files(Path(path), entry)
    records, skipped = _records(entry, chosen, pictures)
    records = _decided_by_pictures(records)
    if stand_in:
        records = [_with_stand_in(entry, record) for record in records]
    records, repeated = _with_unique_ids(entry, chosen, records)
    source = records[0].source if records else entry.source
    unused_files = (*_paths(unused), *(Path(skip.where) for skip in unreadable))
    return Benchmark(source, records, _paths(chosen), unused_files, tuple(unreadable), tuple(skipped), repeated)


def _records(
    entry: Entry, files: Sequence[DataFile], pictures: str | Path | None
) -> tuple[list[Record], list[SkippedRow]]:
    """Read the rows of every file, and find their pictures."""
    records, skipped, owners = [], [], {}
    for file in files:
        roots = _picture_folders(entry, file, pictures)
        for row in entry.read(file):
            if isinstance(row, SkippedRow):
                skipped.append(replace(row, where=f"{file.path.name}: {row.where}"))
                continue
            records.append(_with_picture(file, roots, row, _embedded(file.rows.last, row)))
            if pictures is not None and row.picture_path:
                _check_owner(owners.setdefault(row.picture_path, file), file, row.picture_path)
    return records, skipped


def _paths(files: Sequence[DataFile]) -> tuple[Path, ...]:
    return tuple(file.path for file in files)


def _picture_folders(entry: Entry, file: DataFile, pictures: str | Path | None) -> list[Path]:
    if pictures is None:
        try:
            return entry.picture_folders(file.path)
        except ValueError as error:
            raise QueryFileError(f"{file.path}: {error}; give the folder of pictures itself") from None
    if not Path(pictures).is_dir():
        raise QueryFileError(f"folder of pictures {str(pictures)!r} does not exist")
    inside = [folder.format(stem=file.stem) for folder in entry.folders if ".." not in folder]
    return [Path(pictures), *(Path(pictures) / folder for folder in inside)]


def _check_owner(first: DataFile, file: DataFile, name: str) -> None:
    """Raise a QueryFileError if files in two folders name the same picture of the one given folder."""
    if first.path.parent != file.path.parent:
        raise QueryFileError(
            f"picture {name!r} is named by {first.path} and by {file.path}, and is not the same one; expected each "
            "set's pictures next to its file, or one file at a time with its folder of pictures"
        )


def _embedded(row: Row, record: Record) -> EmbeddedPicture | None:
    """Return the picture of a record that is inside its row: the one of its name, or the only one.

    Raises:
        QueryFileError: there are several, and none has its name.
    """
    if not record.picture_path or not row.pictures:
        return None
    named = [picture for picture in row.pictures if picture.name == record.picture_path] or [
        picture for picture in row.pictures if PurePath(picture.name).name == PurePath(record.picture_path).name
    ]
    if not named and len(row.pictures) > 1:
        names = ", ".join(picture.name for picture in row.pictures)
        raise row.error(f"{len(row.pictures)} pictures, {names}; expected one, or one called {record.picture_path}")
    return (named or row.pictures)[0]


def _with_picture(file: DataFile, roots: list[Path], record: Record, embedded: EmbeddedPicture | None) -> Record:
    if not record.picture_path:
        return record
    if embedded and embedded.digest:
        place = f"{file.path}#{record.picture_path}#{embedded.digest}"
        return replace(record, picture=file.picture(embedded), picture_file=place)
    try:
        path = find_picture(roots, record.picture_path)
    except ValueError as error:
        raise QueryFileError(f"{file.path}: row {record.id}: picture {error}") from None
    if path is not None:
        return replace(record, picture=LazyPicture(read_picture, (str(path),)), picture_file=str(path))
    if embedded:
        raise QueryFileError(
            f"{file.path}: row {record.id}, column {embedded.column}: a picture without bytes, and "
            f"{record.picture_path!r} is not next to the file; expected its bytes in the column, or the file"
        )
    return replace(record, picture_file=str(roots[0] / record.picture_path))


def _decided_by_pictures(records: Sequence[Record]) -> list[Record]:
    """Mark records of a pair with the same words on both sides, and harmful ones whose partner is not in the files."""
    texts = defaultdict(set)
    for record in (record for record in records if record.query.pair is not None):
        texts[record.query.pair, record.query.harmful].add(normal(record.query.text))
    return [replace(r, needs_picture=True) if r.picture_path and _is_decided(r, texts) else r for r in records]


def _is_decided(record: Record, texts: Mapping[tuple[str | None, bool], set[str]]) -> bool:
    query = record.query
    if record.needs_picture or query.pair is None:
        return record.needs_picture
    partners = texts.get((query.pair, not query.harmful))
    return query.harmful if partners is None else normal(query.text) in partners


def _with_stand_in(entry: Entry, record: Record) -> Record:
    if record.needs_picture or not record.is_missing_picture:
        return record
    return replace(record, picture=entry.stand_in(record), is_stand_in=True)


def unreadable_pictures(benchmark: Benchmark) -> tuple[str, ...]:
    """Return the files of pictures that are there but can't be read; opens every picture once."""
    pictures = {r.picture_file: r.picture for r in benchmark.records if r.picture is not None and not r.is_stand_in}
    return tuple(file for file, picture in pictures.items() if not _is_readable(picture))


def _is_readable(picture: Picture) -> bool:
    try:
        open_picture(picture)
    except PictureError:
        return False
    return True


def without_pictures(benchmark: Benchmark, files: Collection[str]) -> Benchmark:
    """Return the benchmark with some pictures, given by `picture_file`, counted as missing."""
    records = (replace(r, picture=None) if r.picture_file in files else r for r in benchmark.records)
    return replace(benchmark, records=tuple(records))


def _with_unique_ids(
    entry: Entry, files: Sequence[DataFile], records: Sequence[Record]
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Number repeated ids; return the records and the ids that were repeated.

    Raises:
        QueryFileError: an id is repeated in a benchmark whose ids join things.
    """
    counts, seen, unique = Counter(record.id for record in records), Counter(), []
    repeated = tuple(id for id, n in counts.items() if n > 1)
    if repeated and entry.needs_unique_ids:
        raise QueryFileError(
            f"{', '.join(map(str, _paths(files)))}: id {repeated[0]!r} occurs {counts[repeated[0]]} times, and "
            f"{len(repeated)} ids are repeated; expected each once: pictures, partners and answers are found by id"
        )
    for record in records:
        seen[record.id] += 1
        unique.append(replace(record, id=f"{record.id}#{seen[record.id]}") if seen[record.id] > 1 else record)
    return tuple(unique), repeated
