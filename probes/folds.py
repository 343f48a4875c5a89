"""Folds that keep pairs together, and labels for controls."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

Fold = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]
"""Rows that a probe is fitted on, and rows that it is tested on."""


def grouped_folds(
    is_harmful: Bool[np.ndarray, " n"], pairs: Iterable[str | None], n_folds: int = 5, seed: int = 0
) -> list[Fold]:
    """Return stratified folds that keep the partners of a pair together; a row without a pair is its own group.

    A probe that has seen one partner knows the topic of the other, and with it half of the answer.

    Args:
        is_harmful: labels, to stratify by.
        pairs: pair of each row, or None.
        n_folds: number of folds.
        seed: seed of the shuffling.

    Raises:
        ValueError: fewer groups than folds, or a fold that would lack a class.
    """
    groups = as_groups(pairs)
    if len(set(groups)) < n_folds:
        raise ValueError(f"{len(set(groups))} pairs can't be divided into {n_folds} folds; give more queries")
    rarer = min(is_harmful.sum(), (~is_harmful).sum())
    if rarer < n_folds:
        raise ValueError(f"{rarer} queries of the rarer class can't be divided into {n_folds} folds; give more of it")
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    folds = list(splitter.split(np.zeros(len(groups)), is_harmful, groups))
    for train, test in folds:
        if len(set(is_harmful[train])) < 2 or len(set(is_harmful[test])) < 2:
            raise ValueError("a fold has queries of one class only; give more of the rarer class, or fewer folds")
    return folds


def category_folds(
    is_harmful: Bool[np.ndarray, " n"], categories: Iterable[str], groups: Iterable[str] | None = None
) -> list[Fold]:
    """Return folds that leave out one category each, to test whether a probe generalises to unseen kinds of harm.

    A group with rows in several categories is not divided: while one of its rows is tested, the others are not fitted
    on.

    Args:
        is_harmful: labels.
        categories: category of each row.
        groups: pairs, or rows that belong together for other reasons; by default every row stands alone.

    Raises:
        ValueError: fewer than two categories, queries without a category, a category with one class only, or nothing
            left to fit on.
    """
    categories = np.array(list(categories))
    n_without = int((categories == "").sum())
    if n_without:
        raise ValueError(f"{n_without} queries have no category; give each one, or use folds by pair")
    if len(set(categories)) < 2:
        raise ValueError(f"all queries are of category {str(categories[0])!r}; leaving one out takes at least two")
    for name in np.unique(categories):
        if len(set(is_harmful[categories == name])) < 2:
            raise ValueError(
                f"category {str(name)!r} has queries of one class only; give it both, or use folds by pair"
            )
    folds = list(LeaveOneGroupOut().split(categories, groups=categories))
    return folds if groups is None else [_without_partners(is_harmful, categories, groups, fold) for fold in folds]


def _without_partners(is_harmful: np.ndarray, categories: np.ndarray, groups: Iterable[str], fold: Fold) -> Fold:
    """Leave out of the fitted rows those that are in a group with a tested one."""
    (train, test), groups = fold, np.array(list(groups))
    train = train[~np.isin(groups[train], groups[test])]
    if len(set(is_harmful[train])) < 2:
        raise ValueError(
            f"without category {str(categories[test[0]])!r} and its partners in others, queries of one class are left; "
            "give pairs within a category, or use folds by pair"
        )
    return train, test


def as_groups(pairs: Iterable[str | None], texts: Iterable[str] | None = None) -> np.ndarray:
    """Return the group of each row: its pair, or the row itself where it has none; equal texts are grouped too."""
    names = np.array([pair or f"row {i}" for i, pair in enumerate(pairs)])
    if texts is None:
        return names
    columns = [np.unique(values, return_inverse=True)[1] for values in (names, np.array(list(texts)))]
    rows, n = np.arange(len(names)), len(names)
    # A graph whose nodes are rows (0 to n), pairs (from n) and texts (from 2 n), with an edge from each row to its pair
    # and to its text: connected components are the groups.
    nodes = np.concatenate([n + columns[0], 2 * n + columns[1]])
    links = coo_array((np.ones(2 * n), (np.tile(rows, 2), nodes)), shape=(3 * n, 3 * n))
    component = connected_components(links, directed=False)[1][:n]
    _, first, which = np.unique(component, return_index=True, return_inverse=True)
    return names[first][which]


def shuffled_labels(
    is_harmful: Bool[np.ndarray, " n"], pairs: Iterable[str | None], seed: int, exactly_half: bool = False
) -> Bool[np.ndarray, " n"]:
    """Return reshuffled labels for a control: a probe that still separates them has memorised.

    Each pair swaps its labels or not, by a coin toss. Single rows, and groups of one class that are equally large, are
    permuted among each other. Permuting whole pairs instead would give folds that have more of a class exactly where
    their training part has less, and scores below chance.

    Args:
        is_harmful: true labels.
        pairs: pair of each row, or None.
        seed: seed of the shuffling.
        exactly_half: swap exactly half of the pairs, which leaves less of the classes' difference in a direction fitted
            on all of them. Don't use it for probes with folds: an excess in one part is a deficit in the other, and
            scores fall below chance.
    """
    rng, shuffled = np.random.default_rng(seed), is_harmful.copy()
    groups: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(as_groups(pairs)):
        groups[name].append(row)
    pure: dict[int, list[list[int]]] = defaultdict(list)
    couples = []
    for rows in groups.values():
        if len(set(is_harmful[rows])) == 1:
            pure[len(rows)].append(rows)
        elif len(rows) == 2:
            couples.append(rows)
        else:
            shuffled[rows] = rng.permutation(is_harmful[rows])
    n = len(couples)
    swapped = rng.permutation(n)[: n // 2] if exactly_half else np.flatnonzero(rng.integers(2, size=n))
    for i in swapped:
        shuffled[couples[i]] = is_harmful[couples[i][::-1]]
    for same_size in pure.values():
        labels = rng.permutation([is_harmful[rows[0]] for rows in same_size])
        for rows, label in zip(same_size, labels, strict=True):
            shuffled[rows] = label
    return shuffled


def control_task(words: Iterable[str], seed: int) -> Bool[np.ndarray, " n"] | None:
    """Return the labels of a control task (Hewitt & Liang, arXiv:1909.03368): random for each word, here the verb.

    A probe that learns them as well as the real labels shows its capacity to memorise, not what the states contain.
    Words are assigned so that each label gets about half of the rows.

    Returns:
        Labels, or None where the task can't be learned or tested: fewer than half of the rows share their word with
        another pair, or there are fewer than four words.
    """
    words = list(words)
    kinds, n_rows = np.unique(words, return_counts=True)
    # Partners share their word: more than two rows mean more than one pair.
    if len(kinds) < 4 or n_rows[n_rows > 2].sum() < len(words) / 2:
        return None
    order = np.random.default_rng(seed).permutation(len(kinds))
    label, balance = {}, 0
    for i in order:
        label[kinds[i]] = balance <= 0
        balance += n_rows[i] if balance <= 0 else -n_rows[i]
    return np.array([label[word] for word in words])


def control_ceiling(words: Iterable[str], folds: Iterable[Fold]) -> float:
    """Return the accuracy on a control task of a probe that remembers each word it was fitted on, and guesses others.

    It is below 1 where words occur in the tested part of a fold only, and with it the largest gap to the real labels
    that memorising leaves is above 0.
    """
    words = np.array(list(words))
    is_known = np.concatenate([np.isin(words[test], words[train]) for train, test in folds])
    return float(np.where(is_known, 1.0, 0.5).mean())
