"""Nested probes: ours on the Gram matrix and scikit-learn's on the features, with one thread each."""

import numpy as np
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from probes import PENALTIES, FoldedProbe, LogisticProbe, grouped_folds

N_LAYERS, N_MODALITIES, N_TIMED = 20, 3, 2
"""Layers and modalities of the whole study, and how many of their combinations are timed; all cost the same."""
N_PAIRS, N_FOLDS, N_INNER = 200, 5, 5
WIDTHS = (2048, 4096)
SPECTRUM = np.geomspace(10, 0.3, 64)
"""A few directions carry most of the variance, as in a residual stream."""
AGREEMENT = 1e-3
"""Difference of weights relative to the largest, as scikit-learn's tol=1e-8 reaches it at the weakest penalties."""

HARMFUL = np.tile([True, False], N_PAIRS)
PAIRS = np.repeat([f"pair {i}" for i in range(N_PAIRS)], 2)


def states(width: int, seed: int) -> np.ndarray:
    """Return random states, `prompt d` in float32, with harm along one of many directions."""
    rng = np.random.default_rng(seed)
    strong = (rng.normal(size=(2 * N_PAIRS, 64)) * SPECTRUM) @ rng.normal(size=(64, width)) / 8
    harm = 0.15 * np.outer(HARMFUL - 0.5, rng.normal(size=width))
    return (strong + rng.normal(size=strong.shape) + harm).astype(np.float32)


def ours(features: np.ndarray, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights and the penalty of each outer fold."""
    with threadpool_limits(1):
        folds = grouped_folds(HARMFUL, PAIRS, N_FOLDS)
        (fitted,) = FoldedProbe.fit(LogisticProbe(scaled=scaled), features, HARMFUL, folds, PAIRS).fitted
    return np.stack([probe.weights for probe in fitted]), np.array([probe.penalty for probe in fitted])


def plain(features: np.ndarray, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the same from what a user would write: a scaler and scikit-learn's nested logistic regression."""
    weights, penalties = [], []
    with threadpool_limits(1):
        for train, _ in grouped_folds(HARMFUL, PAIRS, N_FOLDS):
            inner = grouped_folds(HARMFUL[train], PAIRS[train], N_INNER)
            options = {"scoring": "neg_log_loss", "tol": 1e-8, "max_iter": 100_000, "use_legacy_attributes": False}
            nested = LogisticRegressionCV(Cs=PENALTIES, cv=inner, l1_ratios=(0,), **options)
            fitted = make_pipeline(StandardScaler(with_std=scaled), nested)
            fitted.fit(features[train].astype(np.float64), HARMFUL[train])
            weights.append(nested.coef_[0] / (fitted[0].scale_ if scaled else 1))
            penalties.append(np.ravel(nested.C_)[0])
    return np.stack(weights), np.array(penalties)
