"""Delimited text -> rows: the delimiter is found from the header and the rows below it."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from operator import itemgetter
from pathlib import Path

from studies.datasets.opening import open_text
from studies.datasets.rows import VALUE, QueryFileError, Row

DELIMITERS = (",", "\t", ";", "|")
N_SAMPLED = 20
"""Rows below the header that a delimiter is tried on."""
NO_DELIMITER = "\x1f"
"""Delimiter of a table of one column, whose cells may hold every character that people type."""
LONGEST_NAME = 60
IDENTIFIER = r"[\w.:/#-]*"
# By default Python's reader rejects cells above 131,072 characters, which documents and pictures in text exceed.
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Layout:
    """How a delimited file is divided into cells."""

    delimiter: str
    """Empty for plain lines without quotes."""
    header: tuple[str, ...]
    """Names of the columns; empty for a list without a header."""

    @property
    def is_list(self) -> bool:
        """True if every row is one text."""
        return len(self.header) <= 1


def layout_of(path: Path) -> Layout:
    """Find the delimiter and the header of a file.

    A delimiter must divide the first line into names of columns; that into which most rows fall evenly is taken. A file
    without one is a list of texts, which may have a heading and quotes.

    Raises:
        QueryFileError: the header names a column twice.
    """
    divisions = [_division(path, delimiter) for delimiter in DELIMITERS]
    possible = [(share, header, delimiter) for share, header, delimiter in divisions if _is_header(header, share)]
    if not possible:
        return _list_layout(path)
    _, header, delimiter = max(possible, key=itemgetter(0))
    if len(set(header)) < len(header):
        raise QueryFileError(f"{path}: line 1 names a column twice: {', '.join(header)}")
    return Layout(delimiter, tuple(header))


def _division(path: Path, delimiter: str) -> tuple[float, list[str], str]:
    """Return the share of sampled rows with as many cells as the header, the header, and the delimiter."""
    n_even = n_rows = 0
    header: list[str] = []
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            for cells in islice(reader, N_SAMPLED):
                n_rows, n_even = n_rows + bool(cells), n_even + (len(cells) == len(header))
        except csv.Error:
            # A damaged or truncated row is named with its line when the file is read.
            n_rows += 1
    return n_even / max(n_rows, 1), header, delimiter


def _is_header(cells: list[str], share: float) -> bool:
    """Return whether cells are names of columns, rather than parts of a sentence."""
    if len(cells) < 2 or not any(cells):
        return False
    if all(re.fullmatch(IDENTIFIER, cell) for cell in cells):
        return True
    are_words = all(re.fullmatch(IDENTIFIER, cell.strip()) for cell in cells)
    are_names = all(
        cell == cell.strip() and len(cell) <= LONGEST_NAME and cell[-1:] not in (".", "?", "!") for cell in cells
    )
    return share > 0 and (are_words or are_names)


def _list_layout(path: Path) -> Layout:
    """Return the layout of a list of texts: quoted as in CSV if that works for the whole file, else plain lines."""
    try:
        with open_text(path) as file:
            rows = (cells[0] for cells in csv.reader(file, delimiter=NO_DELIMITER, strict=True) if cells)
            first = next(rows, "")
            is_prose = any(" " in text.strip() for text in rows)
    except csv.Error:
        return Layout("", ())
    is_heading = is_prose and re.fullmatch(r"[A-Za-z]\w*", first.strip())
    return Layout(NO_DELIMITER, (first.strip(),) if is_heading else ())


def delimited_rows(path: Path, layout: Layout) -> Iterator[Row]:
    """Yield the rows below the header; a cell may span lines.

    Raises:
        QueryFileError: a row has fewer or more cells than the header, or the file is not CSV, or truncated.
    """
    with open_text(path) as file:
        if not layout.delimiter:
            yield from line_rows(path, file)
            return
        reader = csv.reader(file, delimiter=layout.delimiter, strict=True)
        try:
            if layout.header:
                next(reader)
            line = reader.line_num + 1
            for cells in reader:
                if cells and (not layout.is_list or cells[0].strip()):
                    yield _row(path, line, layout, cells)
                line = reader.line_num + 1
        except csv.Error as error:
            raise QueryFileError(f"{path}: line {reader.line_num}: not a CSV file, or truncated ({error})") from None


def _row(path: Path, line: int, layout: Layout, cells: list[str]) -> Row:
    if layout.is_list:
        return Row(path, f"line {line}", {VALUE: cells[0]})
    if len(cells) != len(layout.header):
        raise QueryFileError(
            f"{path}: line {line} has {len(cells)} cells, the header {len(layout.header)}; a cell with commas or line "
            "ends must be quoted, and a truncated file must be downloaded again"
        )
    return Row(path, f"line {line}", dict(zip(layout.header, cells, strict=True)))


def line_rows(path: Path, file: TextIOWrapper) -> Iterator[Row]:
    """Yield the lines that are not blank, without their line ends, each as a row of one text."""
    for number, line in numbered_lines(file):
        yield Row(path, f"line {number}", {VALUE: line})


def numbered_lines(file: TextIOWrapper) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, and their numbers; old line ends are accepted too."""
    number = 0
    for physical in file:
        # A file opened with its line ends as they are is divided at line feeds, carriage returns, and pairs of them;
        # never at U+2028, which JSON strings may hold.
        number += 1
        line = physical.rstrip("\r\n")
        if line.strip():
            yield number, line
