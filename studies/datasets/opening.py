"""Opens data files: compressed or not, in UTF-8; files that only stand for the data are named as such."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from studies.datasets.rows import QueryFileError

BINARY = (".parquet", ".arrow", ".xlsx")
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", *BINARY)
"""Suffixes of data files; each may be followed by `.gz`, except those of binary tables."""
COMPRESSED = ".gz"
N_FIRST_BYTES = 512
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def suffix_of(path: Path) -> str:
    """Return the suffix of a file in lower case, that of the contents if it is compressed."""
    own = path.suffix.lower()
    return Path(path.stem).suffix.lower() if own == COMPRESSED else own


def stem_of(path: Path) -> str:
    """Return the name of a file or folder without suffixes, `.gz` included."""
    if path.is_dir():
        return path.name
    return Path(path.stem).stem if path.suffix.lower() == COMPRESSED else path.stem


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of opening and decoding a file into errors that name it.

    Raises:
        QueryFileError: the file can't be opened, decompressed or decoded.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise QueryFileError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (EOFError, zlib.error):
        raise QueryFileError(f"{path}: damaged, or truncated; compress or download it again") from None
    except OSError as error:
        raise QueryFileError(f"{path}: can't be read ({error.strerror or error})") from None


def open_text(path: Path) -> TextIOWrapper:
    """Open a text file; a byte order mark is accepted, and line ends, which may be part of a cell, are kept."""
    opened: Any = gzip.open if path.suffix.lower() == COMPRESSED else open
    return opened(path, "rt", encoding="utf-8-sig", newline="")


def check_is_data(path: Path) -> None:
    """Check that a file is not a pointer to the data, or a web page about it.

    Raises:
        QueryFileError: it is.
    """
    start = first_bytes(path)
    reason = pointer_in(start)
    if reason is None and start.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype html", b"<html")):
        reason = "a web page, not the data; download the raw file"
    if reason:
        raise QueryFileError(f"{path}: {reason}")


def pointer_in(start: bytes) -> str | None:
    """Return what to do about the first bytes of a file, if it is a pointer to a file that was not downloaded."""
    if start.startswith(LFS_POINTER):
        return "a Git LFS pointer, not the data; get the data with `git lfs pull`"
    if start.startswith((b"/annex/objects/", b"../.git/annex/objects/", b".git/annex/objects/")):
        return "a git-annex pointer, not the data; get the data with `git annex get`"
    return None


def first_bytes(path: Path) -> bytes:
    """Return the first bytes of a file, decompressed if it is."""
    opened: Any = gzip.open if path.suffix.lower() == COMPRESSED else open
    file: IO[bytes]
    with reading(path), opened(path, "rb") as file:
        return file.read(N_FIRST_BYTES)
