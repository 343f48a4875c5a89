import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from studies import layer_selection, layer_sweep
from studies.experiment.config import Config
from studies.experiment.experiment import load
from studies.experiment.reference_states import read_references
from studies.generation.cached_model import Outcome
from studies.generation.reference_texts import reference_for
from studies.guards import runner
from studies.guards.sweep_grid import Grid
from studies.layer_sweep import _finalists, _optimism, chosen, chosen_layer, run

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
    best = layer_sweep.best_rows(table)
    rows = best[best.judge.isna()]
    for modality in ("blank", "typographic"):
        prompts = material.prompts("validation", modality)
        states = read_references(material, prompts, reference_for(modality)).states
        (alone,) = material.asker.ride(prompts, [one.guard], states)
        is_harmful = np.array([prompt.query.harmful for prompt in prompts])
        mine = rows[(rows.modality == modality) & (rows.metric == "refusal_score")].iloc[0]
        assert mine.value == pytest.approx(alone.refusal_score[is_harmful].mean().item(), abs=1e-5)


def test_the_marked_configuration_is_made_again(material, table, tmp_path):
    table.to_csv(tmp_path / "sweep.csv", index=False)
    for found in (table, pd.read_csv(tmp_path / "sweep.csv")):
        row = layer_sweep.best_rows(found).iloc[0]
        guard = chosen(found, material, GRID).guard
        assert guard.layers[0] == row.layer and guard.rule == row.rule
        assert chosen_layer(found) in (0, 3, 6)
    with pytest.raises(LookupError, match="marks no single layer"):
        chosen_layer(table.assign(selection_rule=None))


def test_what_is_finished_is_not_run_again(material, table, monkeypatch):
    monkeypatch.setattr(runner, "run_rows", None)
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
    from studies.guards.anchor_fits import AnchorFits, traced_anchors

    made = AnchorFits(traced_anchors(material), is_paired=material.is_paired)
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


@pytest.mark.slow  # half a minute for a cluster to start; what workers do is tested with tracing
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
    random = selected[(selected.setting == "pick") & (selected.selection_rule == "random")]
    assert not random.duplicated(["modality", "judge", "category", "metric"]).any()
    mean = picks[picks.selection_rule == "random"].set_index(keys).value
    pd.testing.assert_series_equal(mean.sort_index(), single.groupby(keys).value.mean(), check_names=False)
    assert len(layer_selection.summary_lines(selected)) == len(expected)


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
    arditi = criteria[criteria.selection_rule == "kl_and_refusal_score"]
    # Their layer is counted before the block: of eight the last two, ours from 5 on.
    assert {5, 6, 7} <= set(arditi[arditi.value.isna()].layer)


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


def test_runs_that_differ_in_guard_references_prompts_or_length_are_kept_apart(material, table):
    sweeper, guard = runner.GuardRunner(material), chosen(table, material, GRID).guard
    prompts = material.prompts("validation", "text")[:2]
    states = torch.zeros(2, material.vlm.n_layers, material.vlm.d_model)
    runs = [runner.GuardRun(guard, states), runner.GuardRun(replace(guard, strength=7.0), states)]
    runs += [
        runner.GuardRun(guard, states + 1),
        runner.GuardRun(None, None),
        runner.GuardRun(replace(guard, control="random"), states),
    ]
    runs.append(
        runner.GuardRun(replace(guard, direction=replace(guard.direction, basis=-guard.direction.basis)), states)
    )
    batches = [
        runner.RunBatch(prompts, runs, 1),
        runner.RunBatch(prompts, runs, 2),
        runner.RunBatch(prompts[1:], runs, 1),
    ]
    names = [name for batch in batches for name in sweeper._names(batch)]
    assert len(set(names)) == 18
    again = runner.GuardRun(replace(guard), states.clone())
    assert sweeper._names(runner.RunBatch(prompts, [again], 1)) == names[:1]


