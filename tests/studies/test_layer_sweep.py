import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from interp.directions import SafetyDirection
from studies import layer_sweep
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.experiment.reference_states import read_references
from studies.generation import cached_model
from studies.generation.cached_model import Outcome
from studies.generation.reference_texts import reference_for
from studies.guards import runner, sweep_runner
from studies.guards.anchor_fits import AnchorFits
from studies.guards.configuration import GuardConfiguration
from studies.guards.random_directions import N_DRAWS, STATISTICS
from studies.guards.sweep_grid import Grid, GridError
from studies.guards.sweep_result import SweepChoice
from studies.layer_sweep import GRIDS, _finalists, _optimism, run, search

GRID = Grid(layers=("every:3", "middle-to-last"), rules=("ablate", "substitute"), strengths=(1.0, 2.0))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """An experiment on validation: the test split is reserved for released results."""
    config = Config(scale="tiny", split="validation", out=str(tmp_path_factory.mktemp("sweep")))
    return load_experiment(config)


@pytest.fixture(scope="module")
def result(experiment):
    return run(experiment.config, experiment, GRID, top=2)


@pytest.fixture(scope="module")
def table(result):
    return result.table


def best_rows(table):
    """Rows of the best finalist, by the mark without a suffix."""
    return table[(table.setting == "finalists") & (table.selection_rule == "least_kl_near_most_refusal")]


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


def test_scores_are_those_of_each_configuration_alone(experiment, result):
    rows = best_rows(result.table)
    rows = rows[rows.judge.isna()]
    for modality in ("blank", "typographic"):
        prompts = experiment.prompts("validation", modality)
        states = read_references(experiment, prompts, reference_for(modality)).states
        (alone,) = experiment.cached_model.run_guards(prompts, [result.chosen.guard], states)
        is_harmful = np.array([prompt.query.harmful for prompt in prompts])
        row = rows[(rows.modality == modality) & (rows.metric == "refusal_score")].iloc[0]
        assert row.value == pytest.approx(alone.refusal_score[is_harmful].mean().item(), abs=1e-5)


def test_the_choice_is_the_marked_configuration_and_is_read_back_from_disk(result, tmp_path):
    result.table.to_csv(tmp_path / "sweep.csv", index=False)
    for table in (result.table, pd.read_csv(tmp_path / "sweep.csv")):
        row, choice = best_rows(table).iloc[0], SweepChoice.read(table)
        guard = result.chosen.guard
        assert guard.layers[0] == row.layer and guard.rule == row.rule
        assert choice == result.choice and choice.layer in (0, 3, 6)
        assert choice.columns["layer"] == guard.layers[0] and choice.columns["rule"] == guard.rule
    unmarked = SweepChoice.read(result.table.assign(selection_rule=None))
    assert unmarked == SweepChoice({}, None)
    with pytest.raises(LookupError, match="marks no single layer"):
        unmarked.layer  # noqa: B018  (a property that raises)


def test_every_direction_is_fitted_once_from_the_run_to_the_chosen_guard(experiment, monkeypatch):
    fits, fit = [], SafetyDirection.fit

    def counted(activations, estimator, rank, token):
        fits.append((id(activations), estimator, rank, token))
        return fit(activations, estimator, rank, token)

    monkeypatch.setattr(SafetyDirection, "fit", counted)
    grid = Grid(
        layers=("6", "middle-to-last"),
        rules=("substitute",),
        estimators=("paired_svd", "mean_diff"),
        ranks=(1, 2),
        sources=("vlm_text", "llm"),
        tokens=("last", "instruction"),
        strengths=(1.0, 2.0),
    )
    for _ in range(2):  # the second sweep reads all of its runs from disk
        # Studies of one experiment share its fits, so each sweep gets an experiment without any.
        result = run(experiment.config, replace(experiment), grid, top=2)
        # A fit covers all layers: paired_svd of two ranks and mean_diff of one, for each source and token.
        assert len(fits) == len(set(fits)) == (2 + 1) * 2 * 2
        fits.clear()
    guard, choice = result.chosen.guard, result.choice
    assert guard.direction.estimator == choice.columns["estimator"] and choice.layer == 6
    assert not fits


