"""The grid of readings, on hand-made numbers and on the built-in model."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from interp.directions import SafetyDirection
from interp.guard import Guard
from studies.experiment.config import Config
from studies.experiment.experiment import load
from studies.guards.anchor_fits import AnchorFits
from studies.guards.configuration import GuardConfiguration
from studies.guards.selection import FALLBACK_RULE, SELECTION_RULE
from studies.readings import _SplitRunner, choose, chosen_reading, run


@pytest.fixture
def made():
    rng = np.random.default_rng(0)
    harmful = np.tile([True, False], 10)
    states = rng.normal(size=(20, 3, 2, 8)) + harmful[:, None, None, None]
    anchors = xr.Dataset(
        {"resid_post": (("prompt", "layer", "token", "d_model"), states.astype(np.float32))},
        coords={
            "token": ["last", "instruction"],
            "layer": np.arange(3),
            "harmful": ("prompt", harmful),
            "pair": ("prompt", np.repeat([f"p{i}" for i in range(10)], 2).astype(object)),
            "text": ("prompt", np.array([f"request {i}" for i in range(20)], dtype=object)),
            "prompt_hash": ("prompt", np.array([f"{i:04}" for i in range(20)], dtype=object)),
        },
    )
    return AnchorFits({"vlm_text": anchors}, 1)


def rows(one, refusal, over_refusal, kl, coherence=1.0):
    values = {"refusal_rate": refusal, "over_refusal_rate": over_refusal, "kl": kl, "coherence": coherence}
    return [
        one.about(modality)
        | {"modality": modality, "judge": "exact@1", "metric": metric, "value": value, "n": 60}
        | {"category": "harmless" if metric == "coherence" else None}
        for modality in ("blank", "typographic")
        for metric, value in values.items()
    ]


def test_the_best_honest_reading_of_each_rule_is_chosen(made):
    base = Guard(made.direction(), (1,))
    grid = kind, greedy, broken, bound, flipped, calm, near, weak, added = [
        GuardConfiguration("strength", base),
        GuardConfiguration("strength", replace(base, strength=4.0)),
        GuardConfiguration("strength", replace(base, strength=0.5)),
        GuardConfiguration("reference", base, "oracle"),
        GuardConfiguration("factorial", replace(base, control="sign_flipped")),
        GuardConfiguration("strength", replace(base, strength=2.0)),
        GuardConfiguration("strength", replace(base, strength=3.0)),
        GuardConfiguration("factorial", replace(base, rule="ablate")),
        GuardConfiguration("factorial", replace(base, rule="add_reference")),
    ]
    found = [
        *rows(kind, 0.9, 0.02, 0.2),
        *rows(greedy, 1.0, 0.04, 0.1),
        *rows(broken, 1.0, 0.0, 0.0, coherence=0.5),
        *rows(bound, 1.0, 0.0, 0.0),
        *rows(flipped, 1.0, 0.0, 0.0),
        *rows(calm, 0.9, 0.0, 0.1),
        *rows(near, 0.88, 0.0, 0.05),
        *rows(weak, 0.1, 0.0, 0.0),
        *rows(added, 0.5, 0.0, 0.0),
    ]
    chosen, rule = choose(pd.DataFrame(found), grid)
    # 0.88 is within a standard error of 0.9 (120 prompts), and costs less.
    assert chosen == [6, 8, 7] and rule == SELECTION_RULE


def test_even_all_of_a_few_leave_some_doubt(made):
    base = Guard(made.direction(), (1,))
    grid = [GuardConfiguration("strength", replace(base, strength=strength)) for strength in (1.0, 2.0)]
    found = [*rows(grid[0], 1.0, 0.0, 0.2), *rows(grid[1], 0.995, 0.0, 0.1)]
    assert choose(pd.DataFrame(found), grid)[0] == [1]


def test_where_every_reading_harms_the_least_harm_is_taken_and_said(made):
    base = Guard(made.direction(), (1,))
    grid = [GuardConfiguration("strength", replace(base, strength=strength)) for strength in (1.0, 2.0, 3.0, 4.0)]
    refused = rows(grid[2], 1.0, 1.0, 0.0, coherence=np.nan)
    found = [*rows(grid[0], 1.0, 0.5, 0.0), *rows(grid[1], 0.4, 0.2, 0.0), *refused, *rows(grid[3], 1.0, np.nan, 0.0)]
    (best,), rule = choose(pd.DataFrame(found), grid)
    assert best == 1 and rule == FALLBACK_RULE


def test_configurations_that_do_the_same_are_run_once_and_others_apart(made):
    base = Guard(made.direction(), (1,))
    assert GuardConfiguration("gate", base).key("blank") == GuardConfiguration("rank", base).key("blank")
    for other in (
        GuardConfiguration("gate", replace(base, strength=2.0)),
        GuardConfiguration("gate", base, "caption"),
        GuardConfiguration("gate", base, deal="same"),
        GuardConfiguration("gate", replace(base, control="random", control_seed=1)),
        GuardConfiguration("gate", replace(base, direction=made.direction(token="instruction"))),
    ):
        assert other.key("blank") != GuardConfiguration("gate", base).key("blank")
    one, two = (GuardConfiguration("gate", replace(base, control="random", control_seed=seed)) for seed in (1, 2))
    assert one.key("blank") != two.key("blank")
    # Behind a blank picture nothing can be read but the prompt's text; in a typographic one the request.
    assert GuardConfiguration("gate", base).reference_in("blank") == "prompt_text"
    assert GuardConfiguration("gate", base).reference_in("typographic") == "transcription"


def test_shuffled_labels_lose_a_mean_and_no_singular_vector(made):
    """Why the second is hardly a control: a pair turned round changes the sign of a row."""
    cosines = {
        name: torch.stack([made.shuffled(i, name).basis[1, 0] @ made.direction(name).basis[1, 0] for i in range(8)])
        for name in ("mean_diff", "paired_svd")
    }
    assert cosines["mean_diff"].abs().mean() < 0.7
    torch.testing.assert_close(cosines["paired_svd"].abs(), torch.ones(8), atol=1e-4, rtol=0)
    assert cosines["paired_svd"].min() < 0 and made.direction() is made.direction()


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return load(Config(scale="tiny", out=str(tmp_path_factory.mktemp("readings")), split="validation"))


@pytest.fixture(scope="module")
def table(material):
    return run(material.config, material, layer=7)


def test_every_reading_is_measured_in_every_modality(table):
    grid = table[table.split == "validation"]
    factorial = grid[(grid.setting == "factorial") & (grid.metric == "kl")]
    assert len(factorial) == 8 * 2 * 2 * 2
    assert set(grid.setting.dropna()) >= {"gate", "positions", "source", "estimator", "rank", "token", "strength"}
    controls = grid[grid.setting == "control"]
    wanted = {"random", "shuffled_labels", "full_state"} | {f"shuffled_reference, {c} class" for c in ("same", "other")}
    assert set(controls.control.dropna()) == wanted and "text_verdict" in set(controls.defence)
    for metric in ("refusal_score", "refusal_score_gain", "kl"):
        shown = grid[(grid.metric == metric) & (grid.defence == "guard")]
        assert shown.value.notna().all() and (shown.ci_low <= shown.value + 1e-9).all()
    gates = grid[(grid.setting == "gate") & grid.metric.str.startswith("gate_")]
    assert set(gates.gate) == {"always", "sign", "threshold", "probe"}


def test_what_must_be_is(table):
    """Bounds and identities that hold whatever the model does."""
    grid = table[table.split == "validation"]
    gain = grid[grid.metric == "refusal_score_gain"].set_index(["setting", "modality"])
    unguarded = gain[gain.defence == "unguarded"]
    assert (unguarded.value.abs() < 1e-6).all()
    # What a reading gains is its score less that of the unguarded model, on the same prompts.
    for modality in ("blank", "typographic"):
        here = grid[(grid.modality == modality) & grid.setting.isin(["factorial", "control"])]
        score, gained = (here[here.metric == name] for name in ("refusal_score", "refusal_score_gain"))
        before = score[score.defence == "unguarded"].value.iloc[0]
        np.testing.assert_allclose(score.value.values - before, gained.value.values, atol=1e-4)


def test_references_are_dealt_within_a_class_or_across(material):
    ground = _SplitRunner(material, "validation", "blank")
    base = Guard(SafetyDirection.fit(material.activations("anchors", "text")), (1,))
    own = ground._states(GuardConfiguration("control", base))
    harmful = torch.tensor([prompt.query.harmful for prompt in ground.prompts])
    for deal, stays in (("same", True), ("other", False)):
        dealt = ground._states(GuardConfiguration("control", base, deal=deal))
        whose = torch.cdist(dealt[:, 1], own[:, 1]).argmin(1)
        assert (harmful[whose] == (harmful if stays else ~harmful)).all() and (whose != torch.arange(len(whose))).all()


def test_finalists_are_marked_and_found_again(table, material):
    marks = table[table.selection_rule.notna()]
    assert {f"{SELECTION_RULE}, finalist {i}" for i in (1, 2, 3)} == set(marks.selection_rule)
    assert not set(marks.control.dropna()) and "oracle" not in set(marks.reference)
    first = marks[marks.selection_rule.str.endswith("1")].iloc[0]
    guard = chosen_reading(table, material).guard
    assert (guard.rule, guard.gate, guard.layers[0]) == (first.rule, first.gate, first.layer)
    compared = table[(table.setting == "compared") & (table.metric == "refusal_rate")]
    assert {"ablate", "add_reference", "substitute"} == set(compared.rule.dropna())
    assert {"unguarded", "text_verdict", "guard"} == set(compared.defence)


def test_directions_are_compared(table):
    rows = table[table.setting == "directions"]
    stability = rows[rows.metric == "stability"]
    assert set(stability.estimator) == {"paired_svd", "mean_diff", "pca", "lda", "logistic"}
    cosine = rows[rows.metric == "cosine"]
    assert {"llm", "vlm_text"} == set(cosine.source) and {"last", "instruction"} == set(cosine.token)
    assert cosine.value.between(-1 - 1e-5, 1 + 1e-5).all()
