import numpy as np
import pytest

from probes import as_groups, category_folds, control_ceiling, control_task, grouped_folds, shuffled_labels

HARMFUL = np.tile([True, False], 60)
PAIRS = np.repeat([f"p{i}" for i in range(60)], 2)


def test_folds_keep_pairs_together_and_test_each_row_once():
    folds = grouped_folds(HARMFUL, PAIRS)
    for train, test in folds:
        assert not set(PAIRS[train]) & set(PAIRS[test])
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(120))


def test_rows_without_a_pair_are_their_own_group():
    folds = grouped_folds(np.tile([True, False], 10), [""] * 20)
    assert {len(test) for _, test in folds} == {4}


def test_too_few_pairs_and_one_sided_folds_are_reported():
    with pytest.raises(ValueError, match="3 pairs can't be divided into 5 folds"):
        grouped_folds(np.array([True, False] * 3), ["a", "a", "b", "b", "c", "c"])
    with pytest.raises(ValueError, match="1 queries of the rarer class"):
        grouped_folds(np.array([True] + [False] * 19), [""] * 20)


def test_each_category_is_left_out_once():
    categories = np.repeat(["violence", "weapons", "fraud"], 40)
    folds = category_folds(HARMFUL, categories)
    assert [set(categories[test]) for _, test in folds] == [{"fraud"}, {"violence"}, {"weapons"}]
    assert all(not set(categories[train]) & set(categories[test]) for train, test in folds)


def test_partners_in_different_categories_are_not_divided_by_category_folds():
    categories = np.repeat(["violence", "weapons", "fraud"], 40)
    # The harmless partner of the first pair of each category is in the next category.
    categories[[1, 41, 81]] = ["weapons", "fraud", "violence"]
    folds = category_folds(HARMFUL, categories, PAIRS)
    assert any(set(PAIRS[train]) & set(PAIRS[test]) for train, test in category_folds(HARMFUL, categories))
    for train, test in folds:
        assert not set(PAIRS[train]) & set(PAIRS[test]) and len(set(categories[test])) == 1
        # Nothing else is lost: only the two partners that the tested category has elsewhere.
        assert len(train) == 120 - len(test) - 2
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(120))


def test_categories_that_share_every_pair_cannot_be_left_out():
    categories = np.where(np.arange(120) % 4 < 2, np.where(HARMFUL, "a", "b"), np.where(HARMFUL, "b", "a"))
    with pytest.raises(ValueError, match="without category 'a' and its partners in others, queries of one class"):
        category_folds(HARMFUL, categories, PAIRS)


def test_categories_that_cannot_be_left_out_are_reported():
    with pytest.raises(ValueError, match="all queries are of category 'fraud'"):
        category_folds(HARMFUL, ["fraud"] * 120)
    with pytest.raises(ValueError, match="1 queries have no category"):
        category_folds(HARMFUL, ["fraud"] * 60 + ["weapons"] * 59 + [""])
    with pytest.raises(ValueError, match="category 'weapons' has queries of one class only"):
        category_folds(HARMFUL, np.where(np.arange(120) == 0, "weapons", "fraud"))


def test_shuffled_labels_keep_one_of_each_class_per_pair_and_are_half_right():
    shuffled = [shuffled_labels(HARMFUL, PAIRS, seed) for seed in range(50)]
    assert all((labels.reshape(60, 2).sum(1) == 1).all() for labels in shuffled)
    assert np.mean([labels == HARMFUL for labels in shuffled]) == pytest.approx(0.5, abs=0.04)
    assert len({labels.tobytes() for labels in shuffled}) == 50
    exact = shuffled_labels(HARMFUL, PAIRS, 0, exactly_half=True)
    assert (exact == HARMFUL).sum() == 60


