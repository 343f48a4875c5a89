"""Data files -> rows that know their place in the file, read again each time they are needed.

Kinds of file: delimited text (`delimited.py`), JSON (`json_rows.py`), binary tables (`arrow_rows.py`) and workbooks
(`spreadsheet.py`). Pictures in cells are replaced by their names, and can be opened (`embedded.py`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from interp.pictures import LazyPicture
from studies.datasets.arrow_rows import arrow_header, arrow_length, is_saved_dataset, raw_arrow_rows
from studies.datasets.delimited import Layout, delimited_rows, layout_of
from studies.datasets.embedded import extract, lazy_picture, with_shared
from studies.datasets.json_rows import LINES, LIST, OBJECT, json_kind, json_rows
from studies.datasets.opening import BINARY, COMPRESSED, SUFFIXES, check_is_data, reading, stem_of, suffix_of
from studies.datasets.rows import VALUE, EmbeddedPicture, QueryFileError, Row
from studies.datasets.spreadsheet import SUFFIX, sheet_header, sheet_rows

__all__ = [
    "ARROW",
    "CSV",
    "LINES",
    "LIST",
    "OBJECT",
    "SUFFIXES",
    "TEXT",
    "VALUE",
    "DataFile",
    "Row",
    "Rows",
    "read_file",
]

CSV, TEXT, ARROW, SHEET = "CSV", "plain lines", "binary table", "workbook"
"""Kinds of file, with those of JSON. The rows of an object are its values; its keys are their published ids."""
KEYS = ("key", "pid", "id", "question_id", "index")
"""Columns that hold the published id of a row, if the file is not an object."""


class Rows:
    """The rows of a file. Each pass reads the file again, so that no more than a few rows are in memory."""

    def __init__(self, read: Callable[[], Iterator[Row]], n: int | None = None):
        self._read = read
        self.last: Row | None = None
        """The row that was read last: in a loop over the rows, the current one."""
        # Binary tables know their number of rows. Other files are read once, so that all of them is checked at once.
        rows = read()
        self.first = self.last = next(rows, None)
        self._n = n if n is not None else (self.first is not None) + sum(1 for _ in rows)

    def __iter__(self) -> Iterator[Row]:
        for row in self._read():
            self.last = row
            yield row

    def __len__(self) -> int:
        return self._n


@dataclass(frozen=True)
class DataFile:
    """A file that has been read once; nothing is assumed about its meaning."""

    path: Path
    """The file, or the folder of a saved dataset."""
    kind: str
    rows: Rows
    keys: frozenset[str]
    """Header of a table; for JSON the keys of the first row."""
    heading: str = ""
    """Heading of a list of texts, which names its one column."""

    @property
    def all_keys(self) -> frozenset[str]:
        """Keys of any row: those of JSON may lack what is optional, in the first row as in others."""
        return (
            self.keys if self.kind not in (LINES, LIST, OBJECT) else self.keys.union(*(row.cells for row in self.rows))
        )

    @property
    def stem(self) -> str:
        """Name of the file without suffixes."""
        return stem_of(self.path)

    def summary(self) -> str:
        """Describe the contents for error messages."""
        keys = ", ".join(repr(key) for key in sorted(self.keys)) if self.keys - {VALUE} else "bare values"
        return f"{self.kind}, {len(self.rows)} rows with {keys}"

    def picture(self, picture: EmbeddedPicture) -> LazyPicture:
        """Return a picture inside the file, which is read when it is opened."""
        raw_rows = raw_arrow_rows if self.kind == ARROW else _raw_text_rows
        return lazy_picture(self.path, picture, raw_rows)


def read_file(path: str | Path) -> DataFile:
    """Read a file once, to check all of it; a byte order mark and any mixture of line ends are accepted.

    Raises:
        QueryFileError: there is no such file, or it is a pointer to one, not UTF-8, empty, truncated, or not a table;
            the message says in which line.
    """
    path = Path(path)
    if not path.exists():
        raise QueryFileError(f"data file or folder {str(path)!r} does not exist")
    if not is_saved_dataset(path):
        _check_suffix(path)
        check_is_data(path)
    with reading(path):
        kind, header, read = _opened(path)
        rows = Rows(
            partial(_with_pictures, read, suffix_of(path) == ".tsv"), arrow_length(path) if kind == ARROW else None
        )
    if rows.first is None:
        raise QueryFileError(f"{path}: no rows; expected at least one")
    keys = frozenset(rows.first.cells) if header is None else frozenset(header)
    heading = header[0] if kind == TEXT and header else ""
    return DataFile(path, kind, rows, frozenset({VALUE}) if kind == TEXT else keys, heading)


def _check_suffix(path: Path) -> None:
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise QueryFileError(f"{path}: {suffix or 'no suffix'}; expected one of {', '.join(SUFFIXES)}")
    if suffix in BINARY and path.suffix.lower() == COMPRESSED:
        raise QueryFileError(f"{path}: a compressed binary table; decompress it first (`gunzip {path.name}`)")


def _opened(path: Path) -> tuple[str, tuple[str, ...] | None, Callable[[], Iterator[Row]]]:
    """Return the kind of a file, its header if it has one, and what reads its rows."""
    suffix = suffix_of(path)
    if path.is_dir() or suffix in (".parquet", ".arrow"):
        return ARROW, tuple(arrow_header(path)), partial(_arrow_rows, path)
    if suffix == SUFFIX:
        header = sheet_header(path)
        return SHEET, header, partial(sheet_rows, path, header)
    if suffix in (".csv", ".tsv"):
        layout = layout_of(path)
        return TEXT if layout.is_list else CSV, layout.header, partial(delimited_rows, path, layout)
    if suffix == ".txt":
        return TEXT, (), partial(delimited_rows, path, Layout("", ()))
    kind = json_kind(path)
    return kind, None, partial(json_rows, path, kind)


def _arrow_rows(path: Path) -> Iterator[Row]:
    return (Row(path, f"row {number}", dict(cells)) for number, cells in raw_arrow_rows(path))


def _raw_text_rows(path: Path, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the numbers and cells of the rows of a text file, always from the first one."""
    _, _, read = _opened(path)
    return ((number, row.cells) for number, row in enumerate(read()))


def _with_pictures(read: Callable[[], Iterator[Row]], is_tabbed: bool) -> Iterator[Row]:
    """Yield rows with their published ids as keys, and names in place of pictures."""
    by_key: dict[str, EmbeddedPicture] = {}
    for number, row in enumerate(read()):
        key = row.key or next((str(row.cells[name]) for name in KEYS if row.cells.get(name) not in (None, "")), "")
        cells, pictures = extract(number, row.cells)
        if is_tabbed:
            # VLMEvalKit writes a picture once, and in further rows about it the index of that row.
            cells, pictures = with_shared(cells, pictures, by_key)
            if pictures:
                by_key[key] = pictures[0]
        yield replace(row, cells=cells, key=key, pictures=pictures) if pictures or key != row.key else row