def test_an_outcome_is_read_back_as_it_was(material):
    sweeper, told = runner.GuardRunner(material), []
    batch = runner.RunBatch(material.prompts("validation", "text")[:4], [runner.GuardRun(None, None)], 12)
    (first,), (again,) = (sweeper.work([batch], told.append) for _ in range(2))
    assert isinstance(first, Outcome) and first.answers == again.answers and sum(told) == 8
    assert torch.equal(first.refusal_score, again.refusal_score) and (first.kl.abs() < 1e-5).all()
    assert json.loads((sweeper._pieces.folder / "about.json").read_text())["refusal_tokens"]


def test_more_configurations_cost_only_what_is_new(material, table, monkeypatch):
    asked, run_rows = [], runner.run_rows
    monkeypatch.setattr(
        runner,
        "run_rows",
        lambda vlm, prompts, guards, *rest: asked.extend(guards) or run_rows(vlm, prompts, guards, *rest),
    )
    run(material.config, material, replace(GRID, strengths=(1.0, 2.0, 3.0)), top=2)
    ranked = [guard for guard in asked if guard is not None]
    assert {guard.strength for guard in ranked if guard.rule == "substitute"} <= {1.0, 2.0, 3.0}
    # One more strength at four places, in two modalities; and whichever finalists are new.
    assert 8 <= len(ranked) <= 8 + 2 * 4


@pytest.mark.parametrize(
    "axis",
    [{"estimators": ("paired_svd", "mean_diff")}, {"ranks": (1, 2)}, {"tokens": ("last", "instruction")}],
    ids=["estimators", "ranks", "tokens"],
)
def test_several_directions_are_swept_side_by_side(axis, material):
    found = run(material.config, material, Grid(layers=("0", "6"), rules=("substitute",), **axis), top=2)
    (name,) = axis
    column = {"estimators": "estimator", "ranks": "rank", "tokens": "token"}[name]
    assert set(found[found.setting == "ranked"][column].dropna()) == set(axis[name])


def test_the_best_of_all_is_saved_not_the_best_single_layer(material, monkeypatch):
    """Where a window is better than any single layer."""

    def standings(self, finalists, answered):
        for place, one in enumerate(finalists):
            yield {
                "place": place,
                "refusal": 0.5 + 0.4 * (len(one.guard.layers) > 1),
                "kl": 0.0,
                "excess": 0.0,
                "n": 99,
            }

    monkeypatch.setattr(layer_sweep._Sweep, "judged_standings", standings)
    grid = Grid(layers=("single", "middle-to-last"), rules=("substitute",))
    found = run(material.config, material, grid, top=20)
    assert chosen(found, material, grid).guard.layers == (4, 5, 6, 7)
    assert 0 <= chosen_layer(found) < 8


def test_beyond_the_limits_the_best_single_layer_is_still_marked(material, monkeypatch):
    def standings(self, finalists, answered):
        for place, one in enumerate(finalists):
            yield {
                "place": place,
                "refusal": 1.0,
                "kl": 0.0,
                "excess": 0.1 - 0.05 * (len(one.guard.layers) > 1),
                "n": 99,
            }

    monkeypatch.setattr(layer_sweep._Sweep, "judged_standings", standings)
    found = run(material.config, material, Grid(layers=("single", "middle-to-last"), rules=("substitute",)), top=20)
    marks = set(found.selection_rule.dropna())
    assert marks == {"least_harm_to_harmless", "least_harm_to_harmless, single layer"} and chosen_layer(found) >= 0


def test_what_acts_on_generated_tokens_alone_goes_on_through_halving(material):
    grid = Grid(layers=("0", "6"), rules=("substitute",), positions=("last_prefill", "generated"))
    found = run(material.config, material, grid, top=1, halving=True)
    answered = found[(found.setting == "finalists") & (found.positions == "generated")]
    assert set(answered.layer) == {0, 6}
