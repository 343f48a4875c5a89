"""Linear probes with an L2 penalty, fitted on the Gram matrix of their examples.

Their weights are a sum of examples, w = alpha X (representer theorem), so a fit needs nothing but the n x n inner
products: one product of n x d matrices serves every penalty, inner fold and set of labels, and what these cost does not
depend on d any more. Exact, not an approximation: the same minimum, found in other coordinates.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from warnings import catch_warnings, simplefilter

import numpy as np
from jaxtyping import Float
from scipy.linalg.lapack import dposv
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC

CONVERGED = 1e-12
"""Newton stops where the next step would lower the objective by less, relative to it or to 1."""
MOST_STEPS = 100
SMALLEST_STEP = 1e-9
SVM_STEPS = 200_000
HALVED = 1e-4
"""Armijo's constant: a step that gains less than this share of what the slope promises is halved."""

Gram = Float[np.ndarray, "n n"]
Signs = Float[np.ndarray, " n"]
"""+1 for the positive class, -1 for the other."""


class Fit(NamedTuple):
    """Scores of any rows are `gram[rows, train] @ alpha + bias`."""

    alpha: Float[np.ndarray, " n"]
    bias: float


Path = Callable[[Gram, Signs, Sequence[float]], Iterator[Fit]]
"""One fit for each penalty (scikit-learn's C: smaller is stronger), in their order."""


def logistic(gram: Gram, signs: Signs, penalties: Sequence[float]) -> Iterator[Fit]:
    """Minimises C sum log(1 + exp(-y f)) + |w|^2 / 2 by Newton's method, each penalty from the solution of the last.

    With weights W of the examples a step solves (K + W^-1) alpha + bias = z, sum(alpha) = 0: the form of iteratively
    reweighted least squares in function space (Rasmussen & Williams 2006, section 3.4), damped by halving.
    """
    alpha, bias = np.zeros(len(signs)), 0.0
    for penalty in penalties:
        alpha, bias = _newton(gram, signs, penalty, alpha, bias)
        yield Fit(alpha, bias)


def _newton(gram: np.ndarray, signs: np.ndarray, penalty: float, alpha: np.ndarray, bias: float) -> Fit:
    n, own = len(signs), gram @ alpha
    losses = lambda scores: np.logaddexp(0, -signs * scores).sum()  # noqa: E731
    objective = lambda own, alpha, bias: penalty * losses(own + bias) + alpha @ own / 2  # noqa: E731
    reached = objective(own, alpha, bias)
    for _ in range(MOST_STEPS):
        scores = own + bias
        chance = expit(-signs * scores)
        gradient = penalty * signs * chance
        # Of an example far on its own side nothing is left: kept above 0, for its root is divided by.
        root = np.sqrt(np.maximum(penalty * chance * (1 - chance), 1e-300))
        system = root[:, None] * gram * root
        system.flat[:: n + 1] += 1
        sides = np.stack([scores * root + gradient / root, root], axis=1)
        _, solved, failed = dposv(system, sides, lower=1)
        if failed or not np.isfinite(solved).all():
            raise ValueError(
                f"a probe of penalty {penalty:g} can't be fitted: features of too different size; scale them"
            )
        solved *= root[:, None]
        new_bias = solved[:, 0].sum() / solved[:, 1].sum()
        step, bias_step = solved[:, 0] - new_bias * solved[:, 1] - alpha, new_bias - bias
        moved = gram @ step
        slope = (alpha - gradient) @ moved - gradient.sum() * bias_step
        size, before = 1.0, reached
        while True:
            reached = objective(own + size * moved, alpha + size * step, bias + size * bias_step)
            if reached <= before + HALVED * size * slope:
                break
            if size < SMALLEST_STEP:
                # Rounding is all that is left.
                return Fit(alpha, bias)
            size /= 2
        alpha, bias, own = alpha + size * step, bias + size * bias_step, own + size * moved
        if -slope <= CONVERGED * max(1.0, abs(before)):
            break
    return Fit(alpha, bias)


def ridge(gram: Gram, signs: Signs, penalties: Sequence[float]) -> Iterator[Fit]:
    """Minimises sum (y - f)^2 + |w|^2 / C: one eigendecomposition for every penalty."""
    centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    values, vectors = np.linalg.eigh(centred)
    target = vectors.T @ (signs - signs.mean())
    for penalty in penalties:
        alpha = vectors @ (target / (np.maximum(values, 0) + 1 / penalty))
        # Orthogonal to the constant but for rounding, which a large offset of the states would magnify.
        alpha -= alpha.mean()
        yield Fit(alpha, signs.mean() - (gram @ alpha).mean())


def svm(gram: Gram, signs: Signs, penalties: Sequence[float]) -> Iterator[Fit]:
    """Minimises C sum max(0, 1 - y f) + |w|^2 / 2, by libsvm; at most `SVM_STEPS` steps, with classes that overlap it
    may turn on the spot for hours."""
    for penalty in penalties:
        with catch_warnings():
            # Where it is stopped, rounding hides what could still be gained.
            simplefilter("ignore", ConvergenceWarning)
            fitted = SVC(kernel="precomputed", C=penalty, tol=1e-6, max_iter=SVM_STEPS).fit(gram, signs)
        alpha = np.zeros(len(signs))
        alpha[fitted.support_] = fitted.dual_coef_[0]
        yield Fit(alpha, float(fitted.intercept_[0]))


def mean_difference(gram: Gram, signs: Signs, penalties: Sequence[float]) -> Iterator[Fit]:
    """w = difference of class means, the border half way between them. It knows no penalty."""
    alpha = np.where(signs > 0, 1 / (signs > 0).sum(), -1 / (signs < 0).sum())
    scores = gram @ alpha
    bias = -(scores[signs > 0].mean() + scores[signs < 0].mean()) / 2
    for _ in penalties:
        yield Fit(alpha, bias)


def log_loss(signs: Signs, scores: Float[np.ndarray, " n"]) -> float:
    return float(np.logaddexp(0, -signs * scores).mean())


def squared_loss(signs: Signs, scores: Float[np.ndarray, " n"]) -> float:
    return float(np.square(signs - scores).mean())


def hinge_loss(signs: Signs, scores: Float[np.ndarray, " n"]) -> float:
    return float(np.maximum(0, 1 - signs * scores).mean())