def test_a_probe_does_no_better_and_no_worse_than_chance_on_shuffled_labels():
    """Swapping exactly half of the pairs makes folds contradict each other: 0.4 where classes are far apart."""
    from probes import FoldedProbe, LogisticProbe, auroc_interval

    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 8)) + 4 * HARMFUL[:, None]
    folds, auroc = grouped_folds(HARMFUL, PAIRS), {}
    for exactly_half in (False, True):
        tasks = np.stack([shuffled_labels(HARMFUL, PAIRS, seed, exactly_half) for seed in range(30)])
        fitted = FoldedProbe.fit(LogisticProbe(penalties=(0.1,)), features, tasks, folds, PAIRS)
        auroc[exactly_half] = np.mean(
            [auroc_interval(labels, fitted.distances(features, i))[0] for i, labels in enumerate(tasks)]
        )
    assert auroc[False] == pytest.approx(0.5, abs=0.04) and auroc[True] < 0.46


def test_a_control_task_gives_each_word_the_same_label_everywhere():
    words = np.array([f"verb{i % 10}" for i in range(120)])
    task = control_task(words, 0)
    assert all(len(set(task[words == word])) == 1 for word in words)
    assert task.mean() == 0.5
    assert len({control_task(words, seed).tobytes() for seed in range(10)}) > 5


def test_there_is_no_control_task_where_words_do_not_recur():
    assert control_task(np.repeat([f"verb{i}" for i in range(60)], 2), 0) is None
    assert control_task(["make"] * 60 + ["take"] * 60, 0) is None


def test_the_ceiling_of_a_control_task_is_what_remembering_reaches():
    words = np.array(["known", "known", "rare", "rare", "known", "known", "alone", "alone"])
    folds = [(np.arange(4, 8), np.arange(4)), (np.arange(4), np.arange(4, 8))]
    assert control_ceiling(words, folds) == (4 * 1.0 + 4 * 0.5) / 8
    # A probe that knows the label of every word that it has seen, and says "no" to all others.
    reached = []
    for seed in range(200):
        labels = dict(zip(sorted(set(words)), np.random.default_rng(seed).random(3) < 0.5, strict=True))
        right = [
            labels[words[row]] == (labels[words[row]] if words[row] in words[train] else False)
            for train, test in folds
            for row in test
        ]
        reached.append(np.mean(right))
    assert np.mean(reached) == pytest.approx(0.75, abs=0.05)
    assert control_ceiling(["make"] * 8, folds) == 1.0


def test_rows_connected_by_pair_or_text_form_one_group():
    pairs = ["a", "a", "b", "b", "", "", "c", "c"]
    texts = ["1", "2", "3", "2", "5", "5", "7", "8"]
    groups = as_groups(pairs, texts)
    assert len(set(groups[:4])) == 1 and groups[4] == groups[5] and groups[6] == groups[7]
    assert len(set(groups)) == 3 and as_groups(pairs).tolist() == ["a", "a", "b", "b", "row 4", "row 5", "c", "c"]


@pytest.mark.parametrize(
    "pattern",
    [[True, False, False, True], [True, False, False], [True, True, True, False, False, False]],
    ids=["palindrome", "three", "six"],
)
def test_labels_of_larger_groups_are_shuffled_too(pattern):
    harmful, pairs = np.tile(pattern, 20), np.repeat([f"g{i}" for i in range(20)], len(pattern))
    shuffled = [shuffled_labels(harmful, pairs, seed) for seed in range(20)]
    chance = np.mean(pattern) ** 2 + (1 - np.mean(pattern)) ** 2
    assert np.mean([labels == harmful for labels in shuffled]) == pytest.approx(chance, abs=0.05)
    assert all(labels.sum() == harmful.sum() for labels in shuffled)


def test_groups_of_one_class_swap_labels_with_groups_of_the_same_size():
    harmful, groups = np.repeat([True, False] * 20, 3), np.repeat([f"g{i}" for i in range(40)], 3)
    shuffled = [shuffled_labels(harmful, groups, seed) for seed in range(30)]
    assert np.mean([labels == harmful for labels in shuffled]) == pytest.approx(0.5, abs=0.08)
    assert all(len(set(labels[groups == "g3"])) == 1 for labels in shuffled)
