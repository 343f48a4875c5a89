"""Intervals of rates and of AUROC, at 95 % by default.

They cover other queries like these, with the probes as fitted; with a `spread`, also refitted probes. The harmful and
harmless partners of a pair are not independent: where pairs are given, whole pairs are the sampling unit.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, rankdata


def wilson_interval(n_hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion (Wilson 1927), which keeps its width at 0 and 1.

    Raises:
        ValueError: there are no observations.
    """
    if n == 0:
        raise ValueError("a proportion of 0 observations has no interval")
    interval = binomtest(n_hits, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def auroc_interval(
    is_harmful: Bool[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    groups: Iterable | None = None,
    confidence: float = 0.95,
    spread: float = 1.0,
) -> tuple[float, float, float]:
    """Return AUROC with DeLong's variance (DeLong et al. 1988), or over groups (Obuchowski 1997), on the logit scale.

    The percentile bootstrap covers only 0.81-0.91 near 1; on the logit scale the interval stays inside (0, 1). At
    exactly 0 or 1 the variance is 0 and the bound is one-sided: the value below which complete separation of this many
    cases would have a probability under 1 - confidence.

    Args:
        is_harmful: true labels.
        scores: higher means harmful.
        groups: groups that are drawn together, e.g. pairs; by default every row is independent.
        confidence: coverage of the interval.
        spread: factor on the standard error; `refit_spread` for scores that come from several fitted probes.

    Returns:
        (auroc, low, high).

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    auroc, influence = _influence(is_harmful, scores)
    if auroc in (0.0, 1.0):
        n_groups = len(scores) if groups is None else len(set(groups))
        # If the chance of separating one case were p, that of all would be p^n: solved for p^n = 1 - confidence.
        bound = float((1 - confidence) ** (1 / min(is_harmful.sum(), (~is_harmful).sum(), n_groups)))
        return (1.0, bound, 1.0) if auroc else (0.0, 0.0, 1 - bound)
    error = spread * np.sqrt(_variance(influence, is_harmful, groups))
    # Delta method: the derivative of logit at the AUROC is 1 / (auroc (1 - auroc)).
    half_width = norm.ppf(0.5 + confidence / 2) * error / (auroc * (1 - auroc))
    low, high = expit(logit(auroc) + half_width * np.array([-1, 1]))
    return auroc, float(low), float(high)


def auroc_difference(
    is_harmful: Bool[np.ndarray, " n"],
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " n"],
    groups: Iterable | None = None,
    confidence: float = 0.95,
    spread: float = 1.0,
) -> tuple[float, float, float]:
    """Return the AUROC of the first scores minus that of the second, on the same queries.

    The interval combines those of both AUROCs and the correlation of their errors. Near 1, where the variance of the
    difference itself almost vanishes, it stays as wide as they are.

    Args:
        is_harmful: true labels, shared by both.
        first: one score per query.
        second: other scores of the same queries.
        groups: groups that are drawn together; see `auroc_interval`.
        confidence: coverage of the interval.
        spread: factor on the standard errors; see `auroc_interval`.

    Returns:
        (difference, low, high).

    Raises:
        ValueError: see `auroc_interval`.
    """
    limits = [auroc_interval(is_harmful, scores, groups, confidence, spread) for scores in (first, second)]
    parts = [_influence(is_harmful, scores)[1] for scores in (first, second)]
    # Influences are additive, so those of the difference are the differences: their variance gives the correlation,
    # var(a - b) = var(a) + var(b) - 2 cov(a, b).
    variances = [_variance(part, is_harmful, groups) for part in (*parts, parts[0] - parts[1])]
    both = np.sqrt(variances[0] * variances[1])
    correlation = (variances[0] + variances[1] - variances[2]) / (2 * both) if both > 0 else 0.0
    difference, low, high = difference_interval(*limits, correlation)
    return difference, max(-1.0, low), min(1.0, high)


def difference_interval(
    first: tuple[float, float, float], second: tuple[float, float, float], correlation: float = 0.0
) -> tuple[float, float, float]:
    """Return the interval of a difference, from the intervals of both values (MOVER, Zou & Donner 2008).

    Args:
        first: (value, low, high).
        second: (value, low, high) of what is subtracted.
        correlation: correlation of their errors; 0 for independent samples.

    Returns:
        (difference, low, high).
    """
    (value, low, high), (other, other_low, other_high) = first, second
    difference = value - other
    below = _combined_width(value - low, other_high - other, correlation)
    above = _combined_width(high - value, other - other_low, correlation)
    return difference, difference - below, difference + above


def _combined_width(a: float, b: float, correlation: float) -> float:
    return float(np.sqrt(max(a**2 + b**2 - 2 * correlation * a * b, 0.0)))


def _influence(
    is_harmful: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> tuple[float, Float[np.ndarray, " n"]]:
    """Return AUROC and the influence of each row on it (Sun & Xu 2014).

    AUROC is a mean over rows of one class of the share of the other class that they beat; a row's influence is that
    share minus the mean, over the size of its class. The sum of squared influences is DeLong's variance.

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite")
    positive, negative = scores[is_harmful], scores[~is_harmful]
    m, n = len(positive), len(negative)
    if m == 0 or n == 0:
        raise ValueError(f"AUROC needs both classes; got {m} harmful and {n} harmless")
    # Rank among all minus rank within the class: how many of the other class lie below, ties as one half.
    ranks = rankdata(np.concatenate([positive, negative]))
    wins_positive = (ranks[:m] - rankdata(positive)) / n
    wins_negative = 1 - (ranks[m:] - rankdata(negative)) / m
    auroc = float(wins_positive.mean())
    influence = np.empty(len(scores))
    influence[is_harmful], influence[~is_harmful] = (wins_positive - auroc) / m, (wins_negative - auroc) / n
    return auroc, influence


def _variance(influence: Float[np.ndarray, " n"], is_harmful: Bool[np.ndarray, " n"], groups: Iterable | None) -> float:
    """Sum the squared influences of independent units, with the usual n / (n - 1)."""
    if groups is not None:
        # Within a group influences are summed before they are squared, which includes the covariance of partners.
        _, which = np.unique(np.asarray(groups), return_inverse=True)
        sums = np.bincount(which, influence)
        return float(np.square(sums).sum() * len(sums) / max(len(sums) - 1, 1))
    parts = (influence[is_harmful], influence[~is_harmful])
    return float(sum(np.square(part).sum() * len(part) / max(len(part) - 1, 1) for part in parts))


def drawn_weights(groups: Iterable, n_draws: int = 1000, seed: int = 0) -> Shaped[np.ndarray, "draw n"]:
    """Return how often each row occurs in each bootstrap draw of groups."""
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), n_draws)
    return counts[:, which]
