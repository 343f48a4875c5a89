"""Intervals of rates and of AUROC, 95 % unless told otherwise.

They cover other queries like these, with the probes as fitted; with a `spread`, refitted. Harmful and harmless partners
of a pair are not independent: where pairs are given, they are what is drawn.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, rankdata


def wilson_interval(n_hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927): honest at 0 and 1, where others have no width.

    Raises:
        ValueError: there is nothing to take a proportion of.
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
    """AUROC with DeLong's variance (DeLong et al. 1988), or over groups (Obuchowski 1997), on the logit scale.

    The percentile bootstrap covers 0.81-0.91 near 1; on the logit scale the interval stays inside (0, 1). At exactly
    0 or 1 the variance is 0, and the bound is one-sided: the value below which complete separation of this many
    cases would have a chance under 1 - confidence.

    Args:
        groups: what is drawn as one, e.g. pairs; by default every row by itself.
        spread: of `probes.out_of_fold.refit_spread`, where scores come from several fitted probes: how much further they
            spread than those of one.

    Returns:
        (auroc, low, high).

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    auroc, influence = _influence(is_harmful, scores)
    if auroc in (0.0, 1.0):
        n_groups = len(scores) if groups is None else len(set(groups))
        bound = float((1 - confidence) ** (1 / min(is_harmful.sum(), (~is_harmful).sum(), n_groups)))
        return (1.0, bound, 1.0) if auroc else (0.0, 0.0, 1 - bound)
    error = spread * np.sqrt(_variance(influence, is_harmful, groups))
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
    """AUROC of the first scores less that of the second, of the same queries.

    From the limits of both, and how their errors hang together: near 1, where the variance of the difference itself
    hardly shows, it is as wide as they are.

    Args:
        is_harmful: labels, which both share.
        first: scores, one for each query.
        second: other scores of the same queries.
        groups: as for `auroc_interval`, and so are `confidence` and `spread`.

    Returns:
        (difference, low, high).

    Raises:
        ValueError: see `auroc_interval`.
    """
    limits = [auroc_interval(is_harmful, scores, groups, confidence, spread) for scores in (first, second)]
    parts = [_influence(is_harmful, scores)[1] for scores in (first, second)]
    variances = [_variance(part, is_harmful, groups) for part in (*parts, parts[0] - parts[1])]
    both = np.sqrt(variances[0] * variances[1])
    shared = (variances[0] + variances[1] - variances[2]) / (2 * both) if both > 0 else 0.0
    gap, low, high = difference_interval(*limits, shared)
    return gap, max(-1.0, low), min(1.0, high)


def difference_interval(
    one: tuple[float, float, float], other: tuple[float, float, float], shared: float = 0.0
) -> tuple[float, float, float]:
    """Interval of a difference, made of the intervals of both (MOVER, Zou & Donner 2008).

    Args:
        one: (value, low, high).
        other: the same of what is subtracted.
        shared: correlation of their errors; 0 for independent samples.

    Returns:
        (difference, low, high).
    """
    (value, low, high), (its_value, its_low, its_high) = one, other
    width = lambda a, b: float(np.sqrt(max(a**2 + b**2 - 2 * shared * a * b, 0.0)))  # noqa: E731
    gap = value - its_value
    return gap, gap - width(value - low, its_high - its_value), gap + width(high - value, its_value - its_low)


def _influence(
    is_harmful: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> tuple[float, Float[np.ndarray, " n"]]:
    """AUROC, and what each row moves it by: its share of the other class beaten (Sun & Xu 2014), less the mean, over n.

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite")
    positive, negative = scores[is_harmful], scores[~is_harmful]
    m, n = len(positive), len(negative)
    if m == 0 or n == 0:
        raise ValueError(f"AUROC needs both classes; got {m} harmful and {n} harmless")
    ranks = rankdata(np.concatenate([positive, negative]))
    wins_positive = (ranks[:m] - rankdata(positive)) / n
    wins_negative = 1 - (ranks[m:] - rankdata(negative)) / m
    auroc = float(wins_positive.mean())
    influence = np.empty(len(scores))
    influence[is_harmful], influence[~is_harmful] = (wins_positive - auroc) / m, (wins_negative - auroc) / n
    return auroc, influence


def _variance(influence: Float[np.ndarray, " n"], is_harmful: Bool[np.ndarray, " n"], groups: Iterable | None) -> float:
    if groups is not None:
        _, which = np.unique(np.asarray(groups), return_inverse=True)
        sums = np.bincount(which, influence)
        return float(np.square(sums).sum() * len(sums) / max(len(sums) - 1, 1))
    parts = (influence[is_harmful], influence[~is_harmful])
    return float(sum(np.square(part).sum() * len(part) / max(len(part) - 1, 1) for part in parts))


def drawn_weights(groups: Iterable, n_draws: int = 1000, seed: int = 0) -> Shaped[np.ndarray, "draw n"]:
    """How often each row stands in each bootstrap draw of its group."""
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), n_draws)
    return counts[:, which]
