import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from probes import measure
from probes.metrics import BIASED, NO_WIDTH, ONE_SIDED, QUERIES, accuracy
from tests.probes.test_intervals import normal_scores

PAIRS = np.repeat(np.arange(100), 2)


def measured(labels, scores, pairs=PAIRS, log_odds=None):
    return {one.metric: one for one in measure(labels, scores, pairs, log_odds)}


@pytest.mark.parametrize("decimals", [8, 0])
def test_values_are_those_of_scikit_learn_also_with_ties(decimals):
    labels, scores = normal_scores(np.random.default_rng(0), 0.8, 100)
    scores = scores.round(decimals)
    found = measured(labels, scores)
    assert found["auroc"].value == pytest.approx(roc_auc_score(labels, scores))
    assert found["average_precision"].value == pytest.approx(average_precision_score(labels, scores))
    assert found["accuracy"].value == np.mean((scores > 0) == labels)
    assert all(one.low <= one.value <= one.high and one.covers == QUERIES for one in found.values())


def test_d_prime_is_the_planted_distance():
    rng = np.random.default_rng(0)
    labels = np.tile([True, False], 1500)
    scores = rng.normal(size=3000) * 3 + 3 * 1.5 * labels
    assert measured(labels, scores, np.repeat(np.arange(1500), 2))["d_prime"].value == pytest.approx(1.5, abs=0.1)


def test_calibration_is_as_good_as_can_be_where_log_odds_are_true_and_worse_where_they_boast():
    """Even true probabilities have an error at this n: what it would be stands beside it."""
    rng, n_within = np.random.default_rng(0), {1: 0, 4: 0}
    for boast in n_within:
        for _ in range(30):
            log_odds = rng.normal(size=200) * 2
            labels = rng.random(200) < 1 / (1 + np.exp(-log_odds))
            found = measured(labels, log_odds, np.arange(200) // 2, boast * log_odds)
            assert found["ece"].covers == BIASED and np.isnan(found["ece"].low)
            n_within[boast] += found["ece"].value <= found["ece_if_calibrated"].high
    assert n_within[1] >= 26 and n_within[4] <= 2


def test_a_class_of_a_few_rows_has_intervals_too():
    rng = np.random.default_rng(0)
    labels = np.arange(200) < 5
    found = measured(labels, rng.normal(size=200) + labels, np.arange(200))
    assert all(np.isfinite([one.low, one.high]).all() for one in found.values())


@pytest.mark.parametrize("metric", ["accuracy", "average_precision", "d_prime"])
def test_intervals_cover_as_often_as_they_say(metric):
    rng, n_simulated, covered = np.random.default_rng(0), 300, 0
    shift = np.sqrt(2) * norm.ppf(0.85)
    many = np.tile([True, False], 100_000)
    population = rng.normal(size=200_000) + shift * (many - 0.5)
    truth = {"accuracy": norm.cdf(shift / 2), "d_prime": shift}
    truth["average_precision"] = average_precision_score(many, population)
    for _ in range(n_simulated):
        labels, scores = normal_scores(rng, 0.85, 100, shared=0.4)
        found = measured(labels, scores - shift / 2)[metric]
        covered += found.low <= truth[metric] <= found.high
    assert 0.91 <= covered / n_simulated <= 0.98


def test_complete_separation_says_what_its_intervals_are():
    labels = np.tile([True, False], 100)
    found = measured(labels, np.where(labels, 1.0, -1.0) + np.linspace(0, 0.1, 200))
    assert found["auroc"].covers == ONE_SIDED and found["auroc"].high == 1.0
    assert found["average_precision"].covers == NO_WIDTH and np.isnan(found["average_precision"].low)
    assert found["accuracy"].low < 1


def test_partners_that_err_together_count_as_one():
    rng = np.random.default_rng(0)
    right = rng.random(100) < 0.8
    alone, together = accuracy(np.repeat(right, 2), np.arange(200)), accuracy(np.repeat(right, 2), PAIRS)
    assert together.high - together.low == pytest.approx(np.sqrt(2) * (alone.high - alone.low), rel=0.05)
