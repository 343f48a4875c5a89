"""Claims about separability, decided from the table of `studies.separability` by measures that are named beforehand."""

import pandas as pd

from studies.bookkeeping.verdict_rules import Decision, Holds, only_row, unless_hidden, with_interval
from studies.experiment.config import TRAINED
from studies.probing.measures import SeparabilityMeasure


def reported(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the reported split: requests that were used neither for training nor for fitting."""
    return table[~table.split.isin([TRAINED, "anchors"])]


def _at(table: pd.DataFrame, layer: int) -> pd.DataFrame:
    """Keep the reported split at one layer, and at the site and token that a guard reads and changes."""
    rows = reported(table)
    return rows[(rows.layer == layer) & (rows.site == "resid_post") & (rows.token == "last")]


def separable_as_text(table: pd.DataFrame, layer: int) -> Decision:
    """Decide if a probe within text is above 0.8 and above shuffled labels, by AUROC."""
    rows = _at(table, layer)
    columns = {"probe": "logistic", "modality": "text", "fit_modality": "text", "setting": "folds", "metric": "auroc"}
    probe, shuffled = (only_row(rows, **columns, control=control) for control in (None, "shuffled_labels"))
    words = only_row(reported(table), probe="bag_of_words", setting="anchors", metric="auroc")
    holds = True if probe.ci_low > max(0.8, shuffled.ci_high) else (None if probe.value > 0.8 else False)
    return holds, (
        f"layer {layer}, AUROC {with_interval(probe)}, with shuffled labels {shuffled.value:.2f}; "
        f"a bag of words fitted on the anchors reaches {words.value:.2f}"
    )


def is_lost(table: pd.DataFrame, layer: int, modality: str, measure: SeparabilityMeasure) -> Decision:
    """Decide if a modality lowers a measure along the safety direction, against text and on the same requests.

    Args:
        table: of `studies.separability`.
        layer: where it is measured.
        modality: what text is compared with.
        measure: the measure that the claim names.
    """
    rows = _at(table, layer)
    rows = rows[(rows.probe == "ssd") & rows.control.isna()]
    text, other = (only_row(rows, modality=name, metric=measure.metric) for name in ("text", modality))
    drop = only_row(rows, modality=modality, metric=measure.drop)
    values = f"text {_value(text)}, {_words(modality)} {_value(other)}; lost {with_interval(drop)}"
    numbers = f"layer {layer}, {measure.name}: {values}"
    if measure.metric == "auroc":
        p_value = only_row(rows, modality=modality, metric="auroc_drop_p").value
        numbers += f", p = {p_value:.3f} over all layers"
    if measure.metric == "accuracy":
        numbers += f"; {_movement(rows, modality)}"
    return _holds(measure, drop, text, other), numbers


def _holds(measure: SeparabilityMeasure, drop: pd.Series, text: pd.Series, other: pd.Series) -> Holds:
    if drop.ci_low > 0:
        return True
    # Rows of separation count both members of pairs.
    return unless_hidden(bool(drop.value <= 0), text, other, (measure.floor, measure.ceiling), rows_per_case=2)


def _value(row: pd.Series) -> str:
    return f"{row.value:.2f}" if pd.isna(row.ci_low) else with_interval(row)


def _words(modality: str) -> str:
    return {"typographic": "request in the picture"}.get(modality, f"{modality} picture")


def _movement(rows: pd.DataFrame, modality: str) -> str:
    """Say how far each class moves from text to a modality."""
    moved = rows[(rows.metric == "coordinate_shift") & (rows.modality == modality)]
    parts = [f"{name} {with_interval(only_row(moved, category=name))}" for name in ("harmful", "harmless")]
    return f"mean change of the coordinate: {', '.join(parts)}"
