"""Figures of single prompts: the gate as a classifier, and what the guard changed."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

import figures


@pytest.fixture
def changes():
    """Two harmful and three harmless requests; the picture is read wrongly once."""
    rows = []
    for modality, reference, coordinates in (
        ("blank", "prompt_text", [3.0, 2.0, -1.0, -2.0, -3.0]),
        ("typographic", "prompt_text", [-1.0, -1.0, -1.0, -1.0, -1.0]),
        ("typographic", "transcription", [3.0, 2.0, 2.5, -2.0, -3.0]),
    ):
        for i, (harmful, reference_coordinate) in enumerate(
            zip([True, True, False, False, False], coordinates, strict=True)
        ):
            before = 0.1 * i - 0.2
            rows.append(
                {"modality": modality, "reference": reference, "harmful": harmful, "layer": 7}
                | {"coordinate": before, "reference_coordinate": reference_coordinate}
                | {"gate": reference_coordinate > 0}
                | {"after": reference_coordinate if reference_coordinate > 0 else before}
                | {"refused": False, "guarded_refused": reference_coordinate > 0}
            )
    return pd.DataFrame(rows)


def test_the_roc_passes_through_the_rates_of_every_threshold(changes):
    figure = figures.gate_roc(changes)
    blank, own_text, transcription = figure.axes
    assert [axis.get_title().replace("\n", " ") for axis in figure.axes] == [
        "blank picture: reads the prompt's text",
        "text in picture: reads the prompt's text",
        "text in picture: reads transcription",
    ]
    curve = next(line for line in transcription.lines if len(line.get_xdata()) > 2)
    corners = set(zip(np.round(curve.get_xdata(), 3), curve.get_ydata(), strict=True))
    assert (0.0, 0.5) in corners and (0.333, 0.5) in corners and (0.333, 1.0) in corners
    assert [axis.texts[0].get_text() for axis in (blank, own_text)] == ["AUROC 1.00", "AUROC 0.50"]


def test_the_gate_of_the_guard_is_drawn_at_its_rates_with_wilson_intervals(changes):
    axis = figures.gate_roc(changes).axes[2]
    (container,) = axis.containers
    line, _, (horizontal, vertical) = container
    assert (line.get_xdata()[0], line.get_ydata()[0]) == (pytest.approx(1 / 3), 1.0)
    wilson = binomtest(1, 3).proportion_ci(method="wilson")
    interval = horizontal.get_segments()[0][:, 0]
    np.testing.assert_allclose(interval, [wilson.low, wilson.high])
    assert vertical.get_segments()[0][:, 1].min() == pytest.approx(binomtest(2, 2).proportion_ci(method="wilson").low)


def test_a_gate_needs_both_classes(changes):
    with pytest.raises(ValueError, match="got only one of the two in modality blank, reference prompt_text"):
        figures.gate_roc(changes[changes.harmful])


def test_each_prompt_is_drawn_at_its_coordinates_with_its_verdicts_below(changes):
    figure = figures.what_changed(changes)
    panels = np.array(figure.axes).reshape(4, 2)
    assert panels[0, 0].get_title() == "harmful requests" and panels[2, 0].get_ylabel() == "text\nin picture"
    # Inside a picture the transcription is drawn, not the prompt's own text.
    before, after = (line.get_ydata() for line in panels[2, 1].lines[:2])
    np.testing.assert_allclose(before, [0.0, 0.1, 0.2])
    np.testing.assert_allclose(after, [2.5, 0.1, 0.2])
    strip = panels[3, 1].collections[0].get_array().reshape(2, 3)
    np.testing.assert_array_equal(strip, [[0, 0, 0], [1, 0, 0]])
    assert "n = 2 to 3 of each class" in figures.caption(figure)
    assert "text in picture: transcription" in figures.caption(figure)


@pytest.mark.parametrize("draw", [figures.gate_roc, figures.what_changed])
def test_columns_that_are_missing_or_empty_are_named(draw, changes):
    with pytest.raises(ValueError, match="missing: gate"):
        draw(changes.drop(columns="gate"))
    with pytest.raises(ValueError, match="empty: reference_coordinate"):
        draw(changes.assign(reference_coordinate=np.nan))
