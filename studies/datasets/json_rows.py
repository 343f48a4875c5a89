"""JSON -> rows: a list, an object of rows, or one value a line. Lists and lines are read row by row."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studies.datasets.delimited import numbered_lines
from studies.datasets.opening import open_text, suffix_of
from studies.datasets.rows import VALUE, QueryFileError, Row

LIST, OBJECT, LINES = "JSON list", "JSON object", "JSON lines"
N_CHARACTERS = 1 << 20
"""Characters of a list that are read at once."""
SPACE = re.compile(r"\s*")


def json_kind(path: Path) -> str:
    """Return the kind of a JSON file by its contents: lists and lines go by either suffix, objects by `.json`."""
    with open_text(path) as file:
        first = next((line.strip() for _, line in numbered_lines(file)), "")
        if first.startswith("["):
            return LIST
        if suffix_of(path) != ".json":
            return LINES
        has_more = next(numbered_lines(file), None) is not None
    return LINES if has_more and _is_complete(first) else OBJECT


def _is_complete(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def json_rows(path: Path, kind: str) -> Iterator[Row]:
    """Yield the rows of a JSON file of a known kind.

    Raises:
        QueryFileError: it is not JSON, or truncated; or an object repeats a key; the message says in which line.
    """
    for row in {LIST: _list_rows, OBJECT: _object_rows, LINES: _line_rows}[kind](path):
        row.check_characters()
        yield row


def _line_rows(path: Path) -> Iterator[Row]:
    with open_text(path) as file:
        for number, line in numbered_lines(file):
            yield Row(path, f"line {number}", _cells(_parse(path, line, number)))


def _object_rows(path: Path) -> Iterator[Row]:
    with open_text(path) as file:
        text = file.read()
    if not text.strip():
        return
    whole = _parse(path, text)
    if not isinstance(whole, dict):
        raise QueryFileError(f"{path}: got {type(whole).__name__}, expected a list or an object")
    yield from (Row(path, f"key {key!r}", _cells(value), key) for key, value in whole.items())


def _list_rows(path: Path) -> Iterator[Row]:
    """Yield the entries of a list, of which only a window is in memory."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    window, count, is_over = "", 0, False
    with open_text(path) as file:
        while not is_over:
            chunk = file.read(N_CHARACTERS)
            window, place, is_over = window + chunk, 0, not chunk
            while (entry := _entry(decoder, window, place, count)) is not None:
                value, place = entry
                yield Row(path, f"entry {count}", _cells(value))
                count += 1
            window = window[place:]
    # What is left is the end of the list. If it is not, the file read whole gives the line in which it goes wrong.
    if not re.fullmatch(r"\s*\[?\s*\]\s*" if count == 0 else r"\s*\]\s*", window):
        _raise_for(path)


def _entry(decoder: json.JSONDecoder, text: str, place: int, count: int) -> tuple[Any, int] | None:
    """Return the next entry and the place after it; None if more text is needed, or there is no other entry."""
    place = SPACE.match(text, place).end()
    if text[place : place + 1] != ("," if count else "["):
        return None
    try:
        value, end = decoder.raw_decode(text, SPACE.match(text, place + 1).end())
    except (ValueError, RecursionError):
        return None
    # At the end of the window a number may be cut; only what follows an entry shows that it is whole.
    return (value, end) if SPACE.match(text, end).end() < len(text) else None


def _raise_for(path: Path) -> None:
    """Raise the error of a list that can't be read."""
    with open_text(path) as file:
        _parse(path, file.read())
    raise QueryFileError(f"{path}: not a JSON list")


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
