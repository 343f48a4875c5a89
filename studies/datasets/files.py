"""Published files -> rows that know their place in the file: CSV, JSON, JSON lines, plain lines."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.datasets.table import QueryFileError

CSV, LIST, OBJECT, LINES, TEXT = "CSV", "JSON list", "JSON object", "JSON lines", "plain lines"
"""Kinds of file. The rows of an object are its values; pictures and answers are found by their keys."""
SUFFIXES = (".csv", ".json", ".jsonl", ".txt")
VALUE = ""
"""Key of a row that is a bare value; also the name of the first column of JailbreakBench's CSV."""


@dataclass(frozen=True)
class Row:
    """One row: its cells, and its place in the file."""

    path: Path
    where: str
    """Place in the file: `line 3`, `entry 4`, `key '17'`."""
    cells: dict[str, Any]
    key: str = ""
    """Key of the row, if the file is an object."""

    def error(self, message: str) -> QueryFileError:
        """Return an error that names file and place."""
        return QueryFileError(f"{self.path}: {self.where}: {message}")

    def get(self, key: str) -> Any:
        """Return a cell.

        Raises:
            QueryFileError: the row has no such key.
        """
        if key not in self.cells:
            raise self.error(f"no {key!r}; expected it in every row, got {', '.join(map(repr, self.cells))}")
        return self.cells[key]

    def text(self, key: str = VALUE) -> str:
        """Return a text, without surrounding white space.

        Raises:
            QueryFileError: the cell is missing, empty, or not a text.
        """
        value = self.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{key or 'the row'}: got {value!r}, expected a text that is not empty")
        return value.strip()

    def text_or_empty(self, key: str) -> str:
        """Return a text that may be missing, null or empty.

        Raises:
            QueryFileError: the cell is not a text.
        """
        return "" if self.cells.get(key) in (None, "") else self.text(key)

    def number_or_text(self, key: str) -> str:
        """Return an id, which is a whole number or a text, as text.

        Raises:
            QueryFileError: the cell is missing, empty, or neither.
        """
        value = self.get(key)
        return str(value) if type(value) is int else self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, each without surrounding white space.

        Raises:
            QueryFileError: the list is missing, empty, or holds anything else.
        """
        value = self.get(key)
        if not isinstance(value, list) or not value:
            raise self.error(f"{key or 'the row'}: got {value!r}, expected a list of texts")
        return tuple(
            Row(self.path, f"{self.where}, {key}", {str(i): part}).text(str(i)) for i, part in enumerate(value)
        )

    def one_of(self, key: str, allowed: tuple[str, ...]) -> str:
        """Return a text that must be one of several.

        Raises:
            QueryFileError: it is not.
        """
        value = self.text(key)
        if value not in allowed:
            raise self.error(f"{key}: got {value!r}, expected one of {', '.join(allowed)}")
        return value

    def nested(self, key: str) -> "Row":
        """Return the object under a key, as a row.

        Raises:
            QueryFileError: the cell is not an object.
        """
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.error(f"{key}: got {value!r}, expected an object")
        return Row(self.path, f"{self.where}, {key}", value)

    def extra(self, *keys: str) -> dict[str, str]:
        """Return the cells of some keys as text, without those that are missing or empty."""
        return {key: str(self.cells[key]) for key in keys if self.cells.get(key) not in (None, "")}

    def check_characters(self) -> None:
        """Check that the row can be written to a file.

        Raises:
            QueryFileError: it holds half a surrogate pair, which JSON can spell and no file can hold.
        """
        try:
            json.dumps([self.key, self.cells], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise self.error(f"{half!a} is half a surrogate pair; expected whole characters") from None


@dataclass(frozen=True)
class DataFile:
    """A file that has been read; nothing is assumed about its meaning."""

    path: Path
    kind: str
    rows: tuple[Row, ...]
    keys: frozenset[str]
    """Header of a CSV file; for other files the keys of the first row."""

    def summary(self) -> str:
        """Describe the contents for error messages."""
        keys = ", ".join(repr(key) for key in sorted(self.keys)) if self.keys - {VALUE} else "bare values"
        return f"{self.kind}, {len(self.rows)} rows with {keys}"


def read_file(path: str | Path) -> DataFile:
    """Read a file whole; a byte order mark and any mixture of line ends are accepted.

    Raises:
        QueryFileError: there is no such file, or it is not UTF-8, empty, truncated, or not a table; the message says
            in which line.
    """
    path = Path(path)
    if not path.exists():
        raise QueryFileError(f"data file or folder {str(path)!r} does not exist")
    readers = {".csv": _csv, ".json": _json, ".jsonl": _jsonl, ".txt": _lines}
    if path.suffix.lower() not in readers:
        raise QueryFileError(f"{path}: {path.suffix or 'no suffix'}; expected one of {', '.join(SUFFIXES)}")
    try:
        # Line ends are not translated: those within a cell are part of it.
        with path.open(encoding="utf-8-sig", newline="") as file:
            kind, rows, keys = readers[path.suffix.lower()](path, file)
    except UnicodeDecodeError as error:
        raise QueryFileError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise QueryFileError(f"{path}: can't be read ({error.strerror})") from None
    if not rows:
        raise QueryFileError(f"{path}: no rows; expected at least one")
    for row in rows:
        row.check_characters()
    return DataFile(path, kind, tuple(rows), frozenset(rows[0].cells) if keys is None else frozenset(keys))


def _csv(path: Path, file) -> tuple[str, list[Row], list[str] | None]:
    reader, rows = csv.reader(file, strict=True), []
    try:
        header = next(reader, [])
        if len(header) == 1:
            # A list of sentences with commas may call itself CSV, as one of FigStep's files does.
            file.seek(0)
            return _lines(path, file)
        if len(set(header)) < len(header):
            raise QueryFileError(f"{path}: line 1 names a column twice: {', '.join(header)}")
        line = reader.line_num + 1
        for cells in reader:
            if cells:
                rows.append(_csv_row(path, line, header, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise QueryFileError(f"{path}: line {reader.line_num}: not a CSV file, or truncated ({error})") from None
    return CSV, rows, header


def _csv_row(path: Path, line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        raise QueryFileError(
            f"{path}: line {line} has {len(cells)} cells, the header {len(header)}; a cell with commas or line ends "
            "must be quoted, and a truncated file must be downloaded again"
        )
    return Row(path, f"line {line}", dict(zip(header, cells, strict=True)))


def _json(path: Path, file) -> tuple[str, list[Row], None]:
    whole = _parse(path, file.read())
    if isinstance(whole, list):
        return LIST, [Row(path, f"entry {i}", _cells(value)) for i, value in enumerate(whole)], None
    if isinstance(whole, dict):
        return OBJECT, [Row(path, f"key {key!r}", _cells(value), key) for key, value in whole.items()], None
    raise QueryFileError(f"{path}: got {type(whole).__name__}, expected a list or an object")


def _jsonl(path: Path, file) -> tuple[str, list[Row], None]:
    rows = [Row(path, f"line {number}", _cells(_parse(path, line, number))) for number, line in _numbered(file.read())]
    return LINES, rows, None


def _lines(path: Path, file) -> tuple[str, list[Row], None]:
    return TEXT, [Row(path, f"line {number}", {VALUE: line}) for number, line in _numbered(file.read())], None


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    # Not str.splitlines: it would also split at U+2028, which JSON strings may hold.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _parse(path: Path, text: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise QueryFileError(f"{path}: line {line}: not JSON, or truncated ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        # A repeated key; a number that is too long, or brackets too deep, for Python.
        raise QueryFileError(f"{path}: from line {first_line}: {error}") from None


class _RepeatedKey(ValueError):
    """A key is repeated in one object; Python's reader would silently keep the last one."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKey(f"the key {repeated!r} is repeated in one object; rows are identified by it")
    return cells


def _cells(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {VALUE: value}
