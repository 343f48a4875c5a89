import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from probes import auroc_difference, auroc_interval, mean_interval, wilson_interval

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


def lognormal(rng, sigma):
    return np.exp(sigma * rng.normal(size=60))


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: rng.normal(size=60), 0.0),
        (lambda rng: 5 + rng.normal(size=60), 5.0),
        (lambda rng: lognormal(rng, 1.0), np.exp(0.5)),
        (lambda rng: lognormal(rng, 1.5), np.exp(1.125)),
        (lambda rng: lognormal(rng, 2.0), np.exp(2.0)),
        (lambda rng: rng.gamma(0.1, size=60), 0.1),
        (lambda rng: lognormal(rng, 1.0) * (rng.random(60) < 0.3), 0.3 * np.exp(0.5)),
        (lambda rng: rng.beta(8, 1, size=60), 8 / 9),
    ],
    ids=["normal", "positive", "sigma 1", "sigma 1.5", "sigma 2", "gamma", "mostly 0", "below a ceiling"],
)
def test_the_interval_of_a_mean_covers_however_skewed_the_values_are(draw, truth):
    """Percentiles of drawn means cover 0.73 with sigma 2, BCa 0.79; the top 1 % hold as much of the sum as in KL."""
    rng, n_simulated = np.random.default_rng(5), 1000
    limits = np.array([mean_interval(draw(rng)) for _ in range(n_simulated)])
    covered = ((limits[:, 0] <= truth) & (truth <= limits[:, 1])).mean()
    # Three standard errors around 0.947 and 0.984, the least and the most of a longer simulation.
    assert 0.925 <= covered <= 0.995


def test_means_of_few_or_equal_values_have_intervals_within_the_values():
    # A single value says nothing about others.
    assert np.isnan(mean_interval(np.array([2.0]))).all()
    assert mean_interval(np.array([2.0, 2.0])) == (2.0, 2.0)
    assert mean_interval(np.array([1.0, 2.0])) == (1.0, 2.0)
    assert mean_interval(np.zeros(60)) == (0.0, 0.0)
    # One value of 60: it may be anything from a rarity to the rule.
    assert mean_interval(np.append(np.zeros(59), 1.0)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="0 values"):
        mean_interval(np.array([]))


def test_a_mean_scales_with_its_values_and_rounding_below_zero_changes_nothing():
    values = lognormal(np.random.default_rng(0), 2.0)
    low, high = mean_interval(values)
    assert mean_interval(1e-9 * values) == pytest.approx((1e-9 * low, 1e-9 * high))
    assert low < values.mean() < high
    rounded = np.where(values == values.min(), -1e-9, values)
    assert mean_interval(rounded) == pytest.approx((low, high), rel=0.01)


def test_wilson_has_width_at_zero():
    low, high = wilson_interval(0, 60)
    assert low == 0 and high == pytest.approx(0.0602, abs=5e-4)
    with pytest.raises(ValueError, match="0 observations"):
        wilson_interval(0, 0)
