"""Files that exist whole or not at all: written under another name, and put into place in one step."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

__all__ = [
    "hash_of",
    "remove_unfinished",
    "replaced",
    "write_whole",
    "written_by_one",
]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, and its folder if there is none; a process that is killed meanwhile leaves the old file alone."""
    with replaced(path) as new:
        new.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield another name in the same folder, whose file takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.urandom(4).hex()}.new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove files of writers that were killed; call it where nobody else writes."""
    for path in folder.glob(".*.new"):
        path.unlink(missing_ok=True)


@contextmanager
def written_by_one(folder: Path) -> Iterator[None]:
    """Let one process at a time create or write a folder; others wait. The lock is a file beside it, `.<name>.lock`."""
    if folder.parent.exists() and not folder.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(folder.parent))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        yield


def hash_of(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hex."""
    return hashlib.sha256(content).hexdigest()
