"""Fits on the Gram matrix equal scikit-learn's fits on the features."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, Ridge
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from probes import PENALTIES, LogisticProbe, MeanDifferenceProbe, RidgeProbe, SvmProbe, dual
from probes.linear import inner_folds

REFERENCE = {
    LogisticProbe: lambda penalty: LogisticRegression(C=penalty, tol=1e-8, solver="newton-cholesky", max_iter=10_000),
    RidgeProbe: lambda penalty: Ridge(alpha=1 / penalty),
    SvmProbe: lambda penalty: SVC(kernel="linear", C=penalty, tol=1e-8),
}


def reference_fit(probe, penalty, features, labels):
    """Fit scikit-learn's scaler and estimator, and return weights and bias in the space of the features."""
    scaler = StandardScaler(with_std=probe.scaled).fit(features)
    fitted = REFERENCE[type(probe)](penalty).fit(scaler.transform(features), np.where(labels, 1.0, -1.0))
    weights = np.ravel(fitted.coef_) / (scaler.scale_ if probe.scaled else 1)
    return weights, np.ravel(fitted.intercept_)[0] - weights @ scaler.mean_


@pytest.fixture
def wide():
    """Separable data: 40 pairs in 300 dimensions of uneven spread, far from the origin."""
    rng = np.random.default_rng(0)
    harmful = np.tile([True, False], 40)
    features = rng.normal(size=(80, 300)) * np.geomspace(10, 0.1, 300) + 5
    features[harmful, 100:] += 0.3
    return features, harmful, np.repeat([f"p{i}" for i in range(40)], 2)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("penalty", [1e-5, 1e-4, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("kind", list(REFERENCE))
def test_weights_equal_those_of_scikit_learn(kind, penalty, scaled, wide):
    features, harmful, pairs = wide
    probe = kind(penalties=(penalty,), scaled=scaled).fit(features, harmful, pairs)
    weights, bias = reference_fit(probe, penalty, features, harmful)
    assert np.abs(probe.coef_[0] - weights).max() <= 1e-4 * np.abs(weights).max()
    assert probe.bias == pytest.approx(bias, rel=1e-4, abs=1e-3)


def test_the_chosen_penalty_is_that_of_scikit_learns_cross_validation(wide):
    features, harmful, pairs = wide
    probe = LogisticProbe().fit(features, harmful, pairs)
    folds = inner_folds(harmful, pairs, 5, 0)
    scaled = StandardScaler().fit_transform(features)
    options = {"scoring": "neg_log_loss", "tol": 1e-8, "max_iter": 100_000, "use_legacy_attributes": False}
    plain = LogisticRegressionCV(Cs=PENALTIES, cv=folds, l1_ratios=(0,), **options).fit(scaled, harmful)
    assert probe.penalty_ == pytest.approx(np.ravel(plain.C_)[0])
    weights = plain.coef_[0] / StandardScaler().fit(features).scale_
    assert np.abs(probe.coef_[0] - weights).max() <= 1e-4 * np.abs(weights).max()


def test_newton_reaches_the_minimum_for_separable_classes_and_a_weak_penalty():
    rng = np.random.default_rng(0)
    signs = np.repeat([1.0, -1.0], 30)
    features = rng.normal(size=(60, 200)) + 4 * signs[:, None]
    gram = features @ features.T
    *_, (alpha, bias) = dual.logistic(gram, signs, [1e-6, 1.0, 1e6])
    scores = gram @ alpha + bias
    # At the minimum each alpha equals the gradient of its example's loss, and they sum to 0.
    gradient = 1e6 * signs / (1 + np.exp(signs * scores))
    np.testing.assert_allclose(alpha, gradient, atol=1e-6 * np.abs(alpha).max())
    assert abs(alpha.sum()) < 1e-6 * np.abs(alpha).max()


def test_the_mean_difference_has_its_boundary_halfway_between_the_means(wide):
    features, harmful, _ = wide
    probe = MeanDifferenceProbe().fit(features, harmful)
    means = [features[harmful == label].mean(0) for label in (True, False)]
    np.testing.assert_allclose(probe.coef_[0], means[0] - means[1], atol=1e-9)
    assert probe.decision_function(np.mean(means, axis=0)[None])[0] == pytest.approx(0, abs=1e-8)


def test_overlapping_and_unbalanced_classes_do_not_stall_libsvm():
    """Without a limit it runs for a hundred million steps."""
    rng = np.random.default_rng(0)
    features, harmful = rng.normal(size=(120, 12)), np.arange(120) < 7
    probe = SvmProbe(penalties=(0.1, 10.0)).fit(features, harmful)
    assert np.isfinite(probe.coef_).all()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_features_that_cannot_be_fitted_are_reported():
    features = np.random.default_rng(0).normal(size=(40, 5))
    features[:, 0] *= 1e160
    with pytest.raises(ValueError, match="can't be fitted: the features differ too much in size"):
        LogisticProbe(penalties=(1e6,), scaled=False).fit(features, np.tile([True, False], 20))


def test_ridge_does_not_depend_on_an_offset_of_the_states(wide):
    features, harmful, _ = wide
    near, far = (RidgeProbe(penalties=(0.1,), scaled=False).fit(features + by, harmful) for by in (0, 1e4))
    np.testing.assert_allclose(near.coef_, far.coef_, rtol=1e-6, atol=1e-9)
