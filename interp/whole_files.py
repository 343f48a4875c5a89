"""Files that exist whole or not at all: written under another name, and put into place in one step."""

import errno
import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where files of killed writers stay
    fcntl = None

__all__ = [
    "WrittenByAnotherError",
    "hash_of",
    "only_writer",
    "replaced",
    "write_whole",
    "written_by_one",
]


class WrittenByAnotherError(RuntimeError):
    """Another process writes what this one wants to write."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, and its folder if there is none; a process that is killed meanwhile leaves the old file alone."""
    with replaced(path) as new:
        new.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield another name in the same folder, whose file takes the place of `path` when the block ends well.

    What killed writers of the same file have left is removed; other processes may write it at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for unfinished in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        _remove_unless_written(unfinished)
    new, descriptor = _reserved(path)
    try:
        yield new
        os.replace(new, path)
    finally:
        if descriptor is not None:
            os.close(descriptor)
        new.unlink(missing_ok=True)


def _reserved(path: Path) -> tuple[Path, int | None]:
    """Create a file under another name, locked for as long as its descriptor is open: so others see that it is used."""
    while True:
        new = path.with_name(f".{path.name}.{os.urandom(4).hex()}.new")
        if fcntl is None:
            return new, None
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Before it was locked, another process may have removed it.
        if new.exists():
            return new, descriptor
        os.close(descriptor)


def _remove_unless_written(path: Path) -> None:
    """Remove an unfinished file whose writer is dead."""
    if fcntl is None:
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # it has just been finished or removed
    # An error: it is being written, or the file system has no locks.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    os.close(descriptor)


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold a lock file, which is gone after the block; nothing waits for it.

    Raises:
        WrittenByAnotherError: another process holds it.
    """
    descriptor = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    while True:
        if fcntl is None:
            return None
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise WrittenByAnotherError(f"another process holds {path}") from None
        except OSError:
            return descriptor  # a file system without locks
        # The one that held it before may have removed the file after it was opened here.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)


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
