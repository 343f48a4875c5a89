"""Linear probes with an L2 penalty, fitted on the Gram matrix of their examples.

The optimal weights are a combination of the examples, w = alpha X (representer theorem), so a fit needs only the n x n
inner products. One product of the n x d features serves every penalty, inner fold and set of labels, whose cost no
longer depends on d. This is exact: the same minimum in other coordinates.

In these coordinates, with K = X X^T: the scores are f = K alpha + bias, and |w|^2 = alpha^T K alpha.
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
"""Newton's method stops when the next step would lower the objective by less than this, relative to it or to 1."""
MOST_STEPS = 100
SMALLEST_STEP = 1e-9
SVM_STEPS = 200_000
HALVED = 1e-4
"""Armijo's constant: a step is halved when it gains less than this share of what the slope promises."""

Gram = Float[np.ndarray, "n n"]
Signs = Float[np.ndarray, " n"]
"""Labels: +1 for the positive class, -1 for the other."""


class Fit(NamedTuple):
    """A fitted probe in the dual; scores of any rows are `gram[rows, train] @ alpha + bias`."""

    alpha: Float[np.ndarray, " n"]
    bias: float


Path = Callable[[Gram, Signs, Sequence[float]], Iterator[Fit]]
"""Fits one probe for each penalty, in the order given (scikit-learn's C: smaller is stronger)."""


def logistic(gram: Gram, signs: Signs, penalties: Sequence[float]) -> Iterator[Fit]:
    """Minimise C sum log(1 + exp(-y f)) + |w|^2 / 2 by Newton's method, each penalty from the previous solution.

    Iteratively reweighted least squares in function space (Rasmussen & Williams 2006, section 3.4): with the weights W
    of the examples, a step solves (K + W^-1) alpha + bias = z under sum(alpha) = 0. Steps are damped by halving.
    """
    alpha, bias = np.zeros(len(signs)), 0.0
    for penalty in penalties:
        alpha, bias = _newton(gram, signs, penalty, alpha, bias)
        yield Fit(alpha, bias)


def _newton(gram: np.ndarray, signs: np.ndarray, penalty: float, alpha: np.ndarray, bias: float) -> Fit:
    # `own` is K alpha, kept up to date so that a trial step costs no product with the Gram matrix.
    own = gram @ alpha
    reached = _logistic_objective(signs, penalty, own, alpha, bias)
    for _ in range(MOST_STEPS):
        gradient, new_alpha, new_bias = _newton_target(gram, signs, penalty, own + bias)
        step, bias_step = new_alpha - alpha, new_bias - bias
        moved = gram @ step
        # Derivative of the objective along the step: (alpha - gradient)^T K step - sum(gradient) bias_step.
        slope = (alpha - gradient) @ moved - gradient.sum() * bias_step
        size, before = 1.0, reached
        while True:
            trial = (own + size * moved, alpha + size * step, bias + size * bias_step)
            reached = _logistic_objective(signs, penalty, *trial)
            if reached <= before + HALVED * size * slope:
                break
            if size < SMALLEST_STEP:
                # What is left to gain is below rounding.
                return Fit(alpha, bias)
            size /= 2
        own, alpha, bias = trial
        if -slope <= CONVERGED * max(1.0, abs(before)):
            break
    return Fit(alpha, bias)


def _logistic_objective(signs: np.ndarray, penalty: float, own: np.ndarray, alpha: np.ndarray, bias: float) -> float:
    return penalty * np.logaddexp(0, -signs * (own + bias)).sum() + alpha @ own / 2


def _newton_target(
    gram: np.ndarray, signs: np.ndarray, penalty: float, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the gradient of the losses, and the alpha and bias that a full Newton step leads to.

    With R = diag(root), the square root of W: alpha = R (I + R K R)^-1 R (z - bias). Unlike K + W^-1, the matrix in the
    middle is well conditioned where W is nearly 0. Alpha is linear in the bias, which follows from sum(alpha) = 0.

    Raises:
        ValueError: the system can't be solved.
    """
    n = len(signs)
    chance = expit(-signs * scores)
    gradient = penalty * signs * chance
    # An example far on its own side has weight 0. Kept above 0, because its root is divided by.
    root = np.sqrt(np.maximum(penalty * chance * (1 - chance), 1e-300))
    system = root[:, None] * gram * root
    system.flat[:: n + 1] += 1
    # Two right-hand sides: the part of alpha without the bias, and the part that is multiplied by it.
    sides = np.stack([scores * root + gradient / root, root], axis=1)
    _, solved, failed = dposv(system, sides, lower=1)
    if failed or not np.isfinite(solved).all():
        raise ValueError(
            f"a probe with penalty {penalty:g} can't be fitted: the features differ too much in size; scale them"
        )
    solved *= root[:, None]
    bias = solved[:, 0].sum() / solved[:, 1].sum()
    return gradient, solved[:, 0] - bias * solved[:, 1], bias


def ridge(gram: Gram, signs: Signs, penalties: Sequence[float]) -> Iterator[Fit]:
    """Minimise sum (y - f)^2 + |w|^2 / C; one eigendecomposition serves every penalty."""
    centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    values, vectors = np.linalg.eigh(centred)
    target = vectors.T @ (signs - signs.mean())
    for penalty in penalties:
        alpha = vectors @ (target / (np.maximum(values, 0) + 1 / penalty))
        # The sum of alpha is 0 but for rounding, which a large offset of the states would magnify.
        alpha -= alpha.mean()
        yield Fit(alpha, signs.mean() - (gram @ alpha).mean())


def svm(gram: Gram, signs: Signs, penalties: Sequence[float]) -> Iterator[Fit]:
    """Minimise C sum max(0, 1 - y f) + |w|^2 / 2 with libsvm, in at most `SVM_STEPS` steps.

    Without the limit libsvm can run for hours on overlapping classes.
    """
    for penalty in penalties:
        with catch_warnings():
            # At the limit, rounding hides what could still be gained.
            simplefilter("ignore", ConvergenceWarning)
            fitted = SVC(kernel="precomputed", C=penalty, tol=1e-6, max_iter=SVM_STEPS).fit(gram, signs)
        alpha = np.zeros(len(signs))
        alpha[fitted.support_] = fitted.dual_coef_[0]
        yield Fit(alpha, float(fitted.intercept_[0]))


def mean_difference(gram: Gram, signs: Signs, penalties: Sequence[float]) -> Iterator[Fit]:
    """Return w = the difference of the class means, with the boundary halfway between them. Penalties are ignored."""
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
