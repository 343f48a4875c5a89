"""Checkpoints of long work: a run that was stopped resumes from what it has finished."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file


class Checkpoints:
    """A folder of finished pieces of work, one file each, for one computation only."""

    def __init__(self, folder: Path, inputs: Mapping):
        """Open or create the folder of this computation.

        Args:
            folder: parent of the folders of all computations.
            inputs: everything that the result depends on, as JSON can write it; its hash names the folder.
        """
        text = json.dumps(inputs, sort_keys=True, default=str)
        # Absolute: workers of a cluster run in other working directories.
        self.folder = folder.absolute() / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "about.json").write_text(text + "\n", encoding="utf-8")

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """Return a finished piece; None if it is missing or damaged and has to be computed."""
        try:
            return load_file(self._path(name))
        except (FileNotFoundError, SafetensorError):
            return None

    def has(self, name: str) -> bool:
        """Tell whether the file of a piece exists, without reading it."""
        return self._path(name).exists()

    def read_texts(self, name: str) -> list[str] | None:
        """Return finished texts; None if there are none yet."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_texts(self, name: str, texts: Sequence[str]) -> None:
        """Save texts, completely or not at all."""
        partial = self.folder / f".{name}.{os.getpid()}.json"
        partial.write_text(json.dumps(list(texts)), encoding="utf-8")
        partial.replace(self.folder / f"{name}.json")

    def write(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Save a piece, completely or not at all, even if other processes write it at the same time."""
        partial = self._path(f".{name}.{os.getpid()}")
        save_file({key: np.ascontiguousarray(values) for key, values in arrays.items()}, partial)
        partial.replace(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
