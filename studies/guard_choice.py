"""Guards in the terminal: fit and save one, look at it, answer with and without it."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from interp.guard import Guard
from interp.inputs import Query
from interp.vlm import VLM
from studies import layer_sweep, readings
from studies.bookkeeping.tables import first_judge
from studies.datasets import read_queries, write_queries
from studies.experiment.config import Config, writable_folder
from studies.experiment.experiment import load
from studies.guards.configuration import GuardConfiguration, rows_of

ANCHORS = "anchors.csv"
"""Beside a guard: what it was fitted on, so that no test set is measured on it unnoticed."""
VALIDATION_METRICS = ("refusal_rate", "over_refusal_rate", "coherence", "refusal_score", "kl")


def fit(config: Config, out: Path) -> Guard:
    """Direction from the anchors, layer from the sweep, the rest from the grid of readings; all of it on validation.

    Raises:
        ConfigError, QueryFileError, ModelError: see `studies.experiment.experiment.load`; or a folder can't be written to.
    """
    material = load(config)
    for folder in (out, config.out):
        writable_folder(folder)
    layer = layer_sweep.chosen_layer(layer_sweep.run(config, material))
    table, reading = readings.select(material, layer)
    guard = replace(reading.guard, source=reading.source)
    guard.save_pretrained(out, resolved(material.vlm), validation_numbers(table, reading))
    write_queries(out / ANCHORS, material.queries["anchors"])
    return guard


def anchors_of(folder: str | Path) -> tuple[Query, ...]:
    """What a guard was fitted on; empty where its folder does not tell."""
    path = Path(folder) / ANCHORS
    return read_queries(path, look=False) if path.exists() else ()


def resolved(vlm: VLM) -> VLM:
    """By its whole path: whoever loads its guard may stand in another folder."""
    return replace(vlm, name=str(Path(vlm.name).resolve())) if Path(vlm.name).is_dir() else vlm


def validation_numbers(table: pd.DataFrame, reading: GuardConfiguration) -> dict[str, float]:
    """What the reading reached on validation, and the unguarded model beside it."""
    table = first_judge(table)
    rows = {"": rows_of(table, reading), "unguarded, ": table[table.defence == "unguarded"]}
    numbers = {}
    for name, some in rows.items():
        some = some[some.metric.isin(VALIDATION_METRICS) & some.value.notna() & ~((some.metric == "kl") & (name != ""))]
        for row in some.itertuples():
            about = [f"{row.metric} {row.category}" if isinstance(row.category, str) else row.metric, row.modality]
            about += [f"reference {row.reference}"] if isinstance(row.reference, str) else []
            numbers[f"{name}{', '.join(about)} (n = {row.n})"] = float(row.value)
    return numbers
