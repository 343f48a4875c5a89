"""Exactness: what is fitted on the Gram matrix is what scikit-learn fits on the features."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, Ridge
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from probes import PENALTIES, LogisticProbe, MeanDifferenceProbe, RidgeProbe, SvmProbe, dual
from probes.linear import inner_folds

PLAIN = {
    LogisticProbe: lambda penalty: LogisticRegression(C=penalty, tol=1e-8, solver="newton-cholesky", max_iter=10_000),
    RidgeProbe: lambda penalty: Ridge(alpha=1 / penalty),
    SvmProbe: lambda penalty: SVC(kernel="linear", C=penalty, tol=1e-8),
}


def plainly(probe, penalty, features, labels):
    """Scaler and estimator as scikit-learn has them; weights in the space of the features."""
    scaler = StandardScaler(with_std=probe.scaled).fit(features)
    fitted = PLAIN[type(probe)](penalty).fit(scaler.transform(features), np.where(labels, 1.0, -1.0))
    weights = np.ravel(fitted.coef_) / (scaler.scale_ if probe.scaled else 1)
    return weights, np.ravel(fitted.intercept_)[0] - weights @ scaler.mean_


@pytest.fixture
def wide():
    """40 pairs in 300 dimensions of uneven spread, far from the origin; separable."""
    rng = np.random.default_rng(0)
    harmful = np.tile([True, False], 40)
    features = rng.normal(size=(80, 300)) * np.geomspace(10, 0.1, 300) + 5
    features[harmful, 100:] += 0.3
    return features, harmful, np.repeat([f"p{i}" for i in range(40)], 2)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("penalty", [1e-5, 1e-4, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("kind", list(PLAIN))
def test_weights_equal_those_of_scikit_learn(kind, penalty, scaled, wide):
    features, harmful, pairs = wide
    probe = kind(penalties=(penalty,), scaled=scaled).fit(features, harmful, pairs)
    weights, bias = plainly(probe, penalty, features, harmful)
    assert np.abs(probe.coef_[0] - weights).max() <= 1e-4 * np.abs(weights).max()
    assert probe.bias == pytest.approx(bias, rel=1e-4, abs=1e-3)


def test_the_chosen_penalty_is_that_of_a_plain_nested_loop(wide):
    features, harmful, pairs = wide
    probe = LogisticProbe().fit(features, harmful, pairs)
    folds = inner_folds(harmful, pairs, 5, 0)
    seen = StandardScaler().fit_transform(features)
    options = {"scoring": "neg_log_loss", "tol": 1e-8, "max_iter": 100_000, "use_legacy_attributes": False}
    plain = LogisticRegressionCV(Cs=PENALTIES, cv=folds, l1_ratios=(0,), **options).fit(seen, harmful)
    assert probe.penalty_ == pytest.approx(np.ravel(plain.C_)[0])
    weights = plain.coef_[0] / StandardScaler().fit(features).scale_
    assert np.abs(probe.coef_[0] - weights).max() <= 1e-4 * np.abs(weights).max()


def test_newton_ends_at_the_minimum_where_classes_are_separable_and_the_penalty_weak():
    rng = np.random.default_rng(0)
    signs = np.repeat([1.0, -1.0], 30)
    features = rng.normal(size=(60, 200)) + 4 * signs[:, None]
    gram = features @ features.T
    *_, (alpha, bias) = dual.logistic(gram, signs, [1e-6, 1.0, 1e6])
    scores = gram @ alpha + bias
    # At the minimum each alpha is the pull of its example, and they sum to 0.
    pull = 1e6 * signs / (1 + np.exp(signs * scores))
    np.testing.assert_allclose(alpha, pull, atol=1e-6 * np.abs(alpha).max())
    assert abs(alpha.sum()) < 1e-6 * np.abs(alpha).max()


def test_the_mean_difference_is_the_difference_of_means_and_its_border_lies_half_way(wide):
    features, harmful, _ = wide
    probe = MeanDifferenceProbe().fit(features, harmful)
    means = [features[harmful == label].mean(0) for label in (True, False)]
    np.testing.assert_allclose(probe.coef_[0], means[0] - means[1], atol=1e-9)
    assert probe.decision_function(np.mean(means, axis=0)[None])[0] == pytest.approx(0, abs=1e-8)


def test_overlapping_and_unbalanced_classes_do_not_hold_libsvm_up():
    """Without a limit it turns on the spot for a hundred million steps."""
    rng = np.random.default_rng(0)
    features, harmful = rng.normal(size=(120, 12)), np.arange(120) < 7
    probe = SvmProbe(penalties=(0.1, 10.0)).fit(features, harmful)
    assert np.isfinite(probe.coef_).all()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_what_cannot_be_fitted_is_said():
    features = np.random.default_rng(0).normal(size=(40, 5))
    features[:, 0] *= 1e160
    with pytest.raises(ValueError, match="can't be fitted: features of too different size"):
        LogisticProbe(penalties=(1e6,), scaled=False).fit(features, np.tile([True, False], 20))


def test_ridge_is_not_moved_by_an_offset_of_the_states(wide):
    features, harmful, _ = wide
    near, far = (RidgeProbe(penalties=(0.1,), scaled=False).fit(features + by, harmful) for by in (0, 1e4))
    np.testing.assert_allclose(near.coef_, far.coef_, rtol=1e-6, atol=1e-9)
