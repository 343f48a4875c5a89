"""Probes as scikit-learn estimators; their penalty is chosen on inner folds that keep pairs together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from probes import dual
from probes.folds import Fold, as_groups, grouped_folds

PENALTIES = tuple(np.logspace(-5, 1, 7).tolist())
"""Values of scikit-learn's C, from strong to weak regularisation."""

SVM_PENALTIES = tuple(np.logspace(-6, -1, 6).tolist())
"""Values of C for the SVM. Beyond 1 / d a scaled SVM has a hard margin: the probe stays the same, but libsvm converges
very slowly."""


@dataclass(frozen=True)
class Weights:
    """A fitted probe in the space of the states."""

    weights: Float[np.ndarray, " d"]
    bias: float
    length: float
    """Norm of the weights in the probe's own, possibly scaled, space: scores over it are distances to the boundary."""
    penalty: float
    """The chosen C; NaN for a probe without penalty."""


class LinearProbe(ClassifierMixin, BaseEstimator):
    """Base class of the probes: binary linear classifiers whose positive class is the second of `classes_`.

    Attributes:
        coef_, intercept_, classes_: as in scikit-learn's linear classifiers, in the space of the unscaled features.
        penalty_: the chosen C.
    """

    gives_probability: ClassVar[bool] = False

    def fit(self, X, y, groups=None) -> "LinearProbe":
        """Fit the probe.

        Args:
            X: features (`n d`), anything that scikit-learn accepts as an array.
            y: labels of two kinds (`n`).
            groups: groups that inner folds keep together (`n`); by default every row is its own group.

        Raises:
            ValueError: not two classes, features that are not finite or all constant, or too few rows for inner folds.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) != 2:
            raise ValueError(f"Only binary classification is supported; y has {len(self.classes_)} class(es)")
        groups = as_groups([None] * len(X)) if groups is None else np.asarray(groups)
        (fitted,) = self.fit_each(X, (y == self.classes_[1])[None], groups)
        self.coef_, self.intercept_ = fitted.weights[None], np.array([fitted.bias])
        self.penalty_ = fitted.penalty
        return self

    def fit_each(
        self, features: Float[np.ndarray, "n d"], tasks: Bool[np.ndarray, "task n"], groups: np.ndarray
    ) -> list[Weights]:
        """Fit several sets of labels of the same rows; work that depends only on the features is done once.

        Raises:
            ValueError: see `fit`.
        """
        raise NotImplementedError

    def decision_function(self, X) -> Float[np.ndarray, " n"]:
        """Return scores, above 0 for the second class."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False) @ self.coef_[0] + self.intercept_[0]

    def predict(self, X) -> Shaped[np.ndarray, " n"]:
        is_second = self.decision_function(X) > 0
        return self.classes_[is_second.astype(int)]

    @property
    def direction(self) -> Float[np.ndarray, " d"]:
        """Weights scaled to unit length: a direction in the space of the states."""
        return self.coef_[0] / np.linalg.norm(self.coef_[0])

    @property
    def bias(self) -> float:
        return float(self.intercept_[0])

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


class _Probabilities:
    """Probabilities, for probes whose scores are log-odds."""

    gives_probability = True

    def predict_proba(self, X) -> Float[np.ndarray, "n 2"]:
        positive = expit(self.decision_function(X))
        return np.stack([1 - positive, positive], axis=1)


class DualProbe(LinearProbe):
    """Base class of the probes that are fitted on the Gram matrix, see `probes.dual`."""

    _path: ClassVar[dual.Path]
    _loss: ClassVar[staticmethod]

    def __init__(self, penalties: Sequence[float] = PENALTIES, scaled: bool = True, n_inner: int = 5, seed: int = 0):
        self.penalties = penalties
        self.scaled = scaled
        self.n_inner = n_inner
        self.seed = seed

    def fit_each(
        self, features: Float[np.ndarray, "n d"], tasks: Bool[np.ndarray, "task n"], groups: np.ndarray
    ) -> list[Weights]:
        space = Space.of(features, self.scaled)
        return self.fit_in(space, space.gram(), tasks, groups)

    def fit_in(
        self, space: "Space", gram: dual.Gram, tasks: Bool[np.ndarray, "task n"], groups: np.ndarray
    ) -> list[Weights]:
        """Do the work of `fit_each` for rows whose Gram matrix has been computed.

        Args:
            space: the rows, centred and scaled.
            gram: inner products of the rows.
            tasks: sets of labels of the rows.
            groups: groups that inner folds keep together.

        Raises:
            ValueError: see `fit`.
        """
        fitted = []
        for labels in tasks:
            signs = np.where(labels, 1.0, -1.0)
            penalty = self._choose_penalty(gram, signs, groups)
            (fit,) = self._path(gram, signs, [penalty])
            fitted.append(space.weights(fit, penalty if len(self.penalties) else np.nan))
        return fitted

    def _choose_penalty(self, gram: dual.Gram, signs: dual.Signs, groups: np.ndarray) -> float:
        """Return the penalty with the smallest loss on inner folds; among equals, the strongest."""
        penalties = sorted(self.penalties) or [np.nan]
        if len(penalties) == 1:
            return penalties[0]
        losses = np.zeros(len(penalties))
        # Inner folds are blocks of the same Gram matrix: no features are touched here.
        for train, test in inner_folds(signs > 0, groups, self.n_inner, self.seed):
            within, across = gram[np.ix_(train, train)], gram[np.ix_(test, train)]
            for i, fit in enumerate(self._path(within, signs[train], penalties)):
                losses[i] += self._loss(signs[test], across @ fit.alpha + fit.bias)
        return penalties[int(losses.argmin())]


