"""Long work in pieces: what a run has finished, the next one finds."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

Arrays = dict[str, np.ndarray]


class Checkpoints:
    """A folder of finished pieces, one file each, that belongs to one question alone."""

    def __init__(self, folder: Path, about: Mapping):
        """Args:
        folder: of many questions; each gets one in it.
        about: all that the answer depends on, as JSON would write it.
        """
        told = json.dumps(about, sort_keys=True, default=str)
        # Absolute: workers of a cluster stand elsewhere.
        self.folder = folder.absolute() / hashlib.sha256(told.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "about.json").write_text(told + "\n", encoding="utf-8")

    def read(self, name: str) -> Arrays | None:
        """None where it is not there, or not whole: then it is done again."""
        try:
            return load_file(self._path(name))
        except (FileNotFoundError, SafetensorError):
            return None

    def has(self, name: str) -> bool:
        return self._path(name).exists()

    def read_texts(self, name: str) -> list[str] | None:
        """None where they are not there."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_texts(self, name: str, texts: Sequence[str]) -> None:
        """Whole or not at all."""
        made = self.folder / f".{name}.{os.getpid()}.json"
        made.write_text(json.dumps(list(texts)), encoding="utf-8")
        made.replace(self.folder / f"{name}.json")

    def write(self, name: str, arrays: Arrays) -> None:
        """Whole or not at all, whoever else may write it at the same time."""
        made = self._path(f".{name}.{os.getpid()}")
        save_file({key: np.ascontiguousarray(values) for key, values in arrays.items()}, made)
        made.replace(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
