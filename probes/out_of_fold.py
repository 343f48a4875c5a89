"""Probes fitted fold by fold and applied to the queries they have not seen, in any modality."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from sklearn.utils import check_array

from probes.folds import Fold
from probes.linear import DualProbe, LinearProbe, Space, Weights


def refit_spread(n_folds: int) -> float:
    """Return how much wider an interval of out-of-fold scores has to be than that of a single probe.

    The probes of different folds share most of their training rows, and each was trained on rows that test the others.
    Nadeau & Bengio (2003) therefore multiply the variance by 1 + k / (k - 1) for k folds. This is right where there is
    nothing to find and too wide where a probe separates almost everything.
    """
    return float(np.sqrt(1 + n_folds / (n_folds - 1)))


@dataclass(frozen=True)
class FoldedProbe:
    """Probes of one kind, one for each fold and set of labels."""

    folds: Sequence[Fold]
    fitted: Sequence[Sequence[Weights]]
    """Weights by task (a set of labels) and fold."""

    @classmethod
    def fit(
        cls,
        probe: LinearProbe,
        features: Float[np.ndarray, "n d"],
        tasks: Bool[np.ndarray, "*task n"],
        folds: Sequence[Fold],
        groups: Shaped[np.ndarray, " n"],
    ) -> "FoldedProbe":
        """Fit a probe on the training part of each fold; scaling is fitted there too.

        Args:
            probe: settings; the probe itself is not fitted.
            features: features of every row.
            tasks: labels, or several sets of labels.
            folds: from `grouped_folds` or `category_folds`.
            groups: groups that inner folds keep together.

        Raises:
            ValueError: features that are not finite or all constant, or a fold that lacks a class.
        """
        features = check_array(features, dtype=np.float64)
        tasks = np.atleast_2d(tasks)
        whole = None
        # Without scaling, every fold's Gram matrix is a block of the one of all rows. Centring on the mean of all rows
        # instead of the fold's changes nothing but the bias.
        if isinstance(probe, DualProbe) and not probe.scaled:
            whole = Space.of(features, scaled=False)
            gram = whole.gram()
        by_fold = []
        for i, (train, _) in enumerate(folds):
            if any(len(set(labels[train])) < 2 for labels in tasks):
                raise ValueError(f"fold {i + 1} of {len(folds)} is fitted on one class only; give more of the other")
            if whole is None:
                by_fold.append(probe.fit_each(features[train], tasks[:, train], groups[train]))
            else:
                block = gram[np.ix_(train, train)]
                by_fold.append(probe.fit_in(whole.part(train), block, tasks[:, train], groups[train]))
        return cls(folds, list(zip(*by_fold, strict=True)))

    def scores(self, features: Float[np.ndarray, "n d"], task: int = 0) -> Float[np.ndarray, " n"]:
        """Score each row by the probe that has not seen its fold."""
        return self._apply(features, task, as_distances=False)

    def distances(self, features: Float[np.ndarray, "n d"], task: int = 0) -> Float[np.ndarray, " n"]:
        """Return scores divided by the length of the weights, comparable between folds with different penalties."""
        return self._apply(features, task, as_distances=True)

    def _apply(self, features: np.ndarray, task: int, as_distances: bool) -> Float[np.ndarray, " n"]:
        scores = np.full(len(features), np.nan)
        for (_, test), weights in zip(self.folds, self.fitted[task], strict=True):
            scores[test] = apply_weights(weights, features[test], as_distances)
        return scores


def apply_weights(
    weights: Weights, features: Float[np.ndarray, "n d"], as_distances: bool = True
) -> Float[np.ndarray, " n"]:
    """Return distances to the decision boundary, or scores. A probe with zero weights is at distance 0 everywhere."""
    scores = features.astype(np.float64) @ weights.weights + weights.bias
    return scores / (weights.length or np.inf) if as_distances else scores
