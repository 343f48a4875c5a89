"""Random directions of a guard's size, on planted states and on the built-in model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.guard import Guard
from studies.bookkeeping.estimates import mean
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.experiment.reference_states import read_references
from studies.guards.anchor_fits import AnchorFits
from studies.guards.random_directions import (
    DECISIVE,
    N_DRAWS,
    SIGNIFICANT,
    STATISTICS,
    RandomDraws,
    _random_run,
    change_sizes,
    n_runs,
    random_draws,
)
from studies.guards.runner import GuardRunner

N_PROMPTS, D_MODEL, N_NULL = 30, 24, 3000


def draws_of(unguarded, guarded, random):
    tensors = (torch.as_tensor(values, dtype=torch.float32) for values in (unguarded, guarded, random))
    unguarded, guarded, random = tensors
    return RandomDraws(
        unguarded, guarded, random, torch.zeros_like(random), torch.ones(len(unguarded), dtype=torch.bool)
    )


def test_the_p_value_counts_the_guard_itself_and_ties_count_against_it():
    random = np.array([[-1.0, 1.0], [1.0, 3.0], [1.0, 1.0], [0.0, 0.5]])
    draws = draws_of([-1.0, -1.0], [1.0, 3.0], random)
    assert draws.guard_value("refusal_score_gain") == 3.0 and draws.guard_value("opening_refusal_rate") == 1.0
    assert draws.values("refusal_score_gain").tolist() == [1.0, 3.0, 2.0, 1.25]
    assert draws.values("opening_refusal_rate").tolist() == [0.5, 1.0, 1.0, 0.5]
    # One draw gains as much; two have the same rate, which is the largest possible.
    assert draws.percentile("refusal_score_gain") == 0.75 and draws.p_value("refusal_score_gain") == 2 / 5
    assert draws.percentile("opening_refusal_rate") == 0.5 and draws.p_value("opening_refusal_rate") == 3 / 5
    rows = {(row["metric"], row["category"]): row for row in draws.comparison_rows()}
    assert rows["random_p", "refusal_score_gain"]["value"] == 2 / 5 and rows["random_p", STATISTICS[1]]["n"] == 4
    assert len(rows) == 4 and rows["random_percentile", "opening_refusal_rate"]["value"] == 0.5


def test_without_harmful_prompts_nothing_is_called():
    nothing = replace(draws_of([0.0], [9.0], np.zeros((4, 1))), is_harmful=torch.zeros(1, dtype=torch.bool))
    assert np.isnan(nothing.p_value()) and np.isnan(nothing.percentile(DECISIVE))


def test_rows_hold_the_guard_and_every_draw():
    columns = {"setting": "sweep", "modality": "blank", "rule": "ablate", "token": "last", "layer": 3}
    rows = list(draws_of([0.0], [2.0], [[1.0], [3.0]]).rows(columns))
    gains = [(row["control"], row["seed"], row["value"]) for row in rows if row["metric"] == "refusal_score_gain"]
    assert gains == [(None, None, 2.0), ("random", 0, 1.0), ("random", 1, 3.0)]
    assert all(row["layer"] == 3 and "token" not in row for row in rows) and len(rows) == 6


class PlantedModel:
    """Refusal scores that rise along one axis and bend, with their own axis for each prompt, as states would give."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.axis = rng.normal(size=D_MODEL) / D_MODEL**0.5
        self.axes = self.axis + 0.5 * rng.normal(size=(N_PROMPTS, D_MODEL)) / D_MODEL**0.5
        self.sizes = rng.gamma(4.0, 1.0, N_PROMPTS)
        self.unguarded = rng.normal(-1.0, 2.0, N_PROMPTS)

    def scores(self, directions):
        """Return the scores after a change of each prompt's size along unit vectors."""
        moved = self.sizes * (np.atleast_2d(directions) @ self.axes.T)
        return self.unguarded + 3 * moved + 0.3 * moved**2

    def draws(self, guard, rng, n=N_DRAWS):
        random = rng.normal(size=(n, D_MODEL))
        random /= np.linalg.norm(random, axis=1, keepdims=True)
        return draws_of(self.unguarded, self.scores(guard)[0], self.scores(random))


