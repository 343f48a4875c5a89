"""Provenance: config, versions, seeds and hashes, stored with every result."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path


def file_hash(paths: Iterable[Path]) -> str:
    """sha256 over names and contents, the first 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def model_hash(name: str) -> str:
    """Identity of a local model: the hash of every file in its folder. A hub id stands for itself."""
    folder = Path(name)
    return file_hash(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else name


def _commit() -> str:
    """Of the toolkit's own checkout; 'unknown' outside one."""
    here = Path(__file__).parent
    try:
        shown = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        return shown.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_config(folder: Path, config) -> None:
    """`config.json`, before anything is computed: tables never lie beside the config of another run."""
    write_json(folder / "config.json", asdict(config))


def write_provenance(
    folder: Path, inputs: Mapping[str, object], seed: int | None = None, tables: Iterable[Path] = ()
) -> None:
    """`provenance.json`: versions, seed, hashes of the inputs, commit; and of each table which run wrote it.

    Studies may write into one folder one after the other: tables of earlier ones keep what is known of them.

    Args:
        tables: that this run has written into the folder.
    """
    packages = ("torch", "transformers", "nnsight", "scikit-learn", "numpy", "pillow", "vlm-guard")
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    run = {"versions": versions, "seed": seed, "inputs": dict(inputs), "commit": _commit()}
    own = {
        "versions": versions,
        "seed": seed,
        "commit": run["commit"],
        "model": inputs.get("model", inputs.get("weights")),
    }
    told = {path.name: own | {"sha256": file_hash([path])} for path in tables}
    write_json(folder / "provenance.json", run | {"tables": _known_tables(folder) | told})


def _known_tables(folder: Path) -> dict:
    try:
        known = json.loads((folder / "provenance.json").read_text(encoding="utf-8")).get("tables", {})
    except (OSError, ValueError, AttributeError):
        return {}  # of the first run, or damaged: what it said can't be kept
    return {name: about for name, about in known.items() if (folder / name).exists()}


def write_json(path: Path, content: Mapping) -> None:
    text = json.dumps(content, indent=2, default=str, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
