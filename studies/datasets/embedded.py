"""Pictures inside data files: bytes in binary tables, base64 in text. They are decoded only when they are opened."""

import base64
import binascii
import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from interp.pictures import LazyPicture, PictureError, picture_from_bytes
from studies.datasets.rows import EmbeddedPicture, QueryFileError

PICTURE_COLUMNS = ("picture", "image", "pictures", "images", "img", "decoded_image")
"""Columns of text, in any case, that may hold base64."""
DATA_ADDRESS = re.compile(r"data:image/[\w.+-]+;base64,")
SHORTEST = 20
"""Fewer characters are base64 only if they are padded: they may as well be the name of a picture, or of another row."""
LONG = 64
"""Fewer characters with a slash may be a path."""
N_OPEN = 4
"""Files that are kept open at their last picture."""

RawRows = Callable[[Path, int], Iterator[tuple[int, Mapping[str, Any]]]]
"""Reads a file from a row, or from an earlier one: numbers of rows, and their cells as the file holds them."""


def is_picture_struct(value: Any) -> bool:
    """Return whether a cell is a picture as Hugging Face's libraries store it: `{"bytes", "path"}`."""
    return isinstance(value, dict) and "bytes" in value and set(value) <= {"bytes", "path"}


def is_base64(text: str) -> bool:
    """Return whether a text is base64, over lines or not, with or without the address of data in front."""
    if DATA_ADDRESS.match(text):
        return True
    text = "".join(text.split())
    if len(text) % 4 or not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", text):
        return False
    # Numbers and hexadecimal hashes are names; base64 of this length has letters of both cases.
    is_mixed = re.search(r"[a-z]", text) and re.search(r"[A-Z]", text)
    return text.endswith("=") or bool(is_mixed and len(text) >= SHORTEST and ("/" not in text or len(text) >= LONG))


def items_of(column: str, value: Any) -> list[Any]:
    """Return the pictures of a cell; empty if it holds none, which includes names of pictures."""
    if isinstance(value, bytes) or is_picture_struct(value):
        return [value]
    if isinstance(value, list) and value and all(map(is_picture_struct, value)):
        return value
    if column.lower() not in PICTURE_COLUMNS:
        return []
    if isinstance(value, list) and value and all(isinstance(item, str) and is_base64(item) for item in value):
        return value
    return _base64_items(value.strip()) if isinstance(value, str) else []


def _base64_items(text: str) -> list[str]:
    """Return the base64 of a cell; several pictures are a list, written as Python or JSON writes it."""
    if text.startswith("["):
        items = re.findall(r"""["']([^"']+)["']""", text)
        return items if items and all(map(is_base64, items)) else []
    return [text] if is_base64(text) else []


def extract(number: int, cells: dict[str, Any]) -> tuple[dict[str, Any], tuple[EmbeddedPicture, ...]]:
    """Replace the pictures of a row by their names.

    Returns:
        The cells, in which a picture is its published name or a hash of its contents; and the pictures.
    """
    found: list[EmbeddedPicture] = []
    for column, value in cells.items():
        pictures = enumerate(items_of(column, value))
        found += (_described(number, column, item, picture, cells) for item, picture in pictures)
    names: dict[str, list[str]] = {}
    for picture in found:
        names.setdefault(picture.column, []).append(picture.name)
    return cells | {column: own[0] if len(own) == 1 else own for column, own in names.items()}, tuple(found)


def with_shared(
    cells: dict[str, Any], pictures: tuple[EmbeddedPicture, ...], by_key: Mapping[str, EmbeddedPicture]
) -> tuple[dict[str, Any], tuple[EmbeddedPicture, ...]]:
    """Give a row the picture of an earlier one, if its own cell holds no more than the key of that row."""
    for column, value in cells.items():
        if not pictures and column.lower() in PICTURE_COLUMNS and str(value).strip() in by_key:
            shared = by_key[str(value).strip()]
            return cells | {column: shared.name}, (shared,)
    return cells, pictures


def _described(number: int, column: str, item: int, value: Any, cells: Mapping[str, Any]) -> EmbeddedPicture:
    content = value.get("bytes") if isinstance(value, dict) else value
    name = value.get("path") if isinstance(value, dict) else cells.get(f"{column}_path")
    content = content.encode() if isinstance(content, str) else content
    digest = hashlib.blake2b(content, digest_size=8).hexdigest() if content else ""
    return EmbeddedPicture(number, column, item, name if isinstance(name, str) and name else digest, digest)


def lazy_picture(path: Path, picture: EmbeddedPicture, raw_rows: RawRows) -> LazyPicture:
    """Return a picture that is read from its file each time it is opened."""
    return LazyPicture(embedded_picture, (raw_rows, str(path), picture.number, picture.column, picture.item))


def embedded_picture(raw_rows: RawRows, path: str, number: int, column: str, item: int) -> Image.Image:
    """Read a picture out of a data file.

    Args:
        raw_rows: reads the file.
        path: the file.
        number: number of the row.
        column: column of the picture.
        item: place in the cell.

    Raises:
        PictureError: the cell does not hold a picture that can be read.
    """
    value = items_of(column, _raw_cells(raw_rows, path, number)[column])[item]
    place = f"{path}, row {number}, column {column}"
    content = value.get("bytes") if isinstance(value, dict) else value
    try:
        if isinstance(content, str):
            content = base64.b64decode("".join(DATA_ADDRESS.sub("", content, count=1).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"{place}: not base64 ({error})") from None
    return picture_from_bytes(content, place)


class _Cursor:
    """A file that is read row after row; pictures are mostly opened in this order."""

    def __init__(self, raw_rows: RawRows, path: str):
        self._raw_rows, self._path = raw_rows, Path(path)
        self._rows: Iterator[tuple[int, Mapping[str, Any]]] = iter(())
        self._number, self._cells = -1, {}

    def cells(self, number: int) -> Mapping[str, Any]:
        """Return the cells of a row; an earlier row than the last one starts over."""
        if number == self._number:
            return self._cells
        if number < self._number or self._number < 0:
            self._rows = self._raw_rows(self._path, number)
        self._number, rows = -1, self._rows
        for place, cells in rows:
            if place == number:
                self._number, self._cells = place, cells
                return cells
        raise QueryFileError(f"{self._path}: row {number} is gone; expected the file as it was when it was read")


_CURSORS: OrderedDict[tuple[str, int], _Cursor] = OrderedDict()
_LOCK = threading.Lock()


def _raw_cells(raw_rows: RawRows, path: str, number: int) -> Mapping[str, Any]:
    with _LOCK:
        # A file that has been written again is opened again.
        version = path, Path(path).stat().st_mtime_ns
        cursor = _CURSORS.pop(version, None) or _Cursor(raw_rows, path)
        _CURSORS[version] = cursor
        if len(_CURSORS) > N_OPEN:
            _CURSORS.popitem(last=False)
        return cursor.cells(number)
