"""The figures of detectors draw the rows that they name, and say what is missing."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

import figures
from figures.words import in_words

MODALITIES = ("text", "blank", "typographic")


@pytest.fixture
def table():
    rng, rows = np.random.default_rng(0), []
    for fitted, applied, detector in product((*MODALITIES, "all"), MODALITIES, ("mcd", "hidden_detect")):
        place = {"dataset": "organism", "fit_dataset": "organism", "split": "test", "modality": applied}
        place |= {"setting": "multimodal" if applied == "typographic" else "plain", "fit_modality": fitted}
        place |= {"detector": detector, "reference": None, "fit_category": None, "n": 60}
        metrics = ("auroc", "true_positive_rate", "false_positive_rate")
        for metric, value in zip(metrics, rng.uniform(0.5, 1, 3), strict=True):
            rule = None if metric == "auroc" else "fpr_0.05"
            limits = {"ci_low": value - 0.05, "ci_high": min(1, value + 0.05)}
            rows.append(place | {"metric": metric, "value": value, "selection_rule": rule} | limits)
    return pd.DataFrame(rows)


def cells(table, **columns):
    for column, value in columns.items():
        table = table[table[column] == value]
    return table.value.to_numpy()


def test_dots_are_the_auroc_of_the_panel_they_are_in(table):
    figure = figures.detection_auroc(table)
    assert [axis.get_title() for axis in figure.axes] == ["fitted on text", "fitted on all modalities"]
    for axis, fitted in zip(figure.axes, ("text", "all"), strict=True):
        dots = [np.asarray(bars[0].get_xdata(), dtype=float) for bars in axis.containers]
        for modality, shown in zip(MODALITIES, dots, strict=True):
            assert np.allclose(shown, cells(table, metric="auroc", fit_modality=fitted, modality=modality))
    assert "n = 60 requests" in figures.caption(figure)


def test_maps_have_what_was_set_in_their_rows_and_applied_in_their_columns(table):
    figure = figures.detection_matrix(table)
    first = figure.axes[0]
    assert first.get_title() == "MCD: harmful detected"
    assert [label.get_text() for label in first.get_yticklabels()] == [
        *(in_words(name, "modality") for name in MODALITIES),
        "all",
    ]
    shown = [float(text.get_text()) for text in first.texts]
    expected = cells(table, metric="true_positive_rate", detector="mcd")
    assert np.allclose(shown, expected, atol=0.005)


def test_rows_of_categories_and_of_validation_are_left_out(table):
    other = table.assign(value=0.123, fit_category="violence")
    validation = table.assign(value=0.123, split="validation")
    figure = figures.detection_auroc(pd.concat([other, validation, table], ignore_index=True))
    dots = np.concatenate([np.asarray(bars[0].get_xdata()) for axis in figure.axes for bars in axis.containers])
    assert not np.isclose(dots.astype(float), 0.123).any()


@pytest.mark.parametrize("draw", [figures.detection_auroc, figures.detection_matrix])
def test_a_missing_column_is_named(table, draw):
    with pytest.raises(ValueError, match="missing: detector"):
        draw(table.drop(columns="detector"))
