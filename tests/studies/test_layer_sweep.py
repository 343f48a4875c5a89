import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from studies import layer_selection, layer_sweep, sweeping
from studies.guarding import Outcome, outcomes, read_references, reference_for
from studies.layer_sweep import _finalists, _optimism, chosen, chosen_layer, run
from studies.material import Config, load
from studies.sweep_grid import Grid

GRID = Grid(layers=("every:3", "middle-to-last"), rules=("ablate", "substitute"), strengths=(1.0, 2.0))


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Of validation: the test split is for released results alone."""
    return load(Config(scale="tiny", split="validation", out=str(tmp_path_factory.mktemp("sweep"))))


@pytest.fixture(scope="module")
def table(material):
    return run(material.config, material, GRID, top=2)


def test_every_configuration_is_ranked_and_the_best_answer(table):
    ranked = table[(table.setting == "ranked") & (table.defence == "guard")]
    # Three single layers and one window; `ablate` has no strength.
    assert (ranked.metric == "on_front").sum() == 4 * 3
    per_modality = ranked[ranked.metric == "refusal_score"].groupby("modality").size()
    assert per_modality.to_dict() == {"blank": 12, "typographic": 12}
    assert set(ranked.n.dropna()) == {11} and not ranked.judge.notna().any()
    answered = table[(table.setting == "finalists") & (table.defence == "guard") & (table.metric == "refusal_rate")]
    assert len(answered) == 2 * 2 * answered.groupby(["modality", "judge"]).size().iloc[0]
    assert len(table[(table.setting == "finalists") & (table.defence == "unguarded")])


def test_scores_are_those_of_each_configuration_alone(material, table):
    one = chosen(table, material, GRID)
    rows = table[table.selection_rule.notna() & table.judge.isna()]
    for modality in ("blank", "typographic"):
        prompts = material.prompts("validation", modality)
        states = read_references(material, prompts, reference_for(modality)).states
        (alone,) = outcomes(material, prompts, [one.guard], states)
        is_harmful = np.array([prompt.query.harmful for prompt in prompts])
        mine = rows[(rows.modality == modality) & (rows.metric == "refusal_score")].iloc[0]
        assert mine.value == pytest.approx(alone.refusal_score[is_harmful].mean().item(), abs=1e-5)


def test_the_marked_configuration_is_made_again(material, table, tmp_path):
    table.to_csv(tmp_path / "sweep.csv", index=False)
    for found in (table, pd.read_csv(tmp_path / "sweep.csv")):
        row = found[found.selection_rule.notna()].iloc[0]
        guard = chosen(found, material, GRID).guard
        assert guard.layers[0] == row.layer and guard.rule == row.rule
        assert chosen_layer(found) in (0, 3, 6)
    with pytest.raises(LookupError, match="marks no single layer"):
        chosen_layer(table.assign(selection_rule=None))


def test_what_is_finished_is_not_run_again(material, table, monkeypatch):
    monkeypatch.setattr(sweeping, "run_rows", None)
    again = run(material.config, material, GRID, top=2)
    pd.testing.assert_frame_equal(again, table)
    with pytest.raises(TypeError):
        run(material.config, material, replace(GRID, strengths=(3.0,)), top=2)


def test_halving_drops_half_each_time_and_tells_on_how_many_prompts(material, table):
    halved = run(material.config, material, GRID, top=2, halving=True)
    ranked = halved[(halved.setting == "ranked") & (halved.metric == "refusal_score") & (halved.modality == "blank")]
    n_shown = ranked[ranked.defence == "guard"].n.value_counts().to_dict()
    assert n_shown == {3: 6, 6: 3, 11: 3}
    whole = table[(table.setting == "ranked") & (table.metric == "refusal_score") & (table.modality == "blank")]
    columns = ["layer", "last_layer", "rule", "strength", "value"]
    left = ranked[(ranked.n == 11) & (ranked.defence == "guard")][columns].round(4)
    assert len(left.merge(whole[columns].round(4))) == 3


def test_finalists_are_the_best_the_best_single_layers_and_what_acts_too_late_to_be_ranked(material):
    from studies.reading_grid import Ingredients, traced_anchors

    made = Ingredients(traced_anchors(material), 0, material.is_paired)
    grid = Grid(layers=("start-to-end",), rules=("substitute",), positions=("last_prefill", "generated"))
    found, _ = grid.configurations(made)
    finalists = _finalists(found, 3)
    assert finalists[:3] == [replace(one, setting="finalists") for one in found[:3]]
    assert sum(len(one.guard.layers) == 1 for one in finalists) == 2
    assert sum(one.guard.positions == "generated" for one in finalists) == 8


def test_optimism_is_validation_less_test_with_an_interval_of_both():
    def rows(value, half):
        about = {"ci_low": value - half, "ci_high": value + half, "n": 60}
        return pd.DataFrame([about | {"metric": name, "value": value} for name in layer_sweep.OPTIMISM])

    (first, *_) = _optimism(rows(0.9, 0.03), rows(0.8, 0.04))
    assert first["category"] == "refusal_rate" and first["value"] == pytest.approx(0.1)
    assert first["ci_low"] == pytest.approx(0.05) and first["ci_high"] == pytest.approx(0.15)


def test_the_choice_is_measured_on_the_reported_split_only_if_that_is_another(material, table, monkeypatch):
    assert "chosen" not in set(table.setting)
    reported = replace(material, config=replace(material.config, split="test"))
    # Nobody looks at the test split here: queries of validation stand for it.
    reported.queries["test"], kept = reported.queries["validation"], reported.queries["test"]
    try:
        found = run(reported.config, reported, GRID, top=2)
    finally:
        reported.queries["test"] = kept
    told = found[found.setting == "chosen"]
    assert set(told.split) == {"test"} and set(told.defence) == {"unguarded", "guard"}
    optimism = told[told.metric == "optimism"]
    assert set(optimism.category) == set(layer_sweep.OPTIMISM) and optimism.value.abs().max() < 1e-5


def test_what_has_to_run_alone_is_said(material, capsys):
    run(material.config, material, Grid(layers=("3",), rules=("substitute",), positions=("text",)), top=1)
    told = capsys.readouterr().err
    assert "runs go one at a time, each with a prefill of its own: positions text change the prompt" in told


def test_workers_of_a_cluster_find_the_same(material, table, tmp_path):
    pytest.importorskip("ray")
    elsewhere = replace(material, config=replace(material.config, out=str(tmp_path)))
    pd.testing.assert_frame_equal(run(elsewhere.config, elsewhere, GRID, top=2, ray="local"), table)


@pytest.fixture(scope="module")
def selected(material):
    return layer_selection.run(material.config, material)


def test_every_rule_picks_a_layer_and_its_worth_is_that_of_the_guard_there(selected):
    picks = selected[(selected.setting == "pick") & (selected.metric == "refusal_rate")]
    expected = {*layer_selection.CRITERIA, "validation", "middle_to_last", "fixed", "random", "best_on_test"}
    assert set(picks.selection_rule) == expected
    everywhere = selected[(selected.setting == "every_layer") & (selected.metric == "refusal_rate")]
    single = everywhere[everywhere.last_layer.isna()]
    for rule in ("sas", "validation", "fixed"):
        mine = picks[picks.selection_rule == rule]
        same = single[single.layer == mine.layer.iloc[0]]
        assert sorted(mine.value) == sorted(same.value)
    keys = ["modality", "judge"]
    mean = picks[picks.selection_rule == "random"].set_index(keys).value
    pd.testing.assert_series_equal(mean.sort_index(), single.groupby(keys).value.mean(), check_names=False)
    assert len(layer_selection.in_words(selected)) == len(expected)


def test_the_pick_is_the_largest_criterion(selected):
    criteria = selected[selected.setting == "criterion"]
    assert set(criteria.split) == {"validation"}
    for rule, rows in criteria.groupby("selection_rule"):
        layer = selected[(selected.setting == "pick") & (selected.selection_rule == rule)].layer.iloc[0]
        if rule == "patching":
            near = rows[rows.value >= 0.9 * rows.value.max()]
            assert layer == near.layer.min()
        else:
            assert layer == rows.layer[rows.value.idxmax()]
    assert criteria[criteria.selection_rule == "kl_and_refusal_score"].value.isna().sum() >= 1


def test_a_layer_that_may_not_be_chosen_is_not():
    assert layer_selection.picked(np.array([1.0, np.nan, 3.0, 3.0])) == 2
    assert layer_selection.picked(np.array([0.5, 0.92, 1.0]), near=0.9) == 1
    assert layer_selection.picked(np.full(3, np.nan)) is None


def test_safety_awareness_is_the_mean_cosine_of_any_two_differences():
    rng = np.random.default_rng(0)
    harmful, harmless = rng.normal(size=(2, 7, 5)) + 1
    units = [(a - b) / np.linalg.norm(a - b) for a, b in zip(harmful, harmless, strict=True)]
    cosines = [units[i] @ units[j] for i in range(7) for j in range(7) if i != j]
    assert layer_selection.safety_awareness(harmful, harmless) == pytest.approx(np.mean(cosines))


def test_runs_that_differ_in_guard_prompts_or_length_are_kept_apart(material):
    sweeper = sweeping.Sweeper(material)
    prompts = material.prompts("validation", "text")
    runs = [sweeping.Run("a", None, None), sweeping.Run("b", None, None)]
    names = {
        unit.name
        for given in ((prompts, runs, 1), (prompts, runs[:1], 1), (prompts[1:], runs, 1), (prompts, runs, 2))
        for unit in sweeper.units(*given)
    }
    assert len(names) == 4


def test_an_outcome_is_read_back_as_it_was(material):
    sweeper, told = sweeping.Sweeper(material), []
    prompts = material.prompts("validation", "text")[:4]
    units = sweeper.units(prompts, [sweeping.Run("unguarded", None, None)], 12)
    (first,), (again,) = (sweeper.work(units, told.append) for _ in range(2))
    assert isinstance(first, Outcome) and first.answers == again.answers and sum(told) == 8
    assert torch.equal(first.refusal_score, again.refusal_score) and (first.kl.abs() < 1e-5).all()
    assert json.loads((sweeper._pieces.folder / "about.json").read_text())["refusal_tokens"]
