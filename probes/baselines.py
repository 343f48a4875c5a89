"""What needs no model: length, first and last token, bag of words, and noise as wide as the states."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from probes.folds import Fold

C = 10.0
"""Penalty of the word probes: weak, for they should do as well as they can."""


def word_probe() -> Pipeline:
    """TF-IDF of words between blanks, and a logistic regression."""
    return make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), LogisticRegression(C=C, max_iter=1000))


def out_of_fold_words(
    texts: Sequence[str], is_harmful: Bool[np.ndarray, " n"], folds: Sequence[Fold]
) -> Float[np.ndarray, " n"]:
    """Each text's log-odds, by a word probe that has not seen its fold.

    Raises:
        ValueError: texts without a word.
    """
    texts, scores = np.asarray(texts, dtype=object), np.full(len(texts), np.nan)
    for train, test in folds:
        scores[test] = word_probe().fit(texts[train], is_harmful[train]).decision_function(texts[test])
    return scores


def length_scores(
    lengths: Float[np.ndarray, " n"], is_harmful: Bool[np.ndarray, " n"], folds: Sequence[Fold]
) -> Float[np.ndarray, " n"]:
    """Length over the training part's mean, its sign chosen there too."""
    scores = np.full(len(lengths), np.nan)
    for train, test in folds:
        gap = lengths[train][is_harmful[train]].mean() - lengths[train][~is_harmful[train]].mean()
        scores[test] = (lengths[test] - lengths[train].mean()) * (1 if gap >= 0 else -1)
    return scores


def random_features(n: int, d: int, seed: int) -> Float[np.ndarray, "n d"]:
    """Noise as wide as the states: what a probe of this many dimensions finds where there is nothing."""
    return np.random.default_rng(seed).normal(size=(n, d))
