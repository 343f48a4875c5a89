import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes import PROBES, FoldedProbe, LogisticProbe, auroc_interval, grouped_folds

ALL = pytest.mark.parametrize("kind", list(PROBES.values()), ids=list(PROBES))


@pytest.fixture
def planted():
    """60 pairs in 8 dimensions, with harm along axis 0; partners share a strong nuisance variable."""
    rng = np.random.default_rng(0)
    harmful = np.tile([True, False], 60)
    features = rng.normal(size=(120, 8))
    features[:, 1] += np.repeat(rng.normal(0, 9, 60), 2)
    features[harmful, 0] += 3
    return features, harmful, np.repeat([f"p{i}" for i in range(60)], 2)


@ALL
def test_a_probe_finds_the_planted_axis(kind, planted):
    features, harmful, pairs = planted
    probe = kind().fit(features, harmful, pairs)
    assert probe.direction[0] > 0.8 and np.linalg.norm(probe.direction) == pytest.approx(1)
    folds = grouped_folds(harmful, pairs)
    folded = FoldedProbe.fit(kind(), features, harmful, folds, pairs)
    assert auroc_interval(harmful, folded.distances(features), pairs)[0] > 0.95
    without = features.copy()
    without[:, 0] = 0
    blind = FoldedProbe.fit(kind(), without, harmful, folds, pairs)
    assert abs(auroc_interval(harmful, blind.distances(without), pairs)[0] - 0.5) < 0.2


@ALL
def test_a_probe_is_a_scikit_learn_estimator(kind, planted):
    features, harmful, _ = planted
    names = np.where(harmful, "yes", "no")
    assert cross_val_score(clone(kind()), features, names, cv=3).mean() > 0.75
    probe = kind().fit(features, names)
    assert list(probe.classes_) == ["no", "yes"]
    assert ((probe.decision_function(features) > 0) == (probe.predict(features) == "yes")).all()
    if probe.gives_probability:
        np.testing.assert_allclose(probe.predict_proba(features).sum(1), 1)


CHECKED_IN_TESTS = {
    "check_do_not_raise_errors_in_init_or_set_params": "types are checked in tests, and this check passes wrong ones"
}


@parametrize_with_checks([LogisticProbe()], expected_failed_checks=lambda probe: CHECKED_IN_TESTS)
def test_scikit_learns_own_checks_pass(estimator, check):
    check(estimator)


@ALL
def test_constant_and_missing_features_are_rejected(kind):
    labels = np.tile([True, False], 10)
    with pytest.raises(ValueError, match="all 4 features are constant over 20 rows"):
        # Centring does not take 0.1 to exactly 0.
        kind().fit(np.full((20, 4), 0.1), labels)
    with pytest.raises(ValueError, match="NaN"):
        kind().fit(np.full((20, 4), np.nan), labels)
    with pytest.raises(ValueError, match="Only binary"):
        kind().fit(np.random.default_rng(0).normal(size=(20, 4)), np.ones(20))


def test_one_gram_matrix_serves_every_fold_if_features_are_not_scaled(planted):
    features, harmful, pairs = planted
    folds, settings = grouped_folds(harmful, pairs), {"penalties": (0.01, 1.0), "scaled": False}
    folded = FoldedProbe.fit(LogisticProbe(**settings), features, harmful, folds, pairs)
    for (train, test), weights in zip(folds, folded.fitted[0], strict=True):
        alone = LogisticProbe(**settings).fit(features[train], harmful[train], pairs[train])
        assert weights.penalty == alone.penalty_
        np.testing.assert_allclose(weights.weights, alone.coef_[0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(folded.scores(features)[test], alone.decision_function(features[test]), atol=1e-6)


def test_several_sets_of_labels_are_fitted_as_if_alone(planted):
    features, harmful, pairs = planted
    folds, other = grouped_folds(harmful, pairs), np.roll(harmful, 1)
    together = FoldedProbe.fit(LogisticProbe(), features, np.stack([harmful, other]), folds, pairs)
    alone = FoldedProbe.fit(LogisticProbe(), features, other, folds, pairs)
    np.testing.assert_array_equal(together.scores(features, 1), alone.scores(features))


def test_a_row_is_scored_by_a_probe_that_has_not_seen_its_pair(planted):
    """This holds for other features too: changing a pair there does not affect its own probe."""
    features, harmful, pairs = planted
    folds = grouped_folds(harmful, pairs)
    before = FoldedProbe.fit(LogisticProbe(), features, harmful, folds, pairs).scores(features)
    _, test = folds[0]
    changed = features.copy()
    changed[test] *= 7
    after = FoldedProbe.fit(LogisticProbe(), changed, harmful, folds, pairs).scores(features)
    np.testing.assert_array_equal(before[test], after[test])
    assert (before != after).any()


def test_a_fold_with_one_class_is_reported(planted):
    features, harmful, pairs = planted
    folds = [(np.flatnonzero(harmful), np.flatnonzero(~harmful))]
    with pytest.raises(ValueError, match="fold 1 of 1 is fitted on one class only"):
        FoldedProbe.fit(LogisticProbe(), features, harmful, folds, pairs)