def test_finished_runs_are_not_run_again(experiment, table, monkeypatch):
    # Neither by the runner nor past it.
    for module in (runner, cached_model):
        monkeypatch.setattr(module, "run_guards", None)
    pd.testing.assert_frame_equal(run(experiment.config, experiment, GRID, top=2).table, table)
    with pytest.raises(TypeError):
        run(experiment.config, experiment, replace(GRID, strengths=(3.0,)), top=2)


def test_halving_drops_half_each_time_and_counts_the_prompts(experiment, table):
    halved = run(experiment.config, experiment, GRID, top=2, halving=True).table
    ranked = halved[(halved.setting == "ranked") & (halved.metric == "refusal_score") & (halved.modality == "blank")]
    n_shown = ranked[ranked.defence == "guard"].n.value_counts().to_dict()
    assert n_shown == {3: 6, 6: 3, 11: 3}
    whole = table[(table.setting == "ranked") & (table.metric == "refusal_score") & (table.modality == "blank")]
    columns = ["layer", "last_layer", "rule", "strength", "value"]
    remaining = ranked[(ranked.n == 11) & (ranked.defence == "guard")][columns].round(4)
    assert len(remaining.merge(whole[columns].round(4))) == 3


def test_finalists_are_the_best_the_best_single_layers_and_guards_that_act_too_late_to_be_ranked(experiment):
    grid = Grid(layers=("start-to-end",), rules=("substitute",), positions=("last_prefill", "generated"))
    configurations, _ = grid.configurations(AnchorFits.on(experiment))
    finalists = _finalists(configurations, 3)
    assert finalists[:3] == [replace(configuration, setting="finalists") for configuration in configurations[:3]]
    assert sum(len(finalist.guard.layers) == 1 for finalist in finalists) == 2
    assert sum(finalist.guard.positions == "generated" for finalist in finalists) == 8


def test_optimism_is_validation_minus_test_with_an_interval_of_both():
    def rows(value, half):
        interval = {"ci_low": value - half, "ci_high": value + half, "n": 60}
        return pd.DataFrame([interval | {"metric": name, "value": value} for name in layer_sweep.OPTIMISM])

    (first, *_) = _optimism(rows(0.9, 0.03), rows(0.8, 0.04))
    assert first["category"] == "refusal_rate" and first["value"] == pytest.approx(0.1)
    assert first["ci_low"] == pytest.approx(0.05) and first["ci_high"] == pytest.approx(0.15)


def test_the_choice_is_measured_on_the_reported_split_only_if_it_is_not_validation(experiment, table):
    assert "chosen" not in set(table.setting)
    reported = replace(experiment, config=replace(experiment.config, split="test"))
    # The test split itself stays untouched: queries of validation replace it here.
    reported.queries["test"], own_queries = reported.queries["validation"], reported.queries["test"]
    try:
        result = run(reported.config, reported, GRID, top=2)
    finally:
        reported.queries["test"] = own_queries
    rows = result.table[result.table.setting == "chosen"]
    assert set(rows.split) == {"test"} and set(rows.defence) == {"unguarded", "guard"}
    optimism = rows[rows.metric == "optimism"]
    assert set(optimism.category) == set(layer_sweep.OPTIMISM) and optimism.value.abs().max() < 1e-5
    assert not len(table[table.metric.str.startswith("random")])
    # The choice is compared with 200 random directions in every modality.
    placed = rows[rows.metric.isin(["random_percentile", "random_p"])]
    assert len(placed) == 2 * 2 * 2 and set(placed.n) == {N_DRAWS} and set(placed.category) == set(STATISTICS)
    assert placed.selection_rule.notna().all()
    random = result.random
    assert set(random.setting) == {"sweep"} and set(random.split) == {"test"}
    for row in placed.itertuples():
        own = random[(random.modality == row.modality) & (random.metric == row.category)]
        draws, guard = own[own.control == "random"].value, own[own.control.isna()].value.item()
        assert len(draws) == N_DRAWS
        p = (1 + (draws >= guard).sum()) / (1 + N_DRAWS)
        assert row.value == pytest.approx(p if row.metric == "random_p" else (draws < guard).mean())


