"""Paths of the pictures that a data file names: never outside the data folder."""

from collections.abc import Sequence
from pathlib import Path


def picture_within(folder: Path, name: str) -> Path:
    """Return the path of a picture inside a folder, whether or not the picture is there. Nothing is opened.

    Raises:
        ValueError: the name leads outside the folder: it is absolute, has `..`, or goes through a link.
    """
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or ":" in parts[0] or ".." in parts or "\0" in name:
        raise ValueError(f"{name!r} leads outside the data folder; expected a path within it, relative to it")
    path = (folder / Path(*parts)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} is a link that leads outside the data folder; copy the picture into the folder")
    return path


def find_picture(roots: Sequence[Path], name: str) -> Path | None:
    """Return the picture in the first folder that has it; None if none has.

    Raises:
        ValueError: the name leads outside one of the folders.
    """
    paths = [picture_within(root, name) for root in roots]
    return next((path for path in paths if path.is_file()), None)