@pytest.fixture(scope="module")
def null_draws():
    """Guards whose direction is itself random, each among 200 other random directions."""
    rng, drawn = np.random.default_rng(0), []
    for i in range(N_NULL):
        guard = rng.normal(size=D_MODEL)
        drawn.append(PlantedModel(i).draws(guard / np.linalg.norm(guard), rng))
    return drawn


def test_null_guards_are_called_better_than_random_in_3_to_7_percent(null_draws):
    called = np.mean([draws.p_value(DECISIVE) <= SIGNIFICANT for draws in null_draws])
    assert 0.03 <= called <= 0.07
    # Shares of 30 prompts have ties, which count against the guard.
    assert np.mean([draws.p_value("opening_refusal_rate") <= SIGNIFICANT for draws in null_draws]) <= 0.05
    percentiles = np.array([draws.percentile(DECISIVE) for draws in null_draws])
    assert abs(percentiles.mean() - 0.5) < 0.02 and abs((percentiles < 0.25).mean() - 0.25) < 0.03


def test_a_few_draws_that_are_taken_as_fixed_call_null_guards_far_too_often(null_draws):
    """The old test was an interval over prompts for the gain over the mean of five random directions."""
    called = []
    for draws in null_draws[:300]:
        over_random = draws.guarded - draws.refusal_score[:5].mean(0)
        called.append(mean("refusal_score_over_random", over_random.numpy())["ci_low"] > 0)
    assert np.mean(called) > 0.2


def test_a_guard_along_the_planted_axis_is_called_better_than_random():
    rng, p_values = np.random.default_rng(1), []
    for i in range(50):
        model = PlantedModel(i)
        p_values.append(model.draws(model.axis / np.linalg.norm(model.axis), rng).p_value())
    assert max(p_values) <= SIGNIFICANT


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return load_experiment(Config(scale="tiny", split="validation", out=str(tmp_path_factory.mktemp("random"))))


@pytest.fixture(scope="module")
def direction(experiment):
    return AnchorFits.on(experiment).direction()


@pytest.fixture(scope="module")
def prompts(experiment):
    return experiment.prompts("validation", "blank")


@pytest.fixture(scope="module")
def states(experiment, prompts):
    return read_references(experiment, prompts, "prompt_text").states


@pytest.mark.parametrize("layers", [(4,), (3, 4, 5)], ids=["layer", "window"])
@pytest.mark.parametrize("rule", ["substitute", "add_reference", "ablate"])
def test_random_changes_have_the_size_of_the_guards_at_every_layer(
    experiment, direction, prompts, states, rule, layers
):
    guard = Guard(direction, layers, rule, strength=2.0)
    own = change_sizes(experiment, prompts, guard, states)
    runs = [_random_run(guard, states, own if len(layers) > 1 else None, seed) for seed in range(2)]
    for run in runs:
        random = change_sizes(experiment, prompts, run.guard, run.states)
        torch.testing.assert_close(random, own, rtol=1e-4, atol=1e-4)
    assert not torch.equal(*(run.guard.random_direction(4) if len(layers) == 1 else run.states for run in runs))
    for layer in layers:
        is_open = guard.opens(states, layer)
        assert is_open.any() and not is_open.all()
        assert (own[is_open, layer] > 0).all() and (own[~is_open, layer] == 0).all()
    others = [layer for layer in range(experiment.vlm.n_layers) if layer not in layers]
    assert (own[:, others] == 0).all()


