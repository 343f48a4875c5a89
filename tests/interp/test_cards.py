"""The cards of models, directions and guards in Jupyter."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch

from interp import VLM, Guard, SafetyDirection, display, to_prompts, trace
from interp.cards import POSITION_NAMES, formula_of
from interp.display import Line, card, chart, formula, table
from interp.guard import CONTROLS, POSITIONS
from interp.projection import GATES, RULES, ProbeGate

MARKUP = "<script>alert('&')</script>"


@pytest.fixture(scope="module")
def direction(tiny_vlm):
    from studies.organism import language

    anchors = language.queries("anchors")[:8]
    return SafetyDirection.fit(trace(tiny_vlm, to_prompts(anchors, "text", tiny_vlm.picture_size)))


def parsed(html: str) -> ET.Element:
    """Parse HTML; fails if a tag is left open, or an ampersand is not escaped."""
    return ET.fromstring(f"<body>{html}</body>")


def text_of(html: str) -> str:
    return " ".join(" ".join(parsed(html).itertext()).split())


def rows_of(html: str) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in parsed(html).iter("tr")]


def test_a_model_shows_its_parts_and_their_sites(tiny_vlm):
    html = replace(tiny_vlm, name="tiny")._repr_html_()
    _, vision, projector, language = rows_of(html)
    n_parameters = sum(parameter.numel() for parameter in tiny_vlm.blocks.parameters())
    assert language == [
        "language model",
        "LlamaDecoderLayer",
        "3",
        "32",
        f"{n_parameters / 1e3:.3g} k",
        "resid_pre, attn_out, mlp_out, resid_post",
    ]
    assert vision[-1] == "vision_resid_post" and projector[-1] == "projector_out"
    text = text_of(html)
    for fact in ("VLM tiny", "LlavaForConditionalGeneration (llava)", "float32 on cpu", "96 x 96 pixels", "causal"):
        assert fact in text


def test_a_model_in_a_terminal_is_one_line_without_its_folder(tiny_vlm):
    named = replace(tiny_vlm, name="tiny")
    assert repr(named) == "VLM('tiny': LlavaForConditionalGeneration, 3 layers of width 32, float32 on cpu)"


def test_a_model_shows_peculiarities_of_its_family(vlm_of):
    assert "pictures through cross-attention" in text_of(vlm_of("Mllama")._repr_html_())
    assert "attends to itself in both directions" in text_of(vlm_of("PaliGemma")._repr_html_())


def test_the_row_of_a_missing_part_says_so(tiny_vlm, monkeypatch):
    monkeypatch.setattr("interp.families.Family.projector", "model.nothing")
    bare = VLM(tiny_vlm.model, None, name="bare")
    monkeypatch.setattr(VLM, "projector", property(lambda vlm: vlm.model.nothing))
    assert "not found" in rows_of(bare._repr_html_())[2][1]
    assert "no processor" in text_of(bare._repr_html_())


def test_a_type_without_a_card_is_an_error():
    with pytest.raises(TypeError, match="int has no card; register one with @display.html.register"):
        display.html(3)


def test_markup_in_a_name_stays_text(tiny_vlm, direction):
    vlm = replace(tiny_vlm, name=MARKUP)
    guard = Guard(replace(direction, anchors=MARKUP), (1,), model=MARKUP, validation={MARKUP: 0.5})
    for shown_object in (vlm, guard, guard.direction):
        html = shown_object._repr_html_()
        assert "<script" not in html and MARKUP in text_of(html)
    assert MARKUP in text_of(card(MARKUP, MARKUP, {MARKUP: MARKUP}, table([MARKUP], [[MARKUP]])))
    drawn = chart(MARKUP, [Line(MARKUP, [0, 1], [0.0, 1.0], color=MARKUP, dash=MARKUP)])
    assert "<script" not in drawn and MARKUP in text_of(drawn)
    assert text_of(formula(MARKUP)) == MARKUP and "c<sub>q</sub>" in formula("α c_q")


def test_a_direction_shows_explained_variance_and_class_means_of_every_layer(direction):
    html = direction._repr_html_()
    header, *rows = rows_of(html)
    assert header == ["layer", "variance explained", "harmless μ₋", "midpoint", "harmful μ₊"] and len(rows) == 3
    for layer, row in enumerate(rows):
        numbers = (direction.explained[layer].sum(), direction.harmless[layer, 0], direction.harmful[layer, 0])
        explained, harmless, harmful = (f"{number.item():.3g}" for number in numbers)
        assert row == [str(layer), explained, harmless, f"{direction.midpoint(layer):.3g}", harmful]
    assert direction.anchors in html and "rank 1" in html and "paired_svd" in html
    assert len(list(parsed(html).iter("polyline"))) == 3


def test_the_layers_of_a_deep_model_are_folded():
    means = torch.arange(40.0)[:, None]
    deep = SafetyDirection(torch.eye(64)[:40, None], "pca", means, -means, torch.zeros(40, 64), means / 40)
    assert len(list(parsed(deep._repr_html_()).iter("details"))) == 1


def test_a_direction_that_was_not_fitted_says_so(direction):
    assert "the direction was not fitted" in SafetyDirection(direction.basis, "random")._repr_html_()


@pytest.mark.parametrize(
    "settings, formula",
    [
        ({}, "h* = h + (c_q − c) V"),
        ({"strength": 2.0}, "h* = h + (2 c_q − c) V"),
        ({"rule": "ablate"}, "h* = h + (0 − c) V"),
        ({"rule": "class_mean", "strength": 0.5}, "h* = h + (μ₋ + 0.5 (μ₊ − μ₋) − c) V"),
        ({"rule": "amplify"}, "h* = h + ((1 + 1) c − c) V"),
        ({"control": "sign_flipped"}, "h* = h − (c_q − c) V"),
        ({"control": "full_state", "strength": 3.0}, "h* = 3 h_q"),
    ],
)
def test_the_formula_contains_rule_strength_and_control(direction, settings, formula):
    assert formula_of(Guard(direction, (1,), **settings)) == formula


def test_a_guard_shows_where_it_acts_its_gate_and_its_numbers(direction):
    guard = Guard(direction, (0, 1), gate="threshold", threshold=0.25, model="tiny", validation={"refusal": 0.93})
    html = guard._repr_html_()
    text = text_of(html)
    for fact in ("substitute, for tiny", "layers 0 to 1 (of 0 to 2), last prompt token", "above 0.25", "prompt_text"):
        assert fact in text
    assert ["refusal", "0.93"] in rows_of(html)
    # Guarded layers are marked in the chart.
    assert [mark.find("title").text for mark in parsed(html).iter("rect")] == ["layer 0", "layer 1"]
    assert "layers 0, 2 (" in text_of(Guard(direction, (0, 2))._repr_html_())
    assert "states are still projected" in Guard(direction, (0,), gate_scope="target")._repr_html_()


def test_every_setting_of_a_guard_can_be_shown(direction):
    probe = ProbeGate(torch.ones(32), 0.0)
    for settings in (
        *({"rule": rule} for rule in RULES),
        *({"gate": gate, "probe": probe if gate == "probe" else None} for gate in GATES),
        *({"positions": positions} for positions in POSITIONS),
        *({"control": control} for control in CONTROLS),
        {"keeps_norm": True, "frozen_shift": True},
        {"source": "llm", "direction_layer": 0},
    ):
        assert text_of(Guard(direction, (1,), **settings)._repr_html_())
    assert set(POSITION_NAMES) == set(POSITIONS)


def test_a_saved_guard_keeps_its_numbers_and_its_model(tiny_vlm, direction, tmp_path):
    numbers = {"refusal": 0.5, "kl": 0.001}
    guard = Guard(direction, (1,), validation=numbers)
    guard.save_pretrained(tmp_path, tiny_vlm)
    loaded = Guard.from_pretrained(tmp_path, tiny_vlm)
    assert loaded.validation == numbers and loaded.model == tiny_vlm.name
    guard.save_pretrained(tmp_path, tiny_vlm, validation={})
    assert Guard.from_pretrained(tmp_path, tiny_vlm).validation == {}
    assert replace(guard, model="other", validation={}) == guard


def test_tables_leave_nan_empty_and_align_numbers_to_the_right():
    html = table(["name", "value"], [["a", 0.123456], ["b", float("nan")]], marked=[0])
    assert rows_of(html)[1:] == [["a", "0.123"], ["b", ""]]
    assert [style["text-align"] for style in styles(html, "td")] == ["left", "right"] * 2
    assert [style["font-weight"] for style in styles(html, "td")] == ["bold"] * 2 + ["normal"] * 2


def styles(html: str, tag: str) -> list[dict[str, str]]:
    return [dict(re.findall(r"([\w-]+): ([^;]+)", element.get("style"))) for element in parsed(html).iter(tag)]


def test_lines_go_through_their_finite_values():
    html = chart("a", [Line("b", [0, 1, 2, 3], [0.0, float("nan"), 1.0, 0.5])], marked=[2])
    (line,) = parsed(html).iter("polyline")
    xs, ys = zip(*(map(float, point.split(",")) for point in line.get("points").split()), strict=True)
    assert len(xs) == 3 and xs[0] < xs[1] < xs[2] and xs[1] - xs[0] == pytest.approx(2 * (xs[2] - xs[1]), abs=0.2)
    # y grows downwards in SVG.
    assert ys[0] > ys[2] > ys[1]
    assert ys[0] - ys[1] == pytest.approx(2 * (ys[2] - ys[1]), abs=0.2)
    assert chart("a", [Line("b", [0], [float("nan")])]) == ""


def test_nothing_is_scripted_fetched_or_painted_over_the_page(tiny_vlm, direction):
    for shown_object in (tiny_vlm, direction, Guard(direction, (1,), validation={"refusal": 0.5})):
        html = shown_object._repr_html_()
        assert not re.search(r"<script|<style|http|url\(|on\w+=", html)
        # Text takes the colour of the page, whatever its theme, and has no background of its own.
        assert {*re.findall(r"background: ([^;\"]+)", html)} <= {"none"}
        assert not re.search(r"[^-]color: ", html)
