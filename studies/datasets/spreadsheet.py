"""Excel workbooks (`.xlsx`) -> the rows of their first sheet; openpyxl is imported only for these."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError
from zipfile import BadZipFile

from studies.datasets.rows import QueryFileError, Row

SUFFIX = ".xlsx"


def sheet_header(path: Path) -> tuple[str, ...]:
    """Return the names of the columns, which are in the first row.

    Raises:
        QueryFileError: openpyxl is not installed, the file is not a workbook, or a column is named twice.
    """
    header = tuple(map(_text, next(_cells(path), ())))
    # Columns without a name at the end are empty ones that were once used.
    while header and not header[-1]:
        header = header[:-1]
    if len(set(header)) < len(header):
        raise QueryFileError(f"{path}: row 1 names a column twice: {', '.join(header)}")
    return header


def sheet_rows(path: Path, header: Sequence[str]) -> Iterator[Row]:
    """Yield the rows below the header that are not empty; cells are texts, as in CSV.

    Raises:
        QueryFileError: see `sheet_header`.
    """
    for number, values in enumerate(islice(_cells(path), 1, None), 2):
        texts = [_text(value) for value in values[: len(header)]]
        if any(texts):
            texts += [""] * (len(header) - len(texts))
            yield Row(path, f"row {number}", dict(zip(header, texts, strict=True)))


def _cells(path: Path) -> Iterator[tuple[Any, ...]]:
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise QueryFileError(
            f"{path}: workbooks are read by openpyxl, which is not installed: pip install 'vlm-guard[xlsx]', or save "
            "the sheet as CSV"
        ) from None
    try:
        with closing(load_workbook(path, read_only=True, data_only=True)) as book:
            yield from book.worksheets[0].iter_rows(values_only=True)
    except (BadZipFile, InvalidFileException, ParseError, KeyError, IndexError, ValueError) as error:
        raise QueryFileError(f"{path}: damaged, or not a workbook ({error})") from None


def _text(value: Any) -> str:
    """Return a cell as it would be in CSV; workbooks hold whole numbers as 3.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)
