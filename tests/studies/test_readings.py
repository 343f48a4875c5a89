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
from studies.experiment.experiment import load_experiment
from studies.generation import cached_model
from studies.guards import runner
from studies.guards.anchor_fits import AnchorFits
from studies.guards.configuration import GuardConfiguration
from studies.guards.random_directions import N_DRAWS
from studies.guards.readings_grid import compared_configurations, readings_grid
from studies.readings import _compared_with_random, _measure, _SplitRunner, run


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
    fits = AnchorFits.on(experiment)
    chosen = Guard(fits.direction(), (7,), "add_reference", "threshold", strength=2.0, threshold=1.0)
    return run(experiment.config, experiment, GuardConfiguration("finalists", chosen))


@pytest.fixture(scope="module")
def table(result):
    return result.table


def test_finished_runs_are_not_run_again(experiment, table, monkeypatch):
    """A run of hours that is stopped must not lose its readings."""
    for module in (runner, cached_model):
        monkeypatch.setattr(module, "run_guards", None)
    fits = AnchorFits.on(experiment)
    chosen = Guard(fits.direction(), (7,), "add_reference", "threshold", strength=2.0, threshold=1.0)
    again = run(experiment.config, experiment, GuardConfiguration("finalists", chosen))
    pd.testing.assert_frame_equal(again.table, table)


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
    own = runner.states(GuardConfiguration("control", base))
    harmful = torch.tensor([prompt.query.harmful for prompt in runner.prompts])
    for reference_from, keeps_class in (("same", True), ("other", False)):
        states = runner.states(GuardConfiguration("control", base, reference_from=reference_from))
        donors = torch.cdist(states[:, 1], own[:, 1]).argmin(1)
        assert (harmful[donors] == (harmful if keeps_class else ~harmful)).all()
        assert (donors != torch.arange(len(donors))).all()


def test_readings_are_those_of_the_chosen_layer_and_choose_nothing(table, result):
    grid = table[(table.defence == "guard") & ~table.setting.isin(["layer", "compared"])]
    assert set(grid.layer) == {7} and not grid.selection_rule.notna().any()
    factorial = grid[(grid.setting == "factorial") & grid.strength.notna()]
    assert set(factorial.strength) == {1} and set(factorial.gate) == {"sign"}
    assert not hasattr(result, "chosen") and "finalists" not in set(table.setting)


def test_the_chosen_guard_is_compared_with_the_papers_readings_on_the_reported_split(table):
    rates = table[(table.setting == "compared") & (table.metric == "refusal_rate") & (table.modality == "blank")]
    rates = rates[rates.judge == "exact@1"]
    assert {"unguarded", "text_verdict", "guard"} == set(rates.defence)
    guards = rates[rates.defence == "guard"]
    chosen, others = guards[guards.selection_rule.notna()], guards[guards.selection_rule.isna()]
    assert chosen[["rule", "gate", "strength", "layer"]].values.tolist() == [["add_reference", "threshold", 2.0, 7.0]]
    names = others[["rule", "gate", "strength"]].values.tolist()
    assert names[0] == ["substitute", "sign", 1.0] and names[1][:2] == ["ablate", "always"]
    assert names[2] == ["add_reference", "sign", 1.0] and set(others.control.dropna()) == {"sign_flipped", "full_state"}
    assert len(others) == 5


def test_random_directions_are_one_line_on_validation_and_a_distribution_on_the_reported_split(table, result):
    line = table[(table.control == "random") & (table.modality == "blank")]
    assert set(line.metric) == {"refusal_score", "refusal_score_gain", "opening_refusal_rate", "kl"} and len(line) == 4
    assert set(line.interval) == {f"2.5-97.5 % of {N_DRAWS} random directions"} and set(line.setting) == {"control"}
    # The gate is closed for all harmless requests here: nothing changes, along no direction.
    assert (line.ci_low < line.ci_high)[line.metric != "kl"].all() and (line[line.metric == "kl"].ci_high < 1e-6).all()
    placed = table[(table.metric == "random_p") & (table.category == "refusal_score_gain")]
    placed = placed[placed.modality == "blank"]
    # The chosen guard and two readings of the paper; neither ablation nor controls.
    assert placed[["rule", "gate", "strength"]].values.tolist() == [
        ["add_reference", "threshold", 2.0],
        ["substitute", "sign", 1.0],
        ["add_reference", "sign", 1.0],
    ]
    assert placed.selection_rule.notna().tolist() == [True, False, False] and placed.control.isna().all()
    random = result.random[(result.random.modality == "blank") & (result.random.metric == "refusal_score_gain")]
    assert set(random.setting) == {"readings"} and len(random) == 3 * (N_DRAWS + 1)
    for row in placed.itertuples():
        own = random[(random.rule == row.rule) & (random.gate == row.gate) & (random.strength == row.strength)]
        draws, guard = own[own.control == "random"].value, own[own.control.isna()].value.item()
        assert row.value == pytest.approx((1 + (draws >= guard).sum()) / (1 + N_DRAWS)) and len(draws) == N_DRAWS
        gain = table[
            (table.setting == "compared") & (table.metric == "refusal_score_gain") & (table.modality == "blank")
        ]
        gain = gain[(gain.rule == row.rule) & (gain.gate == row.gate) & (gain.strength == row.strength)]
        assert gain[gain.control.isna()].value.item() == pytest.approx(guard, abs=1e-3)


def test_the_coverage_of_the_refusal_openings_is_in_the_table(table, experiment):
    row = table[table.metric == "opening_coverage"].iloc[0]
    assert row.split == "anchors" and row.value == pytest.approx(experiment.refusal_openings.coverage)
    assert 0.95 <= row.value <= 1 and row.n == experiment.refusal_openings.n_refused


def test_directions_are_compared(table):
    rows = table[table.setting == "directions"]
    stability = rows[rows.metric == "stability"]
    assert set(stability.estimator) == {"paired_svd", "mean_diff", "pca", "lda", "logistic"}
    cosine = rows[rows.metric == "cosine"]
    assert {"llm", "vlm_text"} == set(cosine.source) and {"last", "instruction"} == set(cosine.token)
    assert cosine.value.between(-1 - 1e-5, 1 + 1e-5).all()


def test_a_window_that_is_chosen_is_explored_as_a_window(experiment):
    fits = AnchorFits.on(experiment)
    base = Guard(fits.direction(), (4, 5), "substitute")
    grid = list(readings_grid(experiment, fits, base))
    assert {each.guard.layers for each in grid if each.setting != "layer"} == {(4, 5)}
    single = next(each for each in grid if each.setting == "layer")
    configurations = [GuardConfiguration("compared", base), *compared_configurations(base)[:2], single]
    rows = pd.DataFrame(_measure(experiment, "validation", configurations, chosen=0))
    # The size of a change is relative to one state, which a window does not have.
    assert set(rows[rows.metric == "delta_norm"].setting) == {"layer"}
    # The chosen guard is one of the readings here: its rows are there twice, its random directions once.
    rates = rows[(rows.setting == "compared") & (rows.metric == "kl") & (rows.modality == "blank")]
    same = rates[(rates.rule == "substitute") & (rates.last_layer == 5)]
    assert same.selection_rule.notna().tolist() == [True, False] and same.value.nunique() == 1
    compared, draws = (pd.DataFrame(part) for part in _compared_with_random(experiment, configurations[:3]))
    assert compared.selection_rule.notna().sum() == len(compared) / 2 and set(compared.rule) == {"substitute"}
    assert set(draws.groupby(["modality", "metric"]).size()) == {N_DRAWS + 1} and set(draws.last_layer) == {5}