def inner_folds(labels: Bool[np.ndarray, " n"], groups: np.ndarray, n_folds: int, seed: int) -> list[Fold]:
    """Return folds for choosing the penalty: `n_folds`, or as many as the rarer class has groups.

    Args:
        labels: labels, to stratify by.
        groups: groups that folds keep together.
        n_folds: largest number of folds.
        seed: seed of the shuffling.

    Raises:
        ValueError: a class has fewer than two groups.
    """
    return _cached_folds(labels.tobytes(), tuple(groups.tolist()), n_folds, seed)


@lru_cache(maxsize=1024)
def _cached_folds(packed: bytes, groups: tuple, n_folds: int, seed: int) -> list[Fold]:
    """Compute inner folds, which take as long as a fit and recur at every layer and in every modality."""
    labels, names = np.frombuffer(packed, dtype=bool), np.array(groups)
    n = min(n_folds, *(len(set(names[labels == label])) for label in (True, False)))
    if n < 2:
        raise ValueError("a class has fewer than two groups (n_samples = 1?), and no penalty can be chosen; give more")
    return grouped_folds(labels, [str(name) for name in groups], n, seed)


@dataclass(frozen=True)
class Space:
    """Features as a probe sees them: centred, and optionally scaled to unit variance."""

    features: Float[np.ndarray, "n d"]
    centre: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"] | None

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"], scaled: bool) -> "Space":
        """Centre features, and scale them if wanted.

        Raises:
            ValueError: every feature is constant.
        """
        scaler = StandardScaler(with_std=scaled).fit(features)
        transformed = scaler.transform(features)
        if not np.ptp(features, axis=0).any():
            raise ValueError(f"all {features.shape[1]} features are constant over {len(features)} rows: nothing to fit")
        return cls(transformed, scaler.mean_, scaler.scale_)

    def gram(self) -> dual.Gram:
        return self.features @ self.features.T

    def part(self, rows: np.ndarray) -> "Space":
        return Space(self.features[rows], self.centre, self.scale)

    def weights(self, fit: dual.Fit, penalty: float) -> Weights:
        """Return the weights of a fit in the space of the states, w = alpha X, with scaling and centring undone."""
        own = fit.alpha @ self.features
        weights = own if self.scale is None else own / self.scale
        return Weights(weights, fit.bias - float(weights @ self.centre), float(np.linalg.norm(own)), penalty)


class LogisticProbe(_Probabilities, DualProbe):
    """Logistic regression with an L2 penalty, as `sklearn.linear_model.LogisticRegression`.

    The penalty is chosen by log loss.
    """

    _path = staticmethod(dual.logistic)
    _loss = staticmethod(dual.log_loss)


class RidgeProbe(DualProbe):
    """Least squares on +-1, as `sklearn.linear_model.RidgeClassifier(alpha=1 / C)`.

    The penalty is chosen by squared error.
    """

    _path = staticmethod(dual.ridge)
    _loss = staticmethod(dual.squared_loss)


class SvmProbe(DualProbe):
    """Linear support vector machine, as `sklearn.svm.SVC(kernel="linear")`.

    The penalty is chosen by hinge loss.
    """

    _path = staticmethod(dual.svm)
    _loss = staticmethod(dual.hinge_loss)

    def __init__(
        self, penalties: Sequence[float] = SVM_PENALTIES, scaled: bool = True, n_inner: int = 5, seed: int = 0
    ):
        super().__init__(penalties, scaled, n_inner, seed)


class MeanDifferenceProbe(DualProbe):
    """Difference of class means (mass mean, Marks & Tegmark, arXiv:2310.06824), with the boundary halfway.

    Features are not scaled by default.
    """

    _path = staticmethod(dual.mean_difference)
    _loss = staticmethod(dual.hinge_loss)

    def __init__(self, scaled: bool = False):
        super().__init__(penalties=(), scaled=scaled)


class LdaProbe(_Probabilities, LinearProbe):
    """Fisher's discriminant with Ledoit and Wolf's shrinkage, from scikit-learn with solver `lsqr`.

    The shrinkage depends on the individual features, so a fit in the row space would be a different probe. It is fitted
    on all features, in time that grows with d^3.
    """

    def fit_each(
        self, features: Float[np.ndarray, "n d"], tasks: Bool[np.ndarray, "task n"], groups: np.ndarray
    ) -> list[Weights]:
        # Only for its check that the features are not all constant.
        Space.of(features, scaled=False)
        weights_of_tasks = []
        for labels in tasks:
            fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(features, labels)
            weights = fitted.coef_[0]
            norm = float(np.linalg.norm(weights))
            weights_of_tasks.append(Weights(weights, float(fitted.intercept_[0]), norm, np.nan))
        return weights_of_tasks


PROBES: dict[str, type[LinearProbe]] = {
    "logistic": LogisticProbe,
    "lda": LdaProbe,
    "ridge": RidgeProbe,
    "svm": SvmProbe,
    "mean_difference": MeanDifferenceProbe,
}
"""Probes by the name used in tables."""
