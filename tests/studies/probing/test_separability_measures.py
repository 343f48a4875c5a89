"""The four measures of separation answer different questions, and are paired against text."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probes import d_prime_drop, margin
from studies.probing.measures import MEASURES, paired_rows
from studies.probing.states import FILLER, ProbeData
from tests.studies.probing.test_probe_rows import SETTINGS, dataset

POINTS = Path(__file__).parents[3] / "results" / "reference" / "quick" / "points.csv"


@pytest.fixture
def rows():
    """Classes 8 apart as text, 8 apart but moved in `blank`, and 2 apart in `typographic`; at two layers."""
    rng = np.random.default_rng(0)
    data = ProbeData({"text": dataset(rng.normal(size=(120, 2, 3)).astype(np.float32))}, SETTINGS)
    noise = rng.normal(size=(2, 120))
    planted = {"text": (8, 0), "blank": (8, -5), "typographic": (2, -3), FILLER: (8, 0)}
    distances = {name: noise + apart * (data.is_harmful - 0.5) + shift for name, (apart, shift) in planted.items()}
    return pd.DataFrame(paired_rows(data, distances))


def value_of(rows, metric, modality, category=None, control=None):
    for name, value in (("category", category), ("control", control)):
        rows = rows[rows[name].isna() if value is None else rows[name] == value]
    (row,) = rows[(rows.metric == metric) & (rows.modality == modality) & (rows.layer == 1)].to_dict("records")
    return row


def test_what_is_lost_is_measured_per_layer_and_modality(rows):
    assert set(rows.layer) == {0, 1}
    together = {metric: value_of(rows, f"{metric}_drop", "blank") for metric in ("d_prime", "accuracy", "margin")}
    assert together["d_prime"]["value"] == pytest.approx(0, abs=1e-6)
    assert together["margin"]["value"] == pytest.approx(0, abs=1e-6)
    assert together["accuracy"]["ci_low"] > 0.2
    lost = {metric: value_of(rows, f"{metric}_drop", "typographic") for metric in ("d_prime", "accuracy", "margin")}
    assert all(row["ci_low"] > 0 for row in lost.values())
    assert value_of(rows, "margin", "text")["value"] > 2 and value_of(rows, "margin", "typographic")["value"] < 0


def test_the_movement_of_each_class_is_measured(rows):
    for category, expected in (("harmful", -6), ("harmless", 0)):
        assert value_of(rows, "coordinate_shift", "typographic", category)["value"] == pytest.approx(expected, abs=1e-6)
        moved = value_of(rows, "coordinate_shift", "blank", category)
        assert moved["value"] == pytest.approx(-5) and moved["n"] == 60


def test_fillers_are_a_control_of_text(rows):
    assert FILLER not in set(rows.modality)
    assert value_of(rows, "d_prime_drop", "text", control=FILLER)["value"] == pytest.approx(0, abs=1e-6)
    assert not ((rows.modality == "text") & rows.control.isna() & rows.metric.str.endswith("_drop")).any()


def test_without_text_nothing_is_lost():
    rng = np.random.default_rng(0)
    data = ProbeData({"blank": dataset(rng.normal(size=(120, 1, 3)).astype(np.float32))}, SETTINGS)
    rows = list(paired_rows(data, {"blank": rng.normal(size=(1, 120))}))
    assert [row["metric"] for row in rows] == ["margin"]


def test_the_measures_are_named_once_with_their_limits():
    assert [(each.metric, each.floor, each.ceiling) for each in MEASURES] == [
        ("auroc", 0.5, 1.0),
        ("d_prime", 0.0, None),
        ("accuracy", 0.5, 1.0),
        ("margin", None, None),
    ]


def test_the_definitions_give_the_numbers_of_the_audit_of_the_built_in_model():
    """Layer 7, test split, text and a blank picture: margin from 61 to 6, d' lost 4.3 with an interval far from 0."""
    points = pd.read_csv(POINTS)
    points = points[points.layer == 7]
    text, blank = (points[points.modality == name] for name in ("text", "blank"))
    assert text.text.tolist() == blank.text.tolist()
    harmful, pairs = text.harmful.to_numpy(), np.arange(len(text)) // 2
    scores = [part.coordinate.to_numpy() for part in (text, blank)]
    assert [round(margin(harmful, each).value) for each in scores] == [61, 6]
    lost = d_prime_drop(harmful, *scores, pairs)
    assert lost.value == pytest.approx(4.3, abs=0.1) and 2.5 < lost.ci_low and lost.ci_high < 6
