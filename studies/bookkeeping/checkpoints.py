"""Checkpoints of long work: a run that was stopped resumes from what it has finished."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from interp.json_text import parse_json
from interp.whole_files import hash_of, replaced, write_whole

CHECKSUM = "checksum"


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
        write_whole(self.folder / "about.json", text + "\n")

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """Return a finished piece; None if it is missing or damaged and has to be computed."""
        try:
            with safe_open(self._path(name), "numpy") as file:
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
                checksum = (file.metadata() or {}).get(CHECKSUM)
        except (FileNotFoundError, SafetensorError):
            return None
        # Earlier versions wrote none.
        return arrays if checksum in (None, _checksum(arrays)) else None

    def has(self, name: str) -> bool:
        """Tell whether the file of a piece exists, without reading it."""
        return self._path(name).exists()

    def read_texts(self, name: str) -> list[str] | None:
        """Return finished texts; None if they are missing or damaged."""
        try:
            saved = parse_json((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        if isinstance(saved, dict):
            texts = saved.get("texts")
            return texts if saved.get(CHECKSUM) == _checksum_of_texts(texts) else None
        # Earlier versions wrote the texts alone.
        return saved if isinstance(saved, list) and all(isinstance(text, str) for text in saved) else None

    def write_texts(self, name: str, texts: Sequence[str]) -> None:
        """Save texts, completely or not at all."""
        saved = {"texts": list(texts), CHECKSUM: _checksum_of_texts(list(texts))}
        write_whole(self.folder / f"{name}.json", json.dumps(saved))

    def write(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Save a piece, completely or not at all, even if other processes write it at the same time."""
        arrays = {key: np.ascontiguousarray(values) for key, values in arrays.items()}
        with replaced(self._path(name)) as new:
            save_file(arrays, new, metadata={CHECKSUM: _checksum(arrays)})

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a hash of arrays, their names, shapes and types."""
    named = sorted(arrays.items())
    parts = (f"{key} {values.dtype} {values.shape} ".encode() + values.tobytes() for key, values in named)
    return hash_of(b"".join(parts))


def _checksum_of_texts(texts: object) -> str:
    return hash_of(json.dumps(texts).encode())