def test_without_the_guards_own_sizes_a_window_would_be_moved_further(experiment, direction, prompts, states):
    guard = Guard(direction, (3, 4, 5), "substitute")
    own = change_sizes(experiment, prompts, guard, states)
    unmatched = change_sizes(experiment, prompts, replace(guard, control="random"), states)
    assert unmatched.sum() > 1.5 * own.sum()


def test_the_draws_of_a_window_are_matched_too(experiment, direction, prompts, states):
    guard, ran, run = Guard(direction, (3, 4, 5), "substitute"), [], GuardRunner.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            GuardRunner, "run", lambda self, batches, report: ran.extend(batches) or run(self, batches, report)
        )
        random_draws(experiment, prompts, guard, states, n=2)
    harmful = [prompt for prompt in prompts if prompt.query.harmful]
    own = change_sizes(experiment, harmful, guard, states[[prompt.query.harmful for prompt in prompts]])
    (_, draws) = ran
    assert len(draws.runs) == 2 and list(draws.prompts) == harmful
    for each in draws.runs:
        random = change_sizes(experiment, harmful, each.guard, each.states)
        torch.testing.assert_close(random, own, rtol=1e-4, atol=1e-4)


def test_draws_start_from_the_guards_own_scores_and_move_nothing_if_the_gate_is_closed(
    experiment, direction, prompts, states
):
    guard = Guard(direction, (4,), "substitute")
    progress = []
    draws = random_draws(experiment, prompts, guard, states, n=5, report=progress.append)
    alone = experiment.cached_model.run_guards(prompts, [None, guard], states)
    harmful = [i for i, prompt in enumerate(prompts) if prompt.query.harmful]
    for outcome, scores in zip(alone, (draws.unguarded, draws.guarded), strict=True):
        torch.testing.assert_close(scores, outcome.refusal_score[harmful], atol=1e-4, rtol=0)
    assert draws.refusal_score.shape == (5, len(harmful)) and draws.refusal_score.std(0).min() > 0
    assert sum(progress) == n_runs(prompts) - (N_DRAWS - 5) * len(harmful)
    closed = replace(guard, gate="threshold", threshold=1e6)
    shut = random_draws(experiment, prompts, closed, states, n=5)
    assert shut.values(DECISIVE).abs().max() == 0 and shut.p_value() == 1 and shut.percentile(DECISIVE) == 0


def test_on_the_built_in_model_a_random_direction_is_called_as_often_as_it_should_be(
    experiment, direction, prompts, states
):
    pool = random_draws(experiment, prompts, Guard(direction, (4,), "substitute"), states, n=2 * N_DRAWS)
    rng, called = np.random.default_rng(0), []
    for _ in range(2000):
        guard, *others = rng.choice(len(pool.refusal_score), N_DRAWS + 1, replace=False)
        null = RandomDraws(
            pool.unguarded, pool.refusal_score[guard], pool.refusal_score[others], pool.kl[others], pool.is_harmful
        )
        called.append(null.p_value() <= SIGNIFICANT)
    assert 0.03 <= np.mean(called) <= 0.07


def test_the_summary_is_the_mean_of_the_draws_with_the_range_of_most_of_them(experiment, direction, prompts, states):
    draws = random_draws(experiment, prompts, Guard(direction, (4,)), states, n=20, harmless=True)
    rows = {row["metric"]: row for row in draws.summary_rows()}
    assert set(rows) == {"refusal_score", "refusal_score_gain", "opening_refusal_rate", "kl"}
    gains = draws.values("refusal_score_gain").numpy()
    assert rows["refusal_score_gain"]["value"] == pytest.approx(gains.mean())
    low, high = rows["refusal_score_gain"]["ci_low"], rows["refusal_score_gain"]["ci_high"]
    assert ((gains >= low) & (gains <= high)).sum() == 18
    assert rows["kl"]["interval"] == "2.5-97.5 % of 20 random directions" and rows["kl"]["n"] == 20
    assert np.isfinite(rows["kl"]["value"])
