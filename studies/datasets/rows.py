"""One row of a data file, which knows its place in the file, and the pictures inside it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VALUE = ""
"""Key of a row that is a bare value; also the name of the first column of JailbreakBench's CSV."""


class QueryFileError(ValueError):
    """A data file can't be read; the message says which line and column."""


@dataclass(frozen=True, slots=True)
class EmbeddedPicture:
    """A picture inside a data file: where it is, and what it is called."""

    number: int
    """Number of its row in the file, from 0."""
    column: str
    item: int
    """Place in the cell, which may hold a list."""
    name: str
    """Published name if the file has one, else a hash of the contents."""
    digest: str
    """Hash of the contents; empty if the cell names a picture and does not hold it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its cells, and its place in the file."""

    path: Path
    where: str
    """Place in the file: `line 3`, `entry 4`, `key '17'`."""
    cells: dict[str, Any]
    key: str = ""
    """Key of the row: of the object that it is in, or its published id."""
    pictures: tuple[EmbeddedPicture, ...] = ()
    """Pictures inside the row; its cells hold their names instead."""

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
        """Return an id, which is a whole number or a text, as text; tables with gaps hold whole numbers as 3.0.

        Raises:
            QueryFileError: the cell is missing, empty, or neither.
        """
        value = self.get(key)
        is_whole = type(value) is int or (type(value) is float and value.is_integer())
        return str(int(value)) if is_whole else self.text(key)

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
        """Return a text that must be one of several; numbers and true/false count as their text.

        Raises:
            QueryFileError: it is not.
        """
        value = self.get(key)
        value = str(value) if isinstance(value, bool | int) else self.text(key)
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
