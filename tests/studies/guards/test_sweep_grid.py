from dataclasses import replace

import pytest

from studies.cli.grid_options import grid_from_options
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.guards import anchor_fits
from studies.guards.anchor_fits import AnchorFits
from studies.guards.sweep_grid import Grid, GridError


@pytest.fixture(scope="module")
def fits():
    return AnchorFits.on(load_experiment(Config(scale="tiny", split="validation")))


def guards_of(configurations):
    return [configuration.guard for configuration in configurations]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("single", [(0,), (1,), (2,), (3,)]),
        ("every:3", [(0,), (3,)]),
        ("spread:2", [(1,), (3,)]),
        ("spread:9", [(0,), (1,), (2,), (3,)]),
        ("windows:3", [(0, 1, 2), (1, 2, 3)]),
        ("start-to-end", [(0, 1, 2, 3), (1, 2, 3), (2, 3), (3,)]),
        ("middle-to-last", [(2, 3)]),
        ("0,2-3", [(0,), (2,), (3,)]),
    ],
)
def test_words_name_the_layers_of_each_guard(word, expected):
    assert Grid(layers=(word,)).windows(4) == expected


@pytest.mark.parametrize("word", ["8-3", "3-", "-3", "", ",", "one"])
def test_a_word_that_names_no_layers_is_an_error(word):
    with pytest.raises(GridError, match=f"layers '{word}'; expected single, every:N"):
        Grid(layers=("single", word)).windows(12)


def test_every_combination_occurs_once(fits):
    grid = Grid(
        layers=("single", "start-to-end"),
        rules=("ablate", "substitute"),
        gates=("always", "sign", "threshold", "probe"),
        scopes=("change", "target"),
        strengths=(1.0, 2.0),
    )
    configurations, left_out = grid.configurations(fits)
    # 8 single layers and 7 longer runs; a gate that is always open has one scope; `ablate` has no strength.
    assert len(configurations) == (8 + 7) * (3 * 2 + 1) * (1 + 2) and not left_out
    assert len({configuration.key("blank") for configuration in configurations}) == len(configurations)
    assert all(guard.threshold for guard in guards_of(configurations) if guard.gate == "threshold")


def test_combinations_that_do_not_exist_are_left_out_and_counted(fits):
    grid = Grid(layers=("0",), estimators=("paired_svd", "mean_diff"), ranks=(1, 2))
    configurations, left_out = grid.configurations(fits)
    assert {(guard.direction.estimator, guard.direction.rank) for guard in guards_of(configurations)} == {
        ("paired_svd", 1),
        ("paired_svd", 2),
        ("mean_diff", 1),
    }
    assert left_out == {"mean_diff has one direction": 2}


def test_directions_of_other_layers_and_sources_are_combined(fits):
    grid = Grid(layers=("0", "4"), direction_layers=(None, 4), sources=("vlm_text", "llm"))
    configurations, _ = grid.configurations(fits)
    fitted_at = {(guard.layers[0], guard.fitted_at(guard.layers[0])) for guard in guards_of(configurations)}
    assert fitted_at == {(0, 0), (0, 4), (4, 4)}
    assert {configuration.source for configuration in configurations} == {"vlm_text", "llm"}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"rules": ()}, "a grid with no rules"),
        ({"gates": ("door",)}, r"gates \['door'\] do not exist; expected some of always"),
        ({"ranks": (0,)}, "expected ranks from 1"),
        ({"strengths": (float("nan"),)}, "strengths from 0"),
        ({"strengths": (float("inf"),)}, "strengths from 0"),
    ],
)
def test_invalid_axes_are_named(axes, message):
    with pytest.raises(GridError, match=message):
        Grid(**axes)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"layers": ("0,9",)}, r"layers \[9\] do not exist; layers go from 0 to 7"),
        ({"layers": ("windows:9",)}, "expected single, every:N, spread:N, windows:N"),
        ({"layers": ("some",)}, "layers 'some'"),
        ({"direction_layers": (8,)}, "direction_layer 8 does not exist"),
        ({"estimators": ("mean_diff",), "ranks": (2,)}, "nothing is left of the grid: mean_diff has one direction"),
    ],
)
def test_layers_that_do_not_exist_and_empty_grids_are_named(axes, message, fits):
    with pytest.raises(GridError, match=message):
        Grid(**axes).configurations(fits)


def test_a_grid_is_read_from_typed_text():
    grid = grid_from_options(
        {"layers": "single windows:2", "ranks": "1,2", "rules": "ablate", "strengths": "0.5, 2"}, Grid()
    )
    assert grid == Grid(layers=("single", "windows:2"), ranks=(1, 2), rules=("ablate",), strengths=(0.5, 2.0))
    with pytest.raises(GridError, match="ranks 'two'"):
        grid_from_options({"ranks": "two"}, Grid())


def test_a_single_value_is_an_axis():
    assert Grid(layers=(0, 3), rules="substitute", strengths=2.0) == Grid(
        ("0", "3"), rules=("substitute",), strengths=(2.0,)
    )
    assert grid_from_options({"direction_layers": "own,2-3"}, Grid()).direction_layers == (None, 2, 3)


def test_a_threshold_is_the_midpoint_of_the_classes_where_the_gate_reads(fits):
    """The same holds if the direction was fitted at another layer, or on another token."""
    import torch

    axes = {"gates": ("threshold",), "rules": ("substitute",), "tokens": ("last", "instruction")}
    configurations, _ = Grid(layers=("2", "6"), direction_layers=(None, 4), **axes).configurations(fits)
    anchors = fits.anchors["vlm_text"]
    harmful = torch.from_numpy(anchors.harmful.values)
    for guard in guards_of(configurations):
        layer = guard.layers[0]
        states = torch.from_numpy(anchors.resid_post.sel(token="last").values)
        coords = states[:, layer] @ guard.basis(layer)[0]
        midpoint = ((coords[harmful].mean() + coords[~harmful].mean()) / 2).item()
        assert guard.threshold == pytest.approx(midpoint, rel=1e-3)
    assert len(configurations) == 8


def test_the_studies_of_a_run_share_what_is_fitted_on_the_anchors(monkeypatch):
    experiment, traced = load_experiment(Config(scale="tiny", split="validation")), []
    monkeypatch.setattr(anchor_fits, "trace_anchors", lambda own: traced.append(own) or {})
    first = AnchorFits.on(experiment)
    assert AnchorFits.on(experiment) is first and traced == [experiment]
    other = replace(experiment)
    assert AnchorFits.on(other) is not first and traced == [experiment, other]
