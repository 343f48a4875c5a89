"""Figures are as wide as the page, and can be read there."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

import figures
from figures.page import LEAST_CONTRAST, contrast, ink_on, page_width, wrapped
from studies import claims_by_model
from tests.figures.legibility import problems

REFERENCE = Path("results/reference")
MODELS = {"built-in": REFERENCE / "quick", "llava-qwen-0.5b": REFERENCE / "llava-qwen-0.5b"}
LAYER = {"built-in": 6, "llava-qwen-0.5b": 23}
FIGURES = {
    "hidden_states": ("points", figures.hidden_states),
    "probe_auroc": ("separability", figures.probe_auroc),
    "degradation": ("separability", figures.degradation),
    "separation": ("separability", figures.separation),
    "transfer": ("separability", figures.transfer),
    "coordinates": ("points", figures.coordinate_ridges),
    "directions": ("readings", figures.directions),
    "refusal_lens": ("signal_path", figures.refusal_lens),
    "attribution": ("signal_path", figures.attribution),
    "patching_map": ("signal_path", figures.patching_map),
    "layer_sweep": ("layer_sweep", figures.layer_sweep),
    "pareto": ("layer_sweep", figures.pareto),
    "random_directions": ("random_directions", figures.random_directions),
    "layer_selection": ("layer_selection", figures.layer_selection),
    "readings": ("readings", figures.readings),
    "gate_roc": ("changes", figures.gate_roc),
    "what_changed": ("changes", figures.what_changed),
    "defence": ("defence", figures.attack_success_map),
    "safety_tradeoff": ("defence", figures.safety_tradeoff),
    "judge_agreement": ("judges", figures.judge_agreement),
}


def drawn(name: str, model: str) -> Figure:
    table, draw = FIGURES[name]
    rows = pd.read_csv(MODELS[model] / f"{table}.csv", low_memory=False)
    return draw(rows, LAYER[model]) if name in ("transfer", "coordinates") else draw(rows)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_of_the_built_in_model_can_be_read_at_the_width_of_a_page(name):
    figure = drawn(name, "built-in")
    assert figure.get_size_inches()[0] == 5.5 and figure.get_size_inches()[1] <= 9
    assert problems(figure) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", figures.PAGE_WIDTHS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read_at_the_width_of_each_venue(name, model, width):
    with figures.page(width):
        figure = drawn(name, model)
    assert figure.get_size_inches()[0] == width
    assert problems(figure) == []


def bench_table() -> pd.DataFrame:
    return pd.read_csv(REFERENCE / "bench" / "bench.csv")


def claims_table() -> pd.DataFrame:
    return pd.read_csv(REFERENCE / "models" / "claims_by_model.csv")


def attacks() -> pd.DataFrame:
    return claims_by_model.attacks(MODELS)


def targets_table() -> pd.DataFrame:
    names = ["attack success without a guard, LLaVA-1.5-7B", "the same, guarded", "cosine of the directions"]
    rows = [{"target": name, "theirs": 0.3 * i, "ours": 0.3 * i + 0.05} for i, name in enumerate(names, start=1)]
    return pd.DataFrame(rows).assign(low=lambda t: t.ours - 0.1, high=lambda t: t.ours + 0.1, verdict="reproduced")


def maps_table() -> tuple[pd.DataFrame, Image.Image]:
    rng = np.random.default_rng(0)
    rows = [
        {"measure": measure, "layer": layer, "row": row, "column": column, "value": rng.normal()}
        for measure in ("attention", "rollout", "gradient", "patching")
        for layer in range(8)
        for row in range(6)
        for column in range(6)
    ]
    table = pd.DataFrame(rows)
    return table.assign(value=table.value.abs().where(table.measure.isin(["attention", "rollout"]), table.value)), (
        Image.new("RGB", (72, 72), "tan")
    )


def explained() -> pd.DataFrame:
    columns = {"layer": [3, 7], "coordinate": [1.0, 2.0], "reference_coordinate": [4.0, 5.0], "gate": [True, False]}
    return pd.DataFrame(columns | {"after": [4.0, 2.0], "delta_norm": [0.3, 0.0]})


def full_table(name: str) -> pd.DataFrame:
    return pd.read_csv(REFERENCE / "full" / f"{name}.csv", low_memory=False)


OTHERS = {
    "attack_curves": lambda: figures.attack_curves(full_table("adaptive")),
    "stress_map": lambda: figures.stress_map(full_table("stress")),
    "equal_strength": lambda: figures.equal_strength(full_table("equal_strength")),
    "detection_auroc": lambda: figures.detection_auroc(full_table("detection/detection")),
    "detection_matrix": lambda: figures.detection_matrix(full_table("detection/detection")),
    "headline": lambda: figures.headline(attacks()),
    "attack_success_by_model": lambda: figures.attack_success_by_model(attacks()),
    "claims_by_model": lambda: figures.claims_by_model(claims_table()),
    "bench": lambda: figures.bench_ratios(bench_table()),
    "targets": lambda: figures.targets(targets_table()),
    "picture_map": lambda: figures.picture_map(*maps_table()),
    "guard_explained": lambda: figures.guard_explained(explained()),
    "one layer of hidden_states": lambda: figures.hidden_states(
        pd.read_csv(MODELS["built-in"] / "points.csv", low_memory=False), [6]
    ),
}


def widths():
    """Yield each figure and width; all widths take a minute, so those that are not the default are slow."""
    for name in OTHERS:
        for i, width in enumerate(figures.PAGE_WIDTHS):
            yield pytest.param(name, width, marks=[pytest.mark.slow] if i else [], id=f"{name}-{width}")


@pytest.mark.parametrize(("name", "width"), list(widths()))
def test_figures_of_several_runs_and_of_single_prompts_can_be_read_at_each_width(name, width):
    with figures.page(width):
        figure = OTHERS[name]()
    assert figure.get_size_inches()[0] == width
    assert problems(figure) == []


def test_every_figure_of_the_package_is_looked_at():
    looked_at = {draw.__name__ for _, draw in FIGURES.values()} | {*OTHERS, "bench_ratios"}
    public = {name for name in figures.__all__ if isinstance(getattr(figures, name), type(drawn))}
    assert public - looked_at == {"caption", "first_judge", "page", "paper_style", "save"}


def test_a_saved_file_is_as_wide_as_the_page(tmp_path):
    with figures.page(3.25):
        assert page_width() == 3.25
        paths = figures.save(figures.targets(targets_table()), tmp_path, "targets")
    assert page_width() == 5.5
    box = re.search(rb"/MediaBox \[ *0 0 ([\d.]+) ", paths[0].read_bytes())
    assert float(box[1]) == pytest.approx(3.25 * 72, abs=0.01)
    with Image.open(paths[1]) as picture:
        assert picture.width == 3.25 * 200


@pytest.mark.parametrize("width", [2.9, 11, float("nan")])
def test_a_width_that_no_page_has_is_refused(width):
    with pytest.raises(ValueError, match="expected 3 to 10, such as 5.5 for text of one column"):
        figures.page(width)


def test_ink_can_be_read_on_every_colour():
    rng = np.random.default_rng(0)
    assert min(contrast(ink_on(color), color) for color in rng.random((500, 3))) >= LEAST_CONTRAST
    assert contrast("white", "black") == pytest.approx(21) and contrast("0.3", "0.3") == 1
    # The worked example of WCAG: #777777 on white is just too light.
    assert contrast("#777777", "white") == pytest.approx(4.48, abs=0.01)


def test_lines_are_broken_at_words_and_no_wider_than_asked():
    assert wrapped("one two three", 100) == "one two three"
    assert wrapped("one two three", 0.1) == "one\ntwo\nthree"


def test_what_cannot_be_read_is_found():
    figure, axis = plt.subplots(figsize=(3, 2))
    plt.close(figure)
    axis.text(0.5, 0.5, "small", fontsize=6)
    axis.text(0.1, 0.1, "one", fontsize=8)
    axis.text(0.11, 0.1, "other", fontsize=8)
    axis.text(2, 0.5, "outside", fontsize=8)
    axis.add_patch(Rectangle((0, 0.7), 1, 0.3, color="0.5"))
    axis.text(0.5, 0.8, "pale", color="0.8", fontsize=8)
    found = "; ".join(problems(figure))
    assert "6 pt: 'small'" in found and "overlap: 'one' and 'other'" in found
    assert "beyond the page: 'outside'" in found and "'pale'" in found and "contrast" in found
    assert "'one' and 'small'" not in found
