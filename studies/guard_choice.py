"""Which guard should a model have? `vlm-guard guard fit` makes every choice on validation and saves the guard."""

from dataclasses import replace
from pathlib import Path

from figures import first_judge
from interp import VLM, Guard, Query
from studies import layer_sweep, readings
from studies.datasets import read_queries, write_queries
from studies.experiment.config import Config, writable_folder
from studies.experiment.experiment import load_experiment

ANCHORS = "anchors.csv"
"""File in the folder of a guard: the queries it was fitted on, so that it is not tested on them unnoticed."""
VALIDATION_METRICS = ("refusal_rate", "over_refusal_rate", "coherence", "refusal_score", "kl")


def fit(config: Config, out: Path) -> Guard:
    """Fit the direction on the anchors, choose the layer by the sweep and the rest by the grid of readings, and save.

    Raises:
        ConfigError: a folder can't be written to, or the settings are invalid.
        QueryFileError, ModelError: see `studies.experiment.experiment.load_experiment`.
    """
    experiment = load_experiment(config)
    for folder in (out, config.out):
        writable_folder(folder)
    layer = layer_sweep.run(config, experiment).choice.layer
    selected = readings.select(experiment, layer)
    guard = replace(selected.chosen.guard, source=selected.chosen.source)
    guard.save_pretrained(out, resolved(experiment.vlm), validation_numbers(selected))
    write_queries(out / ANCHORS, experiment.queries["anchors"])
    return guard


def anchors_of(folder: str | Path) -> tuple[Query, ...]:
    """Return the queries that a guard was fitted on; none if its folder does not hold them."""
    path = Path(folder) / ANCHORS
    return read_queries(path, check_pictures=False) if path.exists() else ()


def resolved(vlm: VLM) -> VLM:
    """Name a local model by its absolute path: its guard may be loaded from another working directory."""
    return replace(vlm, name=str(Path(vlm.name).resolve())) if Path(vlm.name).is_dir() else vlm


def validation_numbers(selected: readings.ReadingsResult) -> dict[str, float]:
    """Return the chosen reading's numbers on validation, and those of the unguarded model.

    Returns:
        Description (metric, modality, reference, n) -> value.
    """
    unguarded = selected.table[selected.table.defence == "unguarded"]
    numbers = {}
    for prefix, table in (("", selected.validation), ("unguarded, ", unguarded)):
        rows = first_judge(table)
        rows = rows[rows.metric.isin(VALIDATION_METRICS) & rows.value.notna()]
        # The KL of the unguarded model from itself is 0.
        rows = rows[(rows.metric != "kl") | (prefix == "")]
        for row in rows.itertuples():
            words = [f"{row.metric} {row.category}" if isinstance(row.category, str) else row.metric, row.modality]
            words += [f"reference {row.reference}"] if isinstance(row.reference, str) else []
            numbers[f"{prefix}{', '.join(words)} (n = {row.n})"] = float(row.value)
    return numbers
