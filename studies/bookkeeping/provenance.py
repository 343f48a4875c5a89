"""Provenance: config, versions, seeds and hashes, stored with every result."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from interp.json_text import parse_json
from interp.whole_files import write_whole

PACKAGES = ("torch", "transformers", "nnsight", "scikit-learn", "numpy", "pillow", "vlm-guard")
"""Packages whose versions are recorded."""


def file_hash(paths: Iterable[Path]) -> str:
    """Return the first 16 hex digits of the sha256 over file names and contents; a folder is all files in it."""
    files = (file for path in paths for file in (path.iterdir() if path.is_dir() else [path]) if not file.is_dir())
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def model_hash(name: str) -> str:
    """Identify a model: a local one by the hash of every file in its folder, one from the hub by its id."""
    folder = Path(name)
    return file_hash(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else name


def _commit() -> str:
    """Return the commit of the toolkit's own checkout, or 'unknown' outside of one."""
    here = Path(__file__).parent
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        return git.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _machine() -> str:
    """Name the accelerator; without one, the number of CPU cores that this process may use."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    if torch.backends.mps.is_available():
        return f"{platform.machine()}, Metal"
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{n_cores} CPU core{'s' if n_cores != 1 else ''}"


def write_config(folder: Path, config, options: Mapping[str, object] | None = None) -> None:
    """Write `config.json` before anything is computed, so that no table is stored with the config of another run.

    Args:
        folder: where the results will be.
        config: settings of the run, a dataclass.
        options: what the command's own options set, by name.
    """
    write_json(folder / "config.json", asdict(config) | {"options": options or {}})


def write_provenance(
    folder: Path, inputs: Mapping[str, object], seed: int | None = None, tables: Iterable[Path] = ()
) -> None:
    """Write `provenance.json`: date, machine, versions, seed, commit, hashes of the inputs, and who wrote each table.

    Several studies may write into one folder, one after the other: entries of earlier tables are kept.

    Args:
        folder: where the results are.
        inputs: what the run was given, with the hashes that identify it.
        seed: seed of the run.
        tables: files that this run has written into the folder.
    """
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    run = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "versions": versions,
        "seed": seed,
        "inputs": dict(inputs),
        "commit": _commit(),
    }
    entry = {
        "versions": versions,
        "seed": seed,
        "commit": run["commit"],
        "model": inputs.get("model", inputs.get("weights")),
    }
    written = {path.name: entry | {"sha256": file_hash([path])} for path in tables}
    write_json(folder / "provenance.json", run | {"tables": _earlier_tables(folder) | written})


def _earlier_tables(folder: Path) -> dict:
    try:
        entries = parse_json((folder / "provenance.json").read_text(encoding="utf-8")).get("tables", {})
    except (OSError, ValueError, AttributeError):
        return {}  # the first run in this folder, or a damaged file: nothing can be kept
    return {name: entry for name, entry in entries.items() if (folder / name).exists()}


def write_json(path: Path, content: Mapping) -> None:
    """Write JSON with sorted keys, so that the same content gives the same file."""
    text = json.dumps(content, indent=2, default=str, sort_keys=True)
    write_whole(path, text + "\n")
