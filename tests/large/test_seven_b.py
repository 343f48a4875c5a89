"""The shape of LLaVA-1.5-7B: the same code on a small shape in every run, and on all 7 billion parameters if asked."""

import numpy as np
import pytest
import torch

from interp.verify import check_vlm
from studies.presets.preset import read_preset
from studies.presets.random_weights import random_model
from tests.speed import seven_b


def small_preset(**sizes):
    preset = read_preset("llava-1.5-7b")
    sizes = {"layers": 3, "width": 256, "kv_width": 256, "mlp_width": 512, "vocabulary": 2048} | sizes
    shape = preset.model.shape.model_copy(update=sizes)
    return preset.model_copy(update={"model": preset.model.model_copy(update={"shape": shape})})


@pytest.fixture
def small_vision(monkeypatch):
    monkeypatch.setattr(
        "studies.presets.random_weights.CLIP_LARGE",
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    )


def value(rows, measure, contender=None, pictures=None):
    (found,) = [
        row["value"]
        for row in rows
        if row["measure"] == measure
        and row.get("contender") == contender
        and (pictures is None or row.get("pictures") == pictures)
    ]
    return found


def test_the_bench_of_the_7b_shape_runs_on_a_small_one(small_vision, monkeypatch):
    monkeypatch.setattr(seven_b, "MATRIX", 128)
    vlm = random_model(small_preset(), "cpu")
    rows = seven_b.measure(1, vlm=vlm)
    assert value(rows, "share of answers alike", "8 guards, rows") == 1
    assert value(rows, "prompts/s", "trace", "one shared") > 0
    assert {row["contender"] for row in rows if row["measure"] == "peak memory, GB"} == {
        "after building",
        "after traces",
        "after generation",
        "after many_guards",
    }


def test_random_weights_are_random_and_in_the_presets_precision(small_vision):
    vlm = random_model(small_preset(), "cpu")
    assert {str(p.dtype) for p in vlm.model.parameters()} == {"torch.bfloat16"}
    for name, weight in vlm.model.named_parameters():
        assert weight.isfinite().all(), name
        if weight.ndim > 1:
            assert 0 < weight.float().std() < 2, name
    weights = [w for block in vlm.blocks for w in block.parameters() if w.ndim > 1]
    assert not [(a, b) for i, a in enumerate(weights) for b in weights[:i] if a.shape == b.shape and torch.equal(a, b)]


@pytest.mark.large
def test_the_7b_shape():
    vlm = random_model(read_preset("llava-1.5-7b"), "cpu")
    weights = sum(p.numel() * p.element_size() for p in vlm.model.parameters()) / 1e9
    assert weights == pytest.approx(14.13, abs=0.01)
    rows = seven_b.measure(1, vlm=vlm)
    shared = value(rows, "times as long as careful forward", "trace", "one shared")
    assert 1 / shared >= 8
    assert value(rows, "times as long as careful forward", "plain trace", "one shared") <= 1.10
    peaks = [row["value"] for row in rows if row["measure"] == "peak memory, GB"]
    assert np.max(peaks) <= weights + 3
    findings = check_vlm(vlm)
    assert not [finding for finding in findings if not finding.is_accepted]
