import pytest

from studies.experiment.config import Config
from studies.experiment.experiment import load
from studies.guards.anchor_fits import AnchorFits, traced_anchors
from studies.guards.sweep_grid import Grid, GridError


@pytest.fixture(scope="module")
def made():
    material = load(Config(scale="tiny", split="validation"))
    return AnchorFits(traced_anchors(material), is_paired=material.is_paired)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("single", [(0,), (1,), (2,), (3,)]),
        ("every:3", [(0,), (3,)]),
        ("windows:3", [(0, 1, 2), (1, 2, 3)]),
        ("start-to-end", [(0, 1, 2, 3), (1, 2, 3), (2, 3), (3,)]),
        ("middle-to-last", [(2, 3)]),
        ("0,2-3", [(0,), (2,), (3,)]),
    ],
)
def test_layers_in_words(word, expected):
    assert Grid(layers=(word,)).windows(4) == expected


def test_every_combination_stands_there_once(made):
    grid = Grid(
        layers=("single", "start-to-end"),
        rules=("ablate", "substitute"),
        gates=("always", "sign", "threshold", "probe"),
        scopes=("change", "target"),
        strengths=(1.0, 2.0),
    )
    found, left_out = grid.configurations(made)
    # 8 single layers and 7 longer runs; a gate that is always open has one scope; `ablate` has no strength.
    assert len(found) == (8 + 7) * (3 * 2 + 1) * (1 + 2) and not left_out
    assert len({one.key("blank") for one in found}) == len(found)
    assert all(one.guard.threshold for one in found if one.guard.gate == "threshold")


def test_what_does_not_exist_is_left_out_and_counted(made):
    found, left_out = Grid(layers=("0",), estimators=("paired_svd", "mean_diff"), ranks=(1, 2)).configurations(made)
    assert {(one.guard.direction.estimator, one.guard.direction.rank) for one in found} == {
        ("paired_svd", 1),
        ("paired_svd", 2),
        ("mean_diff", 1),
    }
    assert left_out == {"mean_diff has one direction": 2}


def test_directions_from_elsewhere_and_of_other_sources(made):
    found, _ = Grid(layers=("0", "4"), direction_layers=(None, 4), sources=("vlm_text", "llm")).configurations(made)
    fitted_at = {(one.guard.layers[0], one.guard.fitted_at(one.guard.layers[0])) for one in found}
    assert fitted_at == {(0, 0), (0, 4), (4, 4)} and {one.source for one in found} == {"vlm_text", "llm"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rules": ()}, "a grid with no rules"),
        ({"gates": ("door",)}, r"gates \['door'\] do not exist; expected some of always"),
        ({"ranks": (0,)}, "expected ranks from 1"),
        ({"strengths": (float("nan"),)}, "strengths from 0"),
        ({"strengths": (float("inf"),)}, "strengths from 0"),
    ],
)
def test_axes_that_mean_nothing_are_named(given, message):
    with pytest.raises(GridError, match=message):
        Grid(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": ("0,9",)}, r"layers \[9\] do not exist; layers go from 0 to 7"),
        ({"layers": ("windows:9",)}, "expected single, every:N, windows:N"),
        ({"layers": ("some",)}, "layers 'some'"),
        ({"direction_layers": (8,)}, "direction_layer 8 does not exist"),
        ({"estimators": ("mean_diff",), "ranks": (2,)}, "nothing is left of the grid: mean_diff has one direction"),
    ],
)
def test_layers_that_do_not_exist_and_empty_grids_are_named(given, message, made):
    with pytest.raises(GridError, match=message):
        Grid(**given).configurations(made)


def test_a_grid_in_words():
    grid = Grid.of({"layers": "single windows:2", "ranks": "1,2", "rules": "ablate", "strengths": "0.5, 2"}, Grid())
    assert grid == Grid(layers=("single", "windows:2"), ranks=(1, 2), rules=("ablate",), strengths=(0.5, 2.0))
    with pytest.raises(GridError, match="ranks 'two'"):
        Grid.of({"ranks": "two"}, Grid())


def test_one_value_is_an_axis_too():
    assert Grid(layers=(0, 3), rules="substitute", strengths=2.0) == Grid(
        ("0", "3"), rules=("substitute",), strengths=(2.0,)
    )
    assert Grid.of({"direction_layers": "own,2-3"}, Grid()).direction_layers == (None, 2, 3)


def test_a_threshold_lies_between_the_classes_where_the_gate_is_asked(made):
    """Also where the direction was fitted at another layer, or on another token."""
    import torch

    axes = {"gates": ("threshold",), "rules": ("substitute",), "tokens": ("last", "instruction")}
    found, _ = Grid(layers=("2", "6"), direction_layers=(None, 4), **axes).configurations(made)
    anchors = made.anchors["vlm_text"]
    harmful = torch.from_numpy(anchors.harmful.values)
    for one in found:
        layer = one.guard.layers[0]
        states = torch.from_numpy(anchors.resid_post.sel(token="last").values)
        own = states[:, layer] @ one.guard.basis(layer)[0]
        assert one.guard.threshold == pytest.approx(((own[harmful].mean() + own[~harmful].mean()) / 2).item(), rel=1e-3)
    assert len(found) == 8
