"""Baselines that need no model: text length, bag of words, and noise of the states' width."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from probes.folds import Fold

C = 10.0
"""Penalty of the word probes (scikit-learn's C): weak, since the baseline should do as well as it can."""


def word_probe() -> Pipeline:
    """Return an unfitted logistic regression on TF-IDF of the words between spaces."""
    return make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), LogisticRegression(C=C, max_iter=1000))


def out_of_fold_words(
    texts: Sequence[str], is_harmful: Bool[np.ndarray, " n"], folds: Sequence[Fold]
) -> Float[np.ndarray, " n"]:
    """Return each text's log-odds from a word probe that has not seen its fold.

    Raises:
        ValueError: the texts contain no words.
    """
    texts, scores = np.asarray(texts, dtype=object), np.full(len(texts), np.nan)
    for train, test in folds:
        scores[test] = word_probe().fit(texts[train], is_harmful[train]).decision_function(texts[test])
    return scores


def length_scores(
    lengths: Float[np.ndarray, " n"], is_harmful: Bool[np.ndarray, " n"], folds: Sequence[Fold]
) -> Float[np.ndarray, " n"]:
    """Return each text's length minus the mean of the training part, with the sign that separates the classes there."""
    scores = np.full(len(lengths), np.nan)
    for train, test in folds:
        gap = lengths[train][is_harmful[train]].mean() - lengths[train][~is_harmful[train]].mean()
        scores[test] = (lengths[test] - lengths[train].mean()) * (1 if gap >= 0 else -1)
    return scores


def random_features(n: int, d: int, seed: int) -> Float[np.ndarray, "n d"]:
    """Return Gaussian noise as wide as the states: what a probe of that width reaches when there is nothing to find."""
    return np.random.default_rng(seed).normal(size=(n, d))
