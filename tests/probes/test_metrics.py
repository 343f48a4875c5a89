import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from probes import Measured, measure
from probes.metrics import BIASED, NO_WIDTH, ONE_SIDED, QUERIES, accuracy
from tests.probes.test_intervals import normal_scores

PAIRS = np.repeat(np.arange(100), 2)


def measured(labels, scores, pairs=PAIRS, log_odds=None):
    return {result.metric: result for result in measure(labels, scores, pairs, log_odds)}


@pytest.mark.parametrize("decimals", [8, 0])
def test_values_equal_scikit_learns_also_with_ties(decimals):
    labels, scores = normal_scores(np.random.default_rng(0), 0.8, 100)
    scores = scores.round(decimals)
    results = measured(labels, scores)
    assert results["auroc"].value == pytest.approx(roc_auc_score(labels, scores))
    assert results["average_precision"].value == pytest.approx(average_precision_score(labels, scores))
    assert results["accuracy"].value == np.mean((scores > 0) == labels)
    assert all(
        result.ci_low <= result.value <= result.ci_high and result.interval == QUERIES for result in results.values()
    )


def test_d_prime_is_the_planted_distance():
    rng = np.random.default_rng(0)
    labels = np.tile([True, False], 1500)
    scores = rng.normal(size=3000) * 3 + 3 * 1.5 * labels
    assert measured(labels, scores, np.repeat(np.arange(1500), 2))["d_prime"].value == pytest.approx(1.5, abs=0.1)


def test_true_log_odds_are_as_calibrated_as_possible_and_overconfident_ones_are_not():
    """Even true probabilities have an error at this n; its expected size is measured with it."""
    rng, n_within = np.random.default_rng(0), {1: 0, 4: 0}
    for factor in n_within:
        for _ in range(30):
            log_odds = rng.normal(size=200) * 2
            labels = rng.random(200) < 1 / (1 + np.exp(-log_odds))
            results = measured(labels, log_odds, np.arange(200) // 2, factor * log_odds)
            assert results["ece"].interval == BIASED and np.isnan(results["ece"].ci_low)
            n_within[factor] += results["ece"].value <= results["ece_if_calibrated"].ci_high
    assert n_within[1] >= 26 and n_within[4] <= 2


def test_a_class_of_a_few_rows_has_intervals_too():
    rng = np.random.default_rng(0)
    labels = np.arange(200) < 5
    results = measured(labels, rng.normal(size=200) + labels, np.arange(200))
    assert all(np.isfinite([result.ci_low, result.ci_high]).all() for result in results.values())


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
        result = measured(labels, scores - shift / 2)[metric]
        covered += result.ci_low <= truth[metric] <= result.ci_high
    assert 0.91 <= covered / n_simulated <= 0.98


@pytest.mark.parametrize(("n_pairs", "distance"), [(11, 4.6), (60, 9.0)])
def test_the_interval_of_a_large_d_prime_covers_with_few_pairs_too(n_pairs, distance):
    """Percentiles of the draws cover 0.80 and 0.90 here."""
    rng, covered, pairs = np.random.default_rng(0), 0, np.repeat(np.arange(n_pairs), 2)
    labels = np.tile([True, False], n_pairs)
    for _ in range(300):
        result = measured(labels, rng.normal(size=2 * n_pairs) + distance * labels, pairs)["d_prime"]
        covered += result.ci_low <= distance <= result.ci_high
    assert 0.925 <= covered / 300 <= 0.99


def test_intervals_at_complete_separation_are_labelled():
    labels = np.tile([True, False], 100)
    results = measured(labels, np.where(labels, 1.0, -1.0) + np.linspace(0, 0.1, 200))
    assert results["auroc"].interval == ONE_SIDED and results["auroc"].ci_high == 1.0
    assert results["average_precision"].interval == NO_WIDTH and np.isnan(results["average_precision"].ci_low)
    assert results["accuracy"].ci_low < 1


def test_a_row_has_only_the_columns_that_apply():
    assert Measured("asr_change_p", 0.5, n=7).row() == {"metric": "asr_change_p", "value": 0.5, "n": 7}
    row = Measured("auroc", 0.9, 0.8, 1.0, 60, QUERIES).row()
    assert list(row) == ["metric", "value", "ci_low", "ci_high", "interval", "n"]


def test_partners_that_err_together_count_as_one_row():
    rng = np.random.default_rng(0)
    right = rng.random(100) < 0.8
    alone, together = accuracy(np.repeat(right, 2), np.arange(200)), accuracy(np.repeat(right, 2), PAIRS)
    assert together.ci_high - together.ci_low == pytest.approx(np.sqrt(2) * (alone.ci_high - alone.ci_low), rel=0.05)