def test_runs_that_cannot_share_a_prefill_are_reported(experiment, capsys):
    run(experiment.config, experiment, Grid(layers=("3",), rules=("substitute",), positions=("text",)), top=1)
    message = capsys.readouterr().err
    assert "runs go one at a time, each with a prefill of its own: positions text change the prompt" in message


@pytest.mark.slow  # starting a cluster takes half a minute; the workers themselves are tested with tracing
def test_workers_of_a_cluster_compute_the_same_table(experiment, table, tmp_path):
    pytest.importorskip("ray")
    on_cluster = replace(experiment, config=replace(experiment.config, out=str(tmp_path)))
    pd.testing.assert_frame_equal(run(on_cluster.config, on_cluster, GRID, top=2, ray="local").table, table)


def test_runs_that_differ_in_guard_references_prompts_or_length_have_different_names(experiment, result):
    guard_runner, guard = runner.GuardRunner(experiment), result.chosen.guard
    prompts = experiment.prompts("validation", "text")[:2]
    states = torch.zeros(2, experiment.vlm.n_layers, experiment.vlm.d_model)
    flipped = replace(guard.direction, basis=-guard.direction.basis)
    runs = [
        runner.GuardRun(guard, states),
        runner.GuardRun(replace(guard, strength=7.0), states),
        runner.GuardRun(guard, states + 1),
        runner.GuardRun(None, None),
        runner.GuardRun(replace(guard, control="random"), states),
        runner.GuardRun(replace(guard, direction=flipped), states),
    ]
    batches = [
        runner.RunBatch(prompts, runs, 1),
        runner.RunBatch(prompts, runs, 2),
        runner.RunBatch(prompts[1:], runs, 1),
    ]
    names = [name for batch in batches for name in guard_runner._run_names(batch)]
    assert len(set(names)) == 18
    same_run = runner.GuardRun(replace(guard), states.clone())
    assert guard_runner._run_names(runner.RunBatch(prompts, [same_run], 1)) == names[:1]


def test_a_saved_outcome_is_read_back_unchanged(experiment):
    guard_runner, progress = runner.GuardRunner(experiment), []
    batch = runner.RunBatch(experiment.prompts("validation", "text")[:4], [runner.GuardRun(None, None)], 12)
    (first,), (again,) = (guard_runner.run([batch], progress.append) for _ in range(2))
    assert isinstance(first, Outcome) and first.answers == again.answers and sum(progress) == 8
    assert torch.equal(first.refusal_score, again.refusal_score) and (first.kl.abs() < 1e-5).all()
    assert json.loads((guard_runner._checkpoints.folder / "about.json").read_text())["refusal_openings"]


def test_a_larger_grid_runs_only_what_is_new(experiment, table, monkeypatch):
    ran, run_guards = [], runner.run_guards

    def recorded(vlm, prompts, guards, *rest, **named):
        ran.extend(guards)
        return run_guards(vlm, prompts, guards, *rest, **named)

    monkeypatch.setattr(runner, "run_guards", recorded)
    run(experiment.config, experiment, replace(GRID, strengths=(1.0, 2.0, 3.0)), top=2)
    guards = [guard for guard in ran if guard is not None]
    assert {guard.strength for guard in guards if guard.rule == "substitute"} <= {1.0, 2.0, 3.0}
    # One more strength at four places, in two modalities; and whichever finalists are new.
    assert 8 <= len(guards) <= 8 + 2 * 4


@pytest.mark.parametrize(
    "axis",
    [{"estimators": ("paired_svd", "mean_diff")}, {"ranks": (1, 2)}, {"tokens": ("last", "instruction")}],
    ids=["estimators", "ranks", "tokens"],
)
def test_several_directions_are_swept_together(axis, experiment):
    table = run(experiment.config, experiment, Grid(layers=("0", "6"), rules=("substitute",), **axis), top=2).table
    (name,) = axis
    column = {"estimators": "estimator", "ranks": "rank", "tokens": "token"}[name]
    assert set(table[table.setting == "ranked"][column].dropna()) == set(axis[name])


