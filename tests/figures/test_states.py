"""Points, ellipses and ridges are drawn where the table has them."""

import numpy as np
import pandas as pd
import pytest

import figures
from figures.states import COVERED

MODALITIES = ("text", "blank", "noise", "typographic")
WORDS = ["text only", "blank picture", "noise picture", "text in picture"]


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    rows = [
        {"modality": m, "layer": layer, "harmful": h, "pc1": rng.normal(), "pc2": rng.normal()}
        | {"coordinate": h + rng.normal()}
        for m in MODALITIES
        for layer in (0, 1)
        for h in (True, False)
        for _ in range(9)
    ]
    return pd.DataFrame(rows)


def drawn_points(axis):
    return np.concatenate([np.asarray(drawn.get_offsets()) for drawn in axis.collections])


def test_hidden_states_draw_each_point_in_the_panel_of_its_modality_and_layer(points):
    panels = np.array(figures.hidden_states(points).axes).reshape(4, 2)
    assert [axis.get_title() for axis in panels[0]] == ["layer 0", "layer 1"]
    assert [axis.get_ylabel().replace("\n", " ") for axis in panels[:, 0]] == WORDS
    for row, name in zip(panels, MODALITIES, strict=True):
        for layer, axis in enumerate(row):
            table = points[(points.layer == layer) & (points.modality == name)][["pc1", "pc2"]].to_numpy()
            np.testing.assert_allclose(np.sort(drawn_points(axis), axis=0), np.sort(table, axis=0))


def test_a_single_layer_gets_a_panel_for_each_modality(points):
    panels = [axis for axis in figures.hidden_states(points, [1]).axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == WORDS


def test_an_ellipse_contains_the_share_of_a_normal_class_that_the_caption_states():
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(20_000, 2)) @ np.array([[2.0, 0.0], [1.5, 0.5]]) + [3, -1]
    table = pd.DataFrame(samples, columns=["pc1", "pc2"]).assign(modality="text", layer=0, harmful=True)
    figure = figures.hidden_states(table)
    (ellipse,) = figure.axes[0].patches
    inside = ellipse.get_path().contains_points(ellipse.get_patch_transform().inverted().transform(samples))
    assert inside.mean() == pytest.approx(COVERED, abs=0.01)
    assert "n = 20000 requests" in figures.caption(figure) and "90%" in figures.caption(figure)


def test_many_layers_are_thinned_from_the_first_to_the_last():
    layer_points = pd.DataFrame({"modality": "text", "harmful": True, "pc1": [0.0, 1.0], "pc2": [1.0, 0.0]})
    table = pd.concat([layer_points.assign(layer=layer) for layer in range(32)])
    titles = [axis.get_title() for axis in figures.hidden_states(table).axes]
    assert len(titles) == 4 and titles[0] == "layer 0" and titles[-1] == "layer 31"


def test_an_absent_layer_is_named(points):
    with pytest.raises(ValueError, match="hidden_states has no layer 9; expected some of 0 to 1"):
        figures.hidden_states(points, [9])
    with pytest.raises(ValueError, match="coordinate_ridges of layer 9 got an empty table"):
        figures.coordinate_ridges(points, 9)


def test_ridges_mark_every_coordinate_and_the_threshold(points):
    axis = figures.coordinate_ridges(points, 0, threshold=0.4).axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == WORDS[::-1]
    ticks = [line for line in axis.lines if line.get_marker() == "|"]
    for line in ticks:
        name = MODALITIES[::-1][round(float(line.get_ydata()[0]))]
        own = points[(points.layer == 0) & (points.modality == name)]
        own = own[own.harmful == (line.get_label() == "harmful")]
        np.testing.assert_allclose(line.get_xdata(), own.coordinate)
    assert len(ticks) == 8
    ridges = [line for line in axis.lines if line.get_marker() == "None" and len(line.get_xdata()) > 2]
    assert len(ridges) == 8 and all(np.ptp(line.get_ydata()) > 0.5 for line in ridges)
    assert any(set(line.get_xdata()) == {0.4} for line in axis.lines)


def test_empty_columns_are_named(points):
    with pytest.raises(ValueError, match="hidden_states needs values in .*; empty: pc2"):
        figures.hidden_states(points.assign(pc2=np.nan))


def test_files_are_reproducible_and_contain_their_caption(points, tmp_path):
    figure = figures.hidden_states(points, [1])
    first, second = ([path.read_bytes() for path in figures.save(figure, tmp_path, name)] for name in "ab")
    assert first == second and first[0].startswith(b"%PDF")
    assert b"Hidden states at the last prompt token" in first[1]


def test_ridges_show_the_border_of_text_where_the_table_has_it(points):
    def dotted(table):
        figure = figures.coordinate_ridges(table, 0)
        lines = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
        return [float(line.get_xdata()[0]) for line in lines], "border of text" in figures.caption(figure)

    assert dotted(points) == ([], False)
    assert dotted(points.assign(border=points.layer + 0.5)) == ([0.5], True)
