"""Finished results of one model, read back from a folder or several, and checked before anything is made of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from studies.bookkeeping.provenance import file_hash
from studies.experiment.config import ConfigError

REPRO = "vlm-guard repro --model MODEL --out FOLDER"
STUDIES = {
    "claims": REPRO,
    "points": REPRO,
    "separability": f"{REPRO}, or vlm-guard probe --model MODEL --out FOLDER",
    "layer_sweep": f"{REPRO}, or vlm-guard sweep --model MODEL --out FOLDER",
    "layer_selection": f"{REPRO}, or vlm-guard sweep --model MODEL --out FOLDER",
    "readings": REPRO,
    "signal_path": REPRO,
    "defence": f"{REPRO}, or vlm-guard defend --model MODEL --data NAME=PATH --out FOLDER",
    "judges": f"{REPRO}, or vlm-guard defend --model MODEL --data NAME=PATH --out FOLDER",
    "changes": REPRO,
    "bench": "make bench",
}
"""Tables that results can hold, and what writes them."""
OF_NO_MODEL = ("bench",)
"""Measured on models of its own."""
NEEDED = {
    "claims": ("claim", "theirs", "ours", "verdict"),
    "points": ("modality", "layer", "harmful", "text", "pc1", "pc2", "coordinate"),
    "layer_sweep": ("setting", "metric", "value"),
}
"""Columns of tables that are read for more than to be shown."""
DECIDING_PACKAGE = "vlm-guard"


class ResultsError(ConfigError):
    """Folders that hold no results, or results that do not belong together."""


@dataclass(frozen=True)
class Results:
    """Tables of one model, by name, and what is known of how they came about."""

    tables: Mapping[str, pd.DataFrame]
    folders: tuple[Path, ...]
    configs: Mapping[Path, dict] = field(default_factory=dict)
    """`config.json` of each folder that has one."""
    provenance: Mapping[Path, dict] = field(default_factory=dict)
    """`provenance.json` of each folder that has one, or the `machine.json` of a benchmark."""
    changed: tuple[Path, ...] = ()
    """Tables that are not as the run that `provenance.json` describes has written them."""

    @classmethod
    def of(cls, *folders: str | Path) -> "Results":
        """Everything that the folders hold.

        Raises:
            ResultsError: a folder that is none or holds no table, the same table twice, tables of several models,
                weights or versions of the toolkit; the message says which.
        """
        places = tuple(Path(folder) for folder in folders)
        paths: dict[str, Path] = {}
        for place in places:
            for path in _tables_in(place):
                if path.stem in paths:
                    raise ResultsError(f"{paths[path.stem]} and {path} are the same table twice; expected one of them")
                paths[path.stem] = path
        tables = {name: _read(path) for name, path in paths.items()}
        # Of a benchmark, its machine is what one asks for.
        provenance = {place: _json(place / "provenance.json") or _json(place / "machine.json") for place in places}
        _check_alike(_models(tables, paths), "model")
        _check_alike(_weights(provenance, paths), "set of weights (by the hash of the model's files)")
        _check_alike(_versions(provenance, paths), f"version of {DECIDING_PACKAGE}")
        changed = tuple(path for path in paths.values() if _is_changed(path, provenance[path.parent]))
        configs = {place: _json(place / "config.json") for place in places}
        return cls(tables, places, configs, provenance, changed)

    def __contains__(self, name: str) -> bool:
        return name in self.tables

    def __getitem__(self, name: str) -> pd.DataFrame:
        """Raises:
        ResultsError: the table is not there; the message says what to run.
        """
        if name not in self.tables:
            raise ResultsError(f"{name}.csv is in none of {_told(self.folders)}; run `{STUDIES[name]}`")
        return self.tables[name]

    @property
    def model(self) -> str:
        own = (table for name, table in self.tables.items() if name not in OF_NO_MODEL and "model" in table)
        models = (table.model.dropna() for table in own)
        return next((str(some.iloc[0]) for some in models if len(some)), "unknown")

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in STUDIES if name not in self.tables)

    @property
    def layer(self) -> int | None:
        """The best single layer of the sweep, on validation; None where no single layer was swept."""
        from studies.layer_sweep import chosen_layer

        try:
            return chosen_layer(self.tables["layer_sweep"]) if "layer_sweep" in self else None
        except LookupError:
            return None

    @property
    def guard_layer(self) -> int | None:
        """The first layer of the guard whose answers are shown; where none are, `layer`."""
        return int(self.tables["changes"].layer.iloc[0]) if "changes" in self else self.layer


def _tables_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ResultsError(f"{folder} {what}; expected a folder of results, as `{REPRO}` writes it")
    found = [folder / f"{name}.csv" for name in STUDIES if (folder / f"{name}.csv").exists()]
    if not found:
        names = ", ".join(f"{name}.csv" for name in STUDIES)
        raise ResultsError(f"{folder} holds no results; expected some of {names}: run `{REPRO}`")
    return found


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, low_memory=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise ResultsError(
            f"{path} can't be read as a table: {error}; write it again with `{STUDIES[path.stem]}`"
        ) from None
    again = f"write it again with `{STUDIES[path.stem]}`"
    missing = [name for name in NEEDED.get(path.stem, ()) if name not in table]
    if missing:
        raise ResultsError(f"{path} lacks the columns {', '.join(missing)}; {again}")
    if table.empty:
        raise ResultsError(f"{path} has no rows; {again}")
    return table


def _json(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"{path} can't be read as JSON: {error}; write it again with the study") from None
    return content if isinstance(content, dict) else {}


def _models(tables: Mapping[str, pd.DataFrame], paths: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    for name, table in tables.items():
        if name not in OF_NO_MODEL and "model" in table:
            yield from ((str(model), paths[name]) for model in table.model.dropna().unique())


def _weights(provenance: Mapping[Path, dict], paths: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Two models of one name are two models."""
    for name, path in paths.items():
        about = provenance[path.parent]
        inputs = about.get("inputs", {})
        weights = about.get("tables", {}).get(path.name, {}).get("model", inputs.get("model", inputs.get("weights")))
        if weights and name not in OF_NO_MODEL:
            # Behind the hash may stand in which precision it was loaded.
            yield str(weights).split()[0], path


def _versions(provenance: Mapping[Path, dict], paths: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Of each table that its folder's provenance knows by itself, else of the folder."""
    for name, path in paths.items():
        about = provenance[path.parent]
        of_table = about.get("tables", {}).get(path.name, about)
        version = of_table.get("versions", {}).get(DECIDING_PACKAGE)
        if version and name not in OF_NO_MODEL:
            yield str(version), path


def _check_alike(found: Iterator[tuple[str, Path]], what: str) -> None:
    where: dict[str, list[Path]] = {}
    for value, path in found:
        where.setdefault(value, []).append(path)
    if len(where) > 1:
        told = "; ".join(f"{value!r} in {_told(paths)}" for value, paths in where.items())
        raise ResultsError(f"results of more than one {what}: {told}; give the folders of one at a time")


def _told(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)


def _is_changed(path: Path, about: Mapping) -> bool:
    known = about.get("tables", {}).get(path.name)
    return known is not None and known.get("sha256") != file_hash([path])
