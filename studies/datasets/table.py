"""The user's own CSV and JSONL files: `text,harmful[,category,pair,picture]`."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from interp import Query
from interp.pictures import PictureError, read_picture
from studies.datasets.picture_paths import picture_within

TRUE, FALSE = ("true", "1", "yes", "harmful"), ("false", "0", "no", "harmless")
COLUMNS = ("text", "harmful", "category", "pair", "picture")
# By default Python's reader rejects cells above 131,072 characters, which a request with a document may have.
csv.field_size_limit(2**31 - 1)


class QueryFileError(ValueError):
    """A data file can't be read; the message says which line and column."""


def read_queries(path: str | Path, check_pictures: bool = True) -> tuple[Query, ...]:
    """Read a CSV or JSONL file with `text,harmful[,category,pair,picture]`; other columns are ignored.

    Cells may span lines. `harmful` is true/false, 1/0, yes/no or harmful/harmless, in any case. `picture` is the path
    of a picture, relative to the file and within its folder, which modality `scene` shows next to the query.

    Args:
        path: the file; the suffix says which of the two it is.
        check_pictures: open every picture once, to find unreadable ones now rather than in the middle of a run.

    Raises:
        QueryFileError: there is no such file, it is not UTF-8, a column is missing, a text is empty, a label is
            invalid, or a picture can't be read or is outside the folder.
    """
    path = Path(path)
    rows = _json_rows if path.suffix.lower() == ".jsonl" else _csv_rows
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return tuple(_query(path, line, row, check_pictures) for line, row in rows(path, file))
    except FileNotFoundError:
        raise QueryFileError(
            f"query file {str(path)!r} does not exist; expected a CSV or JSONL with text,harmful"
        ) from None
    except UnicodeDecodeError as error:
        raise QueryFileError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise QueryFileError(f"{path}: can't be read ({error.strerror})") from None
    except csv.Error as error:
        raise QueryFileError(f"{path}: not a CSV file ({error})") from None


def _csv_rows(path: Path, file) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, strict=True)
    missing = [column for column in COLUMNS[:2] if column not in (reader.fieldnames or ())]
    if missing:
        raise QueryFileError(
            f"{path}: line 1 has no column {', '.join(missing)}; expected a header with {','.join(COLUMNS[:2])} "
            f"and perhaps {','.join(COLUMNS[2:])}, got {','.join(reader.fieldnames or ['nothing'])}"
        )
    first_line = reader.line_num + 1
    for row in reader:
        if None in row:
            raise QueryFileError(
                f"{path}: line {first_line} has more cells than the header; put text with commas in quotes"
            )
        yield first_line, row
        first_line = reader.line_num + 1


def _json_rows(path: Path, file) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file.read().split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise QueryFileError(f"{path}: line {number}: not JSON, or truncated ({error})") from None
        missing = [key for key in COLUMNS[:2] if not isinstance(row, dict) or key not in row]
        if missing:
            raise QueryFileError(f"{path}: line {number} has no {', '.join(missing)}; got {line.strip()[:80]}")
        _check_types(path, number, row)
        yield number, row


def _check_types(path: Path, line: int, row: dict[str, Any]) -> None:
    """Reject cells of other types: `str` would turn a number, an object or NaN into a request."""
    for column in COLUMNS:
        value = row.get(column)
        expected = (str, type(None)) if column in ("text", "picture") else (str, int, type(None))
        if not isinstance(value, expected):
            raise QueryFileError(f"{path}: line {line}, column {column}: got {value!r}, expected a text")
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise QueryFileError(
                f"{path}: line {line}, column {column}: half a surrogate pair in {value!a}; expected whole characters"
            )


def _query(path: Path, line: int, row: dict[str, Any], check_pictures: bool) -> Query:
    text, label, category, pair, picture = ("" if row.get(c) is None else str(row[c]).strip() for c in COLUMNS)
    if not text:
        raise QueryFileError(f"{path}: line {line}, column text: empty; every query needs a text")
    if label.lower() not in TRUE + FALSE:
        raise QueryFileError(f"{path}: line {line}, column harmful: got {row['harmful']!r}, expected true or false")
    picture_path = _picture(path, line, picture, check_pictures) if picture else None
    return Query(text, label.lower() in TRUE, category, pair or None, picture=picture_path)


def _picture(path: Path, line: int, name: str, check_pictures: bool) -> str:
    try:
        picture_within(path.parent, name)
        if check_pictures:
            read_picture(path.parent / name)
    except (PictureError, ValueError) as error:
        raise QueryFileError(f"{path}: line {line}, column picture: {str(error).splitlines()[0]}") from None
    return str(path.parent / name)


def write_queries(path: str | Path, queries: Sequence[Query]) -> None:
    """Write a CSV file that `read_queries` reads; pictures are left out, as they would be outside its folder."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS[:4])
        writer.writerows((q.text, str(q.harmful).lower(), q.category, q.pair or "") for q in queries)
