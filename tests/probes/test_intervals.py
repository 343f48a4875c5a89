import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from probes import auroc_difference, auroc_interval, wilson_interval

N_SIMULATED = 600


def normal_scores(rng, auroc, n, shared=0.0):
    """Return scores of harmful and harmless partners in turn; `shared` is the correlation of partners."""
    shift = np.sqrt(2) * norm.ppf(auroc)
    labels = np.tile([True, False], n)
    of_pair = np.repeat(rng.normal(size=n), 2)
    return labels, np.sqrt(shared) * of_pair + np.sqrt(1 - shared) * rng.normal(size=2 * n) + shift * labels


def test_auroc_equals_scikit_learns_also_with_ties():
    labels, scores = normal_scores(np.random.default_rng(0), 0.8, 60)
    rounded = scores.round(0)
    for values in (scores, rounded):
        assert auroc_interval(labels, values)[0] == pytest.approx(roc_auc_score(labels, values), abs=1e-12)


@pytest.mark.parametrize("shared", [None, 0.0, 0.5])
@pytest.mark.parametrize("auroc", [0.6, 0.8, 0.9, 0.95])
def test_the_auroc_interval_covers_as_often_as_it_says(auroc, shared):
    """100 pairs: without groups, with independent partners, and with correlated partners."""
    rng, covered, pairs = np.random.default_rng(0), 0, np.repeat(np.arange(100), 2)
    for _ in range(N_SIMULATED):
        labels, scores = normal_scores(rng, auroc, 100, shared or 0.0)
        _, low, high = auroc_interval(labels, scores, None if shared is None else pairs)
        covered += low <= auroc <= high
    assert 0.92 <= covered / N_SIMULATED <= 0.98


def test_correlated_partners_narrow_the_interval_and_duplicates_widen_it():
    def width(*args) -> float:
        return np.ptp(auroc_interval(*args)[1:])

    labels, scores = normal_scores(np.random.default_rng(0), 0.8, 100, shared=0.7)
    pairs = np.repeat(np.arange(100), 2)
    assert width(labels, scores, pairs) < 0.8 * width(labels, scores)
    twice = np.tile(labels, 2), np.tile(scores, 2)
    assert width(*twice, np.tile(np.arange(200), 2)) == pytest.approx(width(labels, scores, np.arange(200)), rel=0.01)
    assert width(*twice) < 0.8 * width(labels, scores)


def test_complete_separation_gets_a_one_sided_bound():
    labels = np.tile([True, False], 60)
    value, low, high = auroc_interval(labels, labels.astype(float))
    assert (value, high) == (1.0, 1.0) and 0.94 < low < 0.96
    assert auroc_interval(labels, -labels.astype(float))[:2] == (0.0, 0.0)


@pytest.mark.parametrize(("first", "second"), [(0.8, 0.8), (0.9, 0.7), (0.99, 0.95)])
def test_the_interval_of_a_difference_covers_as_often_as_it_says(first, second):
    """The same queries, scored twice, with shared noise."""
    rng, covered, pairs = np.random.default_rng(0), 0, np.repeat(np.arange(100), 2)
    for _ in range(N_SIMULATED):
        labels, noise = normal_scores(rng, 0.5, 100)
        related = 0.6 * noise + 0.8 * rng.normal(size=200)
        scores = [s + np.sqrt(2) * norm.ppf(a) * labels for s, a in ((noise, first), (related, second))]
        _, low, high = auroc_difference(labels, *scores, pairs)
        covered += low <= first - second <= high
    assert 0.92 <= covered / N_SIMULATED <= 0.98


def test_a_difference_without_mistakes_is_still_uncertain():
    labels = np.tile([True, False], 60)
    value, low, high = auroc_difference(labels, labels * 1.0, labels * 2.0)
    assert value == 0 and low == -high and 0.04 < high < 0.06


def test_bad_scores_are_reported():
    labels = np.array([True, True, False])
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        auroc_interval(labels, np.array([0.0, np.nan, 1.0]))
    with pytest.raises(ValueError, match="got 2 harmful and 0 harmless"):
        auroc_interval(labels[:2], np.zeros(2))


def test_wilson_has_width_at_zero():
    low, high = wilson_interval(0, 60)
    assert low == 0 and high == pytest.approx(0.0602, abs=5e-4)
    with pytest.raises(ValueError, match="0 observations"):
        wilson_interval(0, 0)
