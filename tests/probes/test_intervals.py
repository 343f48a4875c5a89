import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from probes import auroc_interval, wilson_interval


def normal_scores(rng, auroc, n):
    shift = np.sqrt(2) * norm.ppf(auroc)
    labels = np.tile([True, False], n)
    return labels, rng.normal(size=2 * n) + shift * labels


def test_auroc_equals_scikit_learn_also_with_ties():
    labels, scores = normal_scores(np.random.default_rng(0), 0.8, 60)
    rounded = scores.round(0)
    for values in (scores, rounded):
        assert auroc_interval(labels, values)[0] == pytest.approx(roc_auc_score(labels, values), abs=1e-12)


@pytest.mark.parametrize("auroc", [0.6, 0.8, 0.95])
def test_the_auroc_interval_covers_as_often_as_it_says(auroc):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        _, low, high = auroc_interval(*normal_scores(rng, auroc, 60))
        covered += low <= auroc <= high
    assert 0.92 <= covered / 600 <= 0.98


def test_complete_separation_gets_a_one_sided_bound():
    labels = np.tile([True, False], 60)
    value, low, high = auroc_interval(labels, labels.astype(float))
    assert (value, high) == (1.0, 1.0) and 0.94 < low < 0.96
    assert auroc_interval(labels, -labels.astype(float))[:2] == (0.0, 0.0)


def test_bad_scores_are_named():
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
