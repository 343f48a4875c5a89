"""Finished results of one model, read from one or several folders and checked before they are used."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from interp.json_text import parse_json
from studies.bookkeeping.provenance import file_hash
from studies.experiment.config import ConfigError
from studies.guards.sweep_result import SweepChoice
from studies.guards.wording import chosen_in_words

REPRO = "vlm-guard repro --model MODEL --out FOLDER"
STUDIES = {
    "claims": REPRO,
    "points": REPRO,
    "separability": f"{REPRO}, or vlm-guard probe --model MODEL --out FOLDER",
    "layer_sweep": f"{REPRO}, or vlm-guard sweep --model MODEL --out FOLDER",
    "layer_selection": f"{REPRO}, or vlm-guard sweep --model MODEL --out FOLDER",
    "readings": REPRO,
    "random_directions": f"{REPRO}, or vlm-guard sweep --model MODEL --out FOLDER",
    "signal_path": REPRO,
    "defence": f"{REPRO}, or vlm-guard defend --model MODEL --data NAME=PATH --out FOLDER",
    "judges": f"{REPRO}, or vlm-guard defend --model MODEL --data NAME=PATH --out FOLDER",
    "changes": REPRO,
    "adaptive": "vlm-guard attack --model MODEL --out FOLDER",
    "stress": "vlm-guard stress --model MODEL --out FOLDER",
    "detection": "vlm-guard detect --model MODEL --out FOLDER",
    "targets": "vlm-guard reproduce PRESET --out FOLDER",
    "bench": "make bench",
}
"""Tables that results can contain, and the commands that write them."""
WITHOUT_MODEL = ("bench",)
"""Tables that are not about the model of the results."""
REQUIRED_COLUMNS = {
    "claims": ("claim", "theirs", "ours", "verdict"),
    "points": ("modality", "layer", "harmful", "text", "pc1", "pc2", "coordinate"),
    "layer_sweep": ("setting", "metric", "value"),
}
"""Columns that the page reads, by table."""
CHECKED_PACKAGE = "vlm-guard"
"""Package whose version has to be the same for all tables."""


class ResultsError(ConfigError):
    """Folders without results, or results that do not belong together."""


@dataclass(frozen=True)
class Results:
    """Tables of one model, by name, with their configs and provenance."""

    tables: Mapping[str, pd.DataFrame]
    folders: tuple[Path, ...]
    configs: Mapping[Path, dict] = field(default_factory=dict)
    """`config.json` of each folder that has one."""
    provenance: Mapping[Path, dict] = field(default_factory=dict)
    """`provenance.json` of each folder that has one, or the `machine.json` of a benchmark."""
    changed: tuple[Path, ...] = ()
    """Tables that were changed after the run that `provenance.json` describes."""

    @classmethod
    def of(cls, *folders: str | Path) -> "Results":
        """Read everything in the folders.

        Raises:
            ResultsError: a path that is not a folder or has no tables, the same table twice, or tables of several
                models, weights or versions of the toolkit; the message says which.
        """
        folder_paths = tuple(Path(folder) for folder in folders)
        paths: dict[str, Path] = {}
        for folder in folder_paths:
            for path in _tables_in(folder):
                if path.stem in paths:
                    raise ResultsError(f"{paths[path.stem]} and {path} are the same table twice; expected one of them")
                paths[path.stem] = path
        tables = {name: _read(path) for name, path in paths.items()}
        # A speed benchmark records its machine instead of a run.
        provenance = {path: _json(path / "provenance.json") or _json(path / "machine.json") for path in folder_paths}
        _check_same(_models(tables, paths), "model")
        _check_same(_weights(provenance, paths), "set of weights (by the hash of the model's files)")
        _check_same(_versions(provenance, paths), f"version of {CHECKED_PACKAGE}")
        changed = tuple(path for path in paths.values() if _is_changed(path, provenance[path.parent]))
        configs = {path: _json(path / "config.json") for path in folder_paths}
        return cls(tables, folder_paths, configs, provenance, changed)

    def __contains__(self, name: str) -> bool:
        return name in self.tables

    def __getitem__(self, name: str) -> pd.DataFrame:
        """Return a table.

        Raises:
            ResultsError: the table is missing; the message says what to run.
        """
        if name not in self.tables:
            raise ResultsError(f"{name}.csv is in none of {_joined(self.folders)}; run `{STUDIES[name]}`")
        return self.tables[name]

    @property
    def model(self) -> str:
        """Name of the model, or 'unknown' if no table names one."""
        tables = (table for name, table in self.tables.items() if name not in WITHOUT_MODEL and "model" in table)
        models = (table.model.dropna() for table in tables)
        return next((str(column.iloc[0]) for column in models if len(column)), "unknown")

    @property
    def missing(self) -> tuple[str, ...]:
        """Tables that are not in the folders."""
        return tuple(name for name in STUDIES if name not in self.tables)

    @property
    def layer(self) -> int | None:
        """Best single layer of the sweep, on validation; None if no single layer was swept."""
        return SweepChoice.read(self.tables["layer_sweep"]).single_layer if "layer_sweep" in self else None

    @property
    def judge(self) -> str:
        """Name of the deciding judge, which is the first in the table of defences; empty if there is none."""
        judges = self.tables["defence"].get("judge") if "defence" in self else None
        return "" if judges is None else next(iter(judges.dropna()), "")

    @property
    def guard(self) -> str:
        """The guard that the sweep chose on validation, named in full; empty if none is marked."""
        return chosen_in_words(self.tables["layer_sweep"]) if "layer_sweep" in self else ""

    @property
    def guard_layer(self) -> int | None:
        """First layer of the guard whose answers the page shows; `layer` if it shows none."""
        return int(self.tables["changes"].layer.iloc[0]) if "changes" in self else self.layer


def _tables_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise ResultsError(f"{folder} {problem}; expected a folder of results, as written by `{REPRO}`")
    paths = [folder / f"{name}.csv" for name in STUDIES if (folder / f"{name}.csv").exists()]
    if not paths:
        names = ", ".join(f"{name}.csv" for name in STUDIES)
        raise ResultsError(f"{folder} contains no results; expected some of {names}: run `{REPRO}`")
    return paths


def _read(path: Path) -> pd.DataFrame:
    advice = f"write it again with `{STUDIES[path.stem]}`"
    try:
        table = pd.read_csv(path, low_memory=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} can't be read as a table: {error}; {advice}") from None
    missing = [name for name in REQUIRED_COLUMNS.get(path.stem, ()) if name not in table]
    if missing:
        raise ResultsError(f"{path} lacks the columns {', '.join(missing)}; {advice}")
    if table.empty:
        raise ResultsError(f"{path} has no rows; {advice}")
    return table


def _json(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"{path} can't be read as JSON: {error}; write it again with the study") from None
    return content if isinstance(content, dict) else {}


def _models(tables: Mapping[str, pd.DataFrame], paths: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    for name, table in tables.items():
        if name not in WITHOUT_MODEL and "model" in table:
            yield from ((str(model), paths[name]) for model in table.model.dropna().unique())


def _weights(provenance: Mapping[Path, dict], paths: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Yield the weights behind each table, because two models can have the same name."""
    for name, path in paths.items():
        run = provenance[path.parent]
        inputs = run.get("inputs", {})
        weights = run.get("tables", {}).get(path.name, {}).get("model", inputs.get("model", inputs.get("weights")))
        if weights and name not in WITHOUT_MODEL:
            # The precision may follow the hash.
            yield str(weights).split()[0], path


def _versions(provenance: Mapping[Path, dict], paths: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Yield the version that wrote each table: that of its own entry in the provenance, or that of the folder."""
    for name, path in paths.items():
        run = provenance[path.parent]
        entry = run.get("tables", {}).get(path.name, run)
        version = entry.get("versions", {}).get(CHECKED_PACKAGE)
        if version and name not in WITHOUT_MODEL:
            yield str(version), path


def _check_same(values: Iterator[tuple[str, Path]], kind: str) -> None:
    paths_of: dict[str, list[Path]] = {}
    for value, path in values:
        paths_of.setdefault(value, []).append(path)
    if len(paths_of) > 1:
        listed = "; ".join(f"{value!r} in {_joined(paths)}" for value, paths in paths_of.items())
        raise ResultsError(f"results of more than one {kind}: {listed}; give the folders of one at a time")


def _joined(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)


def _is_changed(path: Path, run: Mapping) -> bool:
    entry = run.get("tables", {}).get(path.name)
    return entry is not None and entry.get("sha256") != file_hash([path])