def test_the_best_finalist_is_chosen_not_the_best_single_layer(experiment, monkeypatch):
    """A window is better than any single layer here."""

    def metrics(self, candidate, outcomes):
        refusal = 0.5 + 0.4 * (len(candidate.guard.layers) > 1)
        return {"refusal": refusal, "kl": 0.0, "excess": 0.0, "n": 99}

    monkeypatch.setattr(sweep_runner.SweepRunner, "judged_metrics", metrics)
    grid = Grid(layers=("single", "middle-to-last"), rules=("substitute",))
    result = run(experiment.config, experiment, grid, top=20)
    assert result.chosen.guard.layers == (4, 5, 6, 7)
    assert 0 <= result.choice.layer < 8 and SweepChoice.read(result.table) == result.choice


def test_beyond_the_limits_the_best_single_layer_is_still_marked(experiment, monkeypatch):
    def metrics(self, candidate, outcomes):
        excess = 0.1 - 0.05 * (len(candidate.guard.layers) > 1)
        return {"refusal": 1.0, "kl": 0.0, "excess": excess, "n": 99}

    monkeypatch.setattr(sweep_runner.SweepRunner, "judged_metrics", metrics)
    grid = Grid(layers=("single", "middle-to-last"), rules=("substitute",))
    result = run(experiment.config, experiment, grid, top=20)
    marks = set(result.table.selection_rule.dropna())
    assert marks == {"least_harm_to_harmless", "least_harm_to_harmless, single layer"} and result.choice.layer >= 0


def test_guards_on_generated_tokens_alone_survive_halving(experiment):
    grid = Grid(layers=("0", "6"), rules=("substitute",), positions=("last_prefill", "generated"))
    table = run(experiment.config, experiment, grid, top=1, halving=True).table
    answered = table[(table.setting == "finalists") & (table.positions == "generated")]
    assert set(answered.layer) == {0, 6}


def test_the_default_grids_hold_what_else_a_guard_could_be():
    for scale, n_strengths in (("quick", 2), ("full", 3)):
        grid = GRIDS[scale]
        assert {"ablate", "substitute", "add_reference"} <= set(grid.rules) and len(grid.strengths) == n_strengths
        assert {"sign", "threshold"} <= set(grid.gates)


def test_a_search_runs_each_configuration_with_its_own_reference_and_chooses_by_the_same_rule(experiment):
    fits = AnchorFits.on(experiment)
    guard = Grid(layers=("6",), rules=("substitute",)).configurations(fits)[0][0].guard
    kinds = (None, "prompt_text", "oracle")
    found = search(experiment, [GuardConfiguration("tuned", guard, kind) for kind in kinds], top=3)
    rows = pd.DataFrame(found.rows)
    rows = rows[(rows.setting == "ranked") & (rows.metric == "refusal_score") & (rows.modality == "typographic")]
    scores = rows[rows.defence == "guard"].set_index("reference").value
    prompts = experiment.prompts("validation", "typographic")
    is_harmful = np.array([prompt.query.harmful for prompt in prompts])
    for kind in ("transcription", "prompt_text", "oracle"):
        states = read_references(experiment, prompts, kind).states
        (alone,) = experiment.cached_model.run_guards(prompts, [guard], states)
        assert scores[kind] == pytest.approx(alone.refusal_score[is_harmful].mean().item(), abs=1e-5)
    # With the text beside a typographic picture as reference, the gate never opens.
    assert scores["prompt_text"] < scores["transcription"] - 0.1
    assert found.best.configuration.reference != "prompt_text" and found.best in found.finalists
    assert len(found.finalists) == 3 and sum(finalist.mark is not None for finalist in found.finalists) == 1


def test_a_search_needs_different_configurations(experiment):
    guard = Grid(layers=("6",), rules=("substitute",)).configurations(AnchorFits.on(experiment))[0][0].guard
    one = GuardConfiguration("tuned", guard)
    with pytest.raises(GridError, match="2 configurations, 1 different ones"):
        search(experiment, [one, replace(one, setting="other")], top=1)
    with pytest.raises(GridError, match="0 configurations"):
        search(experiment, [], top=1)
    with pytest.raises(GridError, match="top 0"):
        search(experiment, [one], top=0)
    # Related methods differ in settings that have no column.
    assert GuardConfiguration("tuned", replace(guard, keeps_norm=True)).identity != one.identity
