import numpy as np
import pytest

from probes import auroc_interval, grouped_folds, out_of_fold_scores, shuffled_labels, train_and_apply


@pytest.fixture
def planted():
    """60 pairs, d = 8, harm along axis 0; partners share a strong nuisance."""
    rng = np.random.default_rng(0)
    harmful = np.tile([True, False], 60)
    features = rng.normal(size=(120, 8))
    features[:, 1] += np.repeat(rng.normal(0, 9, 60), 2)
    features[harmful, 0] += 3
    return features, harmful, np.repeat([f"p{i}" for i in range(60)], 2)


def test_a_probe_finds_the_planted_axis_and_shuffled_labels_do_not(planted):
    features, harmful, pairs = planted
    folds = grouped_folds(harmful, pairs)
    assert auroc_interval(harmful, out_of_fold_scores(features, harmful, folds))[0] > 0.95
    dealt = shuffled_labels(harmful, pairs, 0)
    assert sorted(dealt) == sorted(harmful)
    assert abs(auroc_interval(dealt, out_of_fold_scores(features, dealt, folds))[0] - 0.5) < 0.15


def test_folds_never_divide_a_pair_and_test_each_row_once(planted):
    _, harmful, pairs = planted
    folds = grouped_folds(harmful, pairs)
    for train, test in folds:
        assert not set(pairs[train]) & set(pairs[test])
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(120))


def test_rows_without_a_pair_stand_alone():
    folds = grouped_folds(np.tile([True, False], 10), [""] * 20)
    assert {len(test) for _, test in folds} == {4}


def test_a_probe_carries_over_to_another_set(planted):
    features, harmful, _ = planted
    scores = train_and_apply(features[:60], harmful[:60], features[60:])
    assert auroc_interval(harmful[60:], scores)[0] > 0.95


def test_too_few_pairs_and_one_sided_folds_are_named():
    with pytest.raises(ValueError, match="3 pairs can't be divided into 5 folds"):
        grouped_folds(np.array([True, False] * 3), ["a", "a", "b", "b", "c", "c"])
    with pytest.raises(ValueError, match="1 queries of the rarer class"):
        grouped_folds(np.array([True] + [False] * 19), [""] * 20)
