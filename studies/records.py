"""Tidy results, and what lies beside them: config and provenance."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd

COLUMNS = (
    "model dataset split setting category modality fit_modality layer direction_layer site token source estimator rank "
    "rule reference gate gate_scope positions strength defence probe control selection_rule judge seed metric value "
    "ci_low ci_high n"
).split()
"""One row a measurement; a table has the columns that apply, in this order."""


def tidy(rows: Iterable[Mapping]) -> pd.DataFrame:
    """A table in the order of `COLUMNS`.

    Raises:
        ValueError: a column that is not in `COLUMNS`.
    """
    table = pd.DataFrame(list(rows))
    unknown = set(table.columns) - set(COLUMNS)
    if unknown:
        raise ValueError(f"unknown columns {sorted(unknown)}; a table has some of {COLUMNS}")
    return table[[column for column in COLUMNS if column in table.columns]]


def write_table(table: pd.DataFrame, folder: Path, name: str) -> Path:
    """`folder/name.csv`; six significant digits, more than any of these numbers deserves."""
    path = folder / f"{name}.csv"
    table.to_csv(path, index=False, float_format="%.6g")
    return path


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Raises:
    FileNotFoundError: the study has not been run into this folder.
    """
    path = folder / f"{name}.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run the study {name!r} with this folder as --out")
    return pd.read_csv(path, keep_default_na=True)


def file_hash(paths: Iterable[Path]) -> str:
    """sha256 over names and contents, the first 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
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


def write_provenance(folder: Path, config, inputs: Mapping[str, str]) -> None:
    """`config.json` and `provenance.json` (versions, seeds, hashes of the inputs, commit)."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = asdict(config) if is_dataclass(config) else dict(config)
    packages = ("torch", "transformers", "nnsight", "scikit-learn", "numpy", "pillow", "vlm-guard")
    provenance = {
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "seed": settings.get("seed"),
        "inputs": dict(inputs),
        "commit": _commit(),
    }
    for name, content in (("config", settings), ("provenance", provenance)):
        text = json.dumps(content, indent=2, default=str, sort_keys=True)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
