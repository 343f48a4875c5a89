"""Detectors against scikit-learn, a literal rewrite, and the AUROC that two normal classes have by construction."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from probes import DETECTORS, MahalanobisContrast, NeighbourContrast, threshold_at, true_positive_rate_at


def normal_classes(rng, n, d, distance):
    """Draw two classes with identity covariance whose means are `distance` apart along a random direction."""
    direction = rng.normal(size=d)
    direction *= distance / np.linalg.norm(direction)
    is_harmful = np.arange(n) % 2 == 0
    return rng.normal(size=(n, d)) + np.outer(is_harmful - 0.5, direction), is_harmful


def fitted(name, states, is_harmful):
    names = np.arange(len(states)).astype(str)
    return DETECTORS[name](states, is_harmful, names, np.full(len(states), "one"))


@pytest.mark.parametrize("name", ["linear_probe", "mcd"])
@pytest.mark.parametrize("distance", [1.0, 2.0])
def test_detectors_reach_the_analytic_auroc_of_normal_classes(name, distance):
    rng = np.random.default_rng(0)
    n_fit = 1000 if name == "linear_probe" else 4000
    states, is_harmful = normal_classes(rng, 12000, 4, distance)
    half = np.arange(len(states)) < n_fit
    detector = fitted(name, states[half], is_harmful[half])
    reached = roc_auc_score(is_harmful[~half], detector(states[~half]))
    assert reached == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.01)


def test_neighbours_reach_the_analytic_auroc_of_directions_on_a_circle():
    """KCD sees directions only: two classes of angles, normal around two of them, far from the whole circle."""
    rng, spread, distance = np.random.default_rng(0), 0.15, 1.5
    is_harmful = np.arange(12000) % 2 == 0
    angles = spread * (rng.normal(size=len(is_harmful)) + distance * is_harmful)
    states = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(1, 5, size=(len(angles), 1))
    half = np.arange(len(states)) < 6000
    detector = NeighbourContrast.fit(states[half], is_harmful[half], k=100)
    reached = roc_auc_score(is_harmful[~half], detector(states[~half]))
    assert reached == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.01)


@pytest.mark.parametrize("shape", [(60, 8), (12, 40)], ids=["more rows than dimensions", "fewer"])
def test_mcd_is_the_difference_of_scikit_learns_ledoit_wolf_distances(shape):
    rng = np.random.default_rng(0)
    parts = {name: rng.normal(size=shape) * rng.uniform(0.5, 2, shape[1]) + i for i, name in enumerate("abcd")}
    states, names = np.concatenate(list(parts.values())), np.repeat(list(parts), shape[0])
    is_harmful = np.isin(names, ["c", "d"])
    new = rng.normal(size=(30, shape[1])) * 2

    def nearest(clusters):
        # `mahalanobis` gives the square.
        return np.min([np.sqrt(LedoitWolf().fit(parts[name]).mahalanobis(new)) for name in clusters], axis=0)

    scores = MahalanobisContrast.fit(states, is_harmful, names)(new)
    assert np.allclose(scores, nearest("ab") - nearest("cd"), rtol=1e-8)


def test_kcd_is_a_literal_rewrite_of_its_formula():
    rng, k = np.random.default_rng(0), 3
    states, is_harmful, new = rng.normal(size=(40, 6)), np.arange(40) < 15, rng.normal(size=(9, 6))
    expected = []
    for row in new:
        far = {}
        for label in (True, False):
            unit = [state / np.linalg.norm(state) for state in states[is_harmful == label]]
            far[label] = sorted(np.linalg.norm(row / np.linalg.norm(row) - other) for other in unit)[k - 1]
        expected.append(far[False] - far[True])
    assert np.allclose(NeighbourContrast.fit(states, is_harmful, k)(new), expected)


@pytest.mark.parametrize("name", DETECTORS)
def test_one_class_fits_no_detector(name):
    states = np.random.default_rng(0).normal(size=(10, 3))
    with pytest.raises(ValueError, match="needs both classes; got 10 harmful and 0 harmless"):
        fitted(name, states, np.ones(10, dtype=bool))


def test_rows_that_are_all_the_same_are_no_cluster():
    with pytest.raises(ValueError, match="a cluster of 4 rows, all the same"):
        MahalanobisContrast.fit(np.ones((8, 3)), np.arange(8) < 4)


@pytest.mark.parametrize("n, rate, expected", [(60, 0.05, 3), (60, 0.01, 0), (100, 0.05, 5), (20, 0.05, 1)])
def test_a_threshold_lets_as_many_harmless_requests_through_as_it_may(n, rate, expected):
    scores = np.random.default_rng(0).normal(size=n)
    assert (scores > threshold_at(scores, rate)).sum() == expected


def test_ties_never_exceed_the_false_positive_rate():
    scores = np.repeat([0.0, 1.0], [50, 10])
    assert (scores > threshold_at(scores, 0.05)).sum() == 0


def test_the_rate_of_detection_covers_the_true_one_where_the_threshold_is_estimated():
    rng, rate, distance, n, covered, ignoring = np.random.default_rng(0), 0.05, 2.0, 60, 0, 0
    truth = norm.sf(norm.isf(rate) - distance)
    is_harmful = np.repeat([True, False], n)
    for _ in range(100):
        scores = rng.normal(size=2 * n) + distance * is_harmful
        found = true_positive_rate_at(is_harmful, scores, rate, np.arange(2 * n))
        covered += found.ci_low <= truth <= found.ci_high
        half = 1.96 * np.sqrt(max(found.value * (1 - found.value), 0.01) / n)
        ignoring += abs(found.value - truth) <= half
    assert covered >= 90 > ignoring


def test_a_detector_without_errors_has_a_rate_of_one_with_an_interval():
    is_harmful = np.repeat([True, False], 60)
    found = true_positive_rate_at(is_harmful, is_harmful + np.linspace(0, 0.1, 120), 0.05, np.arange(120))
    assert (found.value, found.ci_high, found.metric) == (1.0, 1.0, "tpr_at_fpr_0.05") and 0.9 < found.ci_low < 1
