"""The grid of readings, on hand-made numbers and on the built-in model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from interp.directions import SafetyDirection
from interp.guard import Guard
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.guards.anchor_fits import AnchorFits
from studies.guards.choice_rule import FALLBACK_RULE, SELECTION_RULE
from studies.guards.configuration import GuardConfiguration
from studies.readings import _SplitRunner, choose, run


@pytest.fixture
def fits():
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
    return AnchorFits({"vlm_text": anchors})


def rows(configuration, refusal, over_refusal, kl, coherence=1.0):
    values = {"refusal_rate": refusal, "over_refusal_rate": over_refusal, "kl": kl, "coherence": coherence}
    return [
        configuration.columns(modality)
        | {"modality": modality, "judge": "exact@1", "metric": metric, "value": value, "n": 60}
        | {"category": "harmless" if metric == "coherence" else None}
        for modality in ("blank", "typographic")
        for metric, value in values.items()
    ]


def test_the_best_selectable_reading_of_each_rule_is_chosen(fits):
    base = Guard(fits.direction(), (1,))
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
    measured = [
        rows(kind, 0.9, 0.02, 0.2),
        rows(greedy, 1.0, 0.04, 0.1),
        rows(broken, 1.0, 0.0, 0.0, coherence=0.5),
        rows(bound, 1.0, 0.0, 0.0),
        rows(flipped, 1.0, 0.0, 0.0),
        rows(calm, 0.9, 0.0, 0.1),
        rows(near, 0.88, 0.0, 0.05),
        rows(weak, 0.1, 0.0, 0.0),
        rows(added, 0.5, 0.0, 0.0),
    ]
    places, rule = choose(grid, dict(enumerate(measured)))
    # 0.88 is within a standard error of 0.9 (120 prompts), and costs less.
    assert places == [6, 8, 7] and rule == SELECTION_RULE


def test_a_rate_of_one_over_few_prompts_keeps_a_standard_error(fits):
    base = Guard(fits.direction(), (1,))
    grid = [GuardConfiguration("strength", replace(base, strength=strength)) for strength in (1.0, 2.0)]
    measured = [rows(grid[0], 1.0, 0.0, 0.2), rows(grid[1], 0.995, 0.0, 0.1)]
    assert choose(grid, dict(enumerate(measured)))[0] == [1]


def test_beyond_the_limits_the_least_harmful_reading_is_chosen_and_the_rule_says_so(fits):
    base = Guard(fits.direction(), (1,))
    grid = [GuardConfiguration("strength", replace(base, strength=strength)) for strength in (1.0, 2.0, 3.0, 4.0)]
    refused = rows(grid[2], 1.0, 1.0, 0.0, coherence=np.nan)
    measured = [rows(grid[0], 1.0, 0.5, 0.0), rows(grid[1], 0.4, 0.2, 0.0), refused, rows(grid[3], 1.0, np.nan, 0.0)]
    (best,), rule = choose(grid, dict(enumerate(measured)))
    assert best == 1 and rule == FALLBACK_RULE


def test_configurations_share_a_key_only_if_they_act_the_same(fits):
    base = Guard(fits.direction(), (1,))
    assert GuardConfiguration("gate", base).key("blank") == GuardConfiguration("rank", base).key("blank")
    for other in (
        GuardConfiguration("gate", replace(base, strength=2.0)),
        GuardConfiguration("gate", base, "caption"),
        GuardConfiguration("gate", base, reference_from="same"),
        GuardConfiguration("gate", replace(base, control="random", control_seed=1)),
        GuardConfiguration("gate", replace(base, direction=fits.direction(token="instruction"))),
    ):
        assert other.key("blank") != GuardConfiguration("gate", base).key("blank")
    first, second = (GuardConfiguration("gate", replace(base, control="random", control_seed=seed)) for seed in (1, 2))
    assert first.key("blank") != second.key("blank")
    # With a blank picture only the prompt's text can be read; a typographic picture holds the request.
    assert GuardConfiguration("gate", base).reference_in("blank") == "prompt_text"
    assert GuardConfiguration("gate", base).reference_in("typographic") == "transcription"


def test_shuffled_labels_destroy_a_mean_difference_but_no_singular_vector(fits):
    """The reason why the second is a weak control: swapping a pair only changes the sign of a row."""
    cosines = {
        name: torch.stack([fits.shuffled(i, name).basis[1, 0] @ fits.direction(name).basis[1, 0] for i in range(8)])
        for name in ("mean_diff", "paired_svd")
    }
    assert cosines["mean_diff"].abs().mean() < 0.7
    torch.testing.assert_close(cosines["paired_svd"].abs(), torch.ones(8), atol=1e-4, rtol=0)
    assert cosines["paired_svd"].min() < 0 and fits.direction() is fits.direction()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return load_experiment(Config(scale="tiny", out=str(tmp_path_factory.mktemp("readings")), split="validation"))


@pytest.fixture(scope="module")
def result(experiment):
    return run(experiment.config, experiment, layer=7)


@pytest.fixture(scope="module")
def table(result):
    return result.table


def test_every_reading_is_measured_in_every_modality(table):
    grid = table[table.split == "validation"]
    factorial = grid[(grid.setting == "factorial") & (grid.metric == "kl")]
    assert len(factorial) == 8 * 2 * 2 * 2
    assert set(grid.setting.dropna()) >= {"gate", "positions", "source", "estimator", "rank", "token", "strength"}
    controls = grid[grid.setting == "control"]
    expected = {"random", "shuffled_labels", "full_state"} | {
        f"shuffled_reference, {c} class" for c in ("same", "other")
    }
    assert set(controls.control.dropna()) == expected and "text_verdict" in set(controls.defence)
    for metric in ("refusal_score", "refusal_score_gain", "kl"):
        rows = grid[(grid.metric == metric) & (grid.defence == "guard")]
        assert rows.value.notna().all() and (rows.ci_low <= rows.value + 1e-9).all()
    gates = grid[(grid.setting == "gate") & grid.metric.str.startswith("gate_")]
    assert set(gates.gate) == {"always", "sign", "threshold", "probe"}


def test_gains_are_differences_from_the_unguarded_score(table):
    """Identities that hold whatever the model does."""
    grid = table[table.split == "validation"]
    gain = grid[grid.metric == "refusal_score_gain"].set_index(["setting", "modality"])
    unguarded = gain[gain.defence == "unguarded"]
    assert (unguarded.value.abs() < 1e-6).all()
    # The gain of a reading is its score minus the unguarded model's, on the same prompts.
    for modality in ("blank", "typographic"):
        rows = grid[(grid.modality == modality) & grid.setting.isin(["factorial", "control"])]
        score, gain = (rows[rows.metric == name] for name in ("refusal_score", "refusal_score_gain"))
        baseline = score[score.defence == "unguarded"].value.iloc[0]
        np.testing.assert_allclose(score.value.values - baseline, gain.value.values, atol=1e-4)


def test_references_come_from_the_same_class_or_from_the_other(experiment):
    runner = _SplitRunner(experiment, "validation", "blank")
    base = Guard(SafetyDirection.fit(experiment.activations("anchors", "text")), (1,))
    own = runner._states(GuardConfiguration("control", base))
    harmful = torch.tensor([prompt.query.harmful for prompt in runner.prompts])
    for reference_from, keeps_class in (("same", True), ("other", False)):
        states = runner._states(GuardConfiguration("control", base, reference_from=reference_from))
        donors = torch.cdist(states[:, 1], own[:, 1]).argmin(1)
        assert (harmful[donors] == (harmful if keeps_class else ~harmful)).all()
        assert (donors != torch.arange(len(donors))).all()


def test_finalists_are_marked_and_the_first_of_them_is_chosen(table, result):
    marks = table[table.selection_rule.notna()]
    assert {f"{SELECTION_RULE}, finalist {i}" for i in (1, 2, 3)} == set(marks.selection_rule)
    assert not set(marks.control.dropna()) and "oracle" not in set(marks.reference)
    first = marks[marks.selection_rule.str.endswith("1")].iloc[0]
    guard = result.chosen.guard
    assert (guard.rule, guard.gate, guard.layers[0]) == (first.rule, first.gate, first.layer)
    compared = table[(table.setting == "compared") & (table.metric == "refusal_rate")]
    assert {"ablate", "add_reference", "substitute"} == set(compared.rule.dropna())
    assert {"unguarded", "text_verdict", "guard"} == set(compared.defence)


def test_the_result_holds_the_rows_of_the_choice_on_validation(result):
    rows, columns = result.validation, result.chosen.columns("typographic")
    assert set(rows.split) == {"validation"} and set(rows.modality) == {"blank", "typographic"}
    rows = rows[rows.modality == "typographic"]
    assert len(rows) and all((rows[name] == value).all() for name, value in columns.items() if value is not None)


def test_directions_are_compared(table):
    rows = table[table.setting == "directions"]
    stability = rows[rows.metric == "stability"]
    assert set(stability.estimator) == {"paired_svd", "mean_diff", "pca", "lda", "logistic"}
    cosine = rows[rows.metric == "cosine"]
    assert {"llm", "vlm_text"} == set(cosine.source) and {"last", "instruction"} == set(cosine.token)
    assert cosine.value.between(-1 - 1e-5, 1 + 1e-5).all()
