"""One probe a fold, applied to what it has not seen: the same queries in another modality too."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from sklearn.utils import check_array

from probes.folds import Fold
from probes.linear import DualProbe, LinearProbe, Space, Weights


def refit_spread(n_folds: int) -> float:
    """How much further out-of-fold scores spread than those of one probe.

    Its probes share most of what they were fitted on, and each was fitted on what others are tested on.
    Nadeau & Bengio (2003): variances are 1 + k / (k - 1) times as large. Right where there is nothing to be found,
    too wide where a probe finds nearly all.
    """
    return float(np.sqrt(1 + n_folds / (n_folds - 1)))


@dataclass(frozen=True)
class FoldedProbe:
    """Probes of one kind, fitted on the training part of each fold."""

    folds: Sequence[Fold]
    fitted: Sequence[Sequence[Weights]]
    """By task and fold."""

    @classmethod
    def fit(
        cls,
        probe: LinearProbe,
        features: Float[np.ndarray, "n d"],
        tasks: Bool[np.ndarray, "*task n"],
        folds: Sequence[Fold],
        groups: Shaped[np.ndarray, " n"],
    ) -> "FoldedProbe":
        """Scales within the training part of each fold; without scaling one Gram matrix serves all of them.

        Args:
            probe: settings; left as it is.
            features: of every row.
            tasks: labels, or several sets of them.
            folds: of `grouped_folds` or `category_folds`.
            groups: what inner folds must not divide.

        Raises:
            ValueError: features that are no numbers or all constant, a class missing in a fold.
        """
        features = check_array(features, dtype=np.float64)
        tasks = np.atleast_2d(tasks)
        whole = None
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
                known = gram[np.ix_(train, train)]
                by_fold.append(probe.fit_in(whole.part(train), known, tasks[:, train], groups[train]))
        return cls(folds, list(zip(*by_fold, strict=True)))

    def scores(self, features: Float[np.ndarray, "n d"], task: int = 0) -> Float[np.ndarray, " n"]:
        """Each row's score, by the probe that has not seen its fold."""
        return self._applied(features, task, as_distances=False)

    def distances(self, features: Float[np.ndarray, "n d"], task: int = 0) -> Float[np.ndarray, " n"]:
        """Scores over the length of the weights: comparable between folds that chose other penalties."""
        return self._applied(features, task, as_distances=True)

    def _applied(self, features: np.ndarray, task: int, as_distances: bool) -> Float[np.ndarray, " n"]:
        scores = np.full(len(features), np.nan)
        for (_, test), one in zip(self.folds, self.fitted[task], strict=True):
            scores[test] = applied(one, features[test], as_distances)
        return scores


def applied(one: Weights, features: Float[np.ndarray, "n d"], as_distances: bool = True) -> Float[np.ndarray, " n"]:
    """Distances to the border, or scores. A probe that found nothing (no weights) tells nothing: 0."""
    scores = features.astype(np.float64) @ one.weights + one.bias
    return scores / (one.length or np.inf) if as_distances else scores
