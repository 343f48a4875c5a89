"""Logistic probes with folds that never divide a pair."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def logistic_probe(penalty: float = 1e-2) -> Pipeline:
    """L2-regularised logistic regression on scaled features; `penalty` is scikit-learn's C."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))


def grouped_folds(
    is_harmful: Bool[np.ndarray, " n"], pairs: Iterable[str], n_folds: int = 5, seed: int = 0
) -> list[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]]:
    """(train, test) rows of each fold. Partners of a pair stay together; rows without a pair stand alone.

    Raises:
        ValueError: fewer groups than folds, or a fold that would miss a class.
    """
    groups = np.array([pair or f"row {i}" for i, pair in enumerate(pairs)])
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


def out_of_fold_scores(
    features: Float[np.ndarray, "n d"],
    is_harmful: Bool[np.ndarray, " n"],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Float[np.ndarray, " n"]:
    """Each row's log-odds of being harmful, by a probe that has not seen its fold."""
    scores = np.empty(len(features))
    for train, test in folds:
        scores[test] = train_and_apply(features[train], is_harmful[train], features[test])
    return scores


def train_and_apply(
    features: Float[np.ndarray, "n d"], is_harmful: Bool[np.ndarray, " n"], others: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, " m"]:
    """Fits on one set, gives the log-odds of another: same queries, other modality, for example."""
    return logistic_probe().fit(features, is_harmful).decision_function(others)


def shuffled_labels(is_harmful: Bool[np.ndarray, " n"], pairs: Iterable[str], seed: int) -> Bool[np.ndarray, " n"]:
    """The control: labels dealt out anew. A probe that still separates them has memorised.

    Half of the pairs exchange their labels, drawn at random; what stands alone is permuted. Permuting whole pairs apart
    would leave folds with more of one class than their training part has less, and scores below chance; more of the
    pairs one way than the other would leave some of the classes' difference.
    """
    rng, dealt, groups = np.random.default_rng(seed), is_harmful.copy(), defaultdict(list)
    for row, pair in enumerate(pairs):
        groups[pair].append(row)
    alone = groups.pop("", [])
    alone += [row for rows in groups.values() if len(rows) == 1 for row in rows]
    mixed = [rows for rows in groups.values() if len(set(is_harmful[rows])) == 2]
    for i in rng.permutation(len(mixed))[: len(mixed) // 2]:
        dealt[mixed[i]] = is_harmful[mixed[i][::-1]]
    dealt[alone] = rng.permutation(is_harmful[alone])
    return dealt
