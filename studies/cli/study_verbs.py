"""`vlm-guard probe` and `vlm-guard sweep`: a study by itself, into a folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

import figures
from studies import layer_selection, layer_sweep, separability
from studies.bookkeeping.provenance import write_config, write_provenance
from studies.bookkeeping.tables import tidy, write_table
from studies.experiment.config import Config, writable_folder
from studies.experiment.experiment import load
from studies.guards.sweep_grid import Grid
from studies.probing.rows import probe_rows
from studies.probing.rows import summary_lines as probe_summary_lines
from studies.probing.states import ProbeSettings, of_store
from studies.sweep import Sweep


def probe(config: Config, changes: dict, console: Console) -> pd.DataFrame:
    """The separability study, with another extent than the scale's where asked for.

    Raises:
        ProbeError: an extent with something in it that does not exist.
        ConfigError, QueryFileError, ModelError: see `studies.experiment.experiment.load`.
    """
    extent = separability.extent_of(config.scale, changes)
    out = writable_folder(config.out)
    material = load(config)
    write_config(out, config)
    table = separability.run(config, material, extent)
    write_table(table, out, "separability")
    write_provenance(out, material.inputs(), config.seed, [out / "separability.csv"])
    return _told(table, out, console)


def probe_store(
    store: Path, out: str, extent: ProbeSettings, modalities: Sequence[str], split: str, seed: int, console: Console
) -> pd.DataFrame:
    """Probes on what was traced before; needs no model.

    Raises:
        StoreError, ProbeError: see `studies.probing.states.of_store`.
    """
    probed = of_store(store, extent, modalities, split, seed)
    folder = writable_folder(out)
    about = {"store": json.loads((store / "header.json").read_text(encoding="utf-8")), "split": split}
    rows = probe_rows(probed, folder / "probes", about)
    labels = {"model": about["store"]["about"]["model"], "dataset": store.name, "split": split, "seed": seed}
    table = tidy(labels | row for row in rows)
    write_table(table, folder, "separability")
    return _told(table, folder, console)


def _told(table: pd.DataFrame, out: Path, console: Console) -> pd.DataFrame:
    """Drawn, and in words."""
    drawn = figures.save(figures.probe_auroc(table), out, "probe_auroc")
    for line in probe_summary_lines(table):
        console.print(f"- {line}", soft_wrap=True)
    _tell_written(console, [out / "separability.csv"], drawn)
    return table


def _tell_written(console: Console, tables: Sequence[Path], drawn: Sequence[Path]) -> None:
    for path in (*tables, *(path for path in drawn if path.suffix == ".png")):
        console.print(f"  {path}", soft_wrap=True)


def sweep(
    config: Config,
    grid: Grid,
    console: Console,
    top: int | None = None,
    halving: bool = False,
    ray: str | None = None,
    cpus_per_worker: int = 1,
) -> Sweep:
    """The sweep, what other selection rules would have picked, and the chosen configuration as a guard.

    Raises:
        GridError: a grid with nothing in it, or layers that do not exist.
        ConfigError, QueryFileError, ModelError: see `studies.experiment.experiment.load`.
    """
    out = writable_folder(config.out)
    material = load(config)
    grid.check(material)
    write_config(out, config)
    asked = {"grid": asdict(grid), "top": top or layer_sweep.TOP[config.scale], "halving": halving}
    (out / "sweep.json").write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    swept = Sweep.run(config, material, grid, top, halving, ray, cpus_per_worker)
    write_table(swept.table, out, "layer_sweep")
    swept.save_guard(out / "guard", material)
    console.print(_finalists(swept))
    selected = layer_selection.run(config, material, ray, cpus_per_worker)
    write_table(selected, out, "layer_selection")
    tables = [out / "layer_sweep.csv", out / "layer_selection.csv"]
    write_provenance(out, material.inputs(), config.seed, tables)
    for line in layer_selection.summary_lines(selected):
        console.print(f"- {line}", soft_wrap=True)
    drawn = figures.save(figures.pareto(swept.table), out, "pareto")
    drawn += figures.save(figures.layer_selection(selected), out, "layer_selection")
    _tell_written(console, [*tables, out / "guard"], drawn)
    return swept


def _finalists(swept: Sweep) -> Table:
    """The finalists, from the best on validation to the last."""
    shown = Table(title="Finalists on validation: shares refused, KL in nats")
    for name in ("layers", "rule", "gate", "strength", "refused", "harmless", "KL", ""):
        shown.add_column(name, overflow="fold")
    for one in swept.finalists.itertuples():
        strength = "" if pd.isna(one.strength) else f"{one.strength:g}"
        values = (f"{value:.3f}" for value in (one.refused, one.harmless_refused, one.kl))
        shown.add_row(one.layers, one.rule, one.gate, strength, *values, one.mark)
    return shown
