"""Intervals for rates and for AUROC. 95 % unless told otherwise."""

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
    is_harmful: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], confidence: float = 0.95
) -> tuple[float, float, float]:
    """AUROC with DeLong's variance (DeLong et al. 1988), its interval taken on the logit scale.

    The percentile bootstrap covers 0.81-0.91 near 1; on the logit scale the interval stays inside (0, 1). At exactly
    0 or 1 the variance is 0, and the bound is one-sided: the value below which complete separation of this many
    cases would have a chance under 1 - confidence.

    Returns:
        (auroc, low, high).

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite")
    positive, negative = scores[is_harmful], scores[~is_harmful]
    m, n = len(positive), len(negative)
    if m == 0 or n == 0:
        raise ValueError(f"AUROC needs both classes; got {m} harmful and {n} harmless")
    # Share of the other class that each case beats, ties counted half (Sun & Xu 2014).
    ranks = rankdata(np.concatenate([positive, negative]))
    wins_positive = (ranks[:m] - rankdata(positive)) / n
    wins_negative = 1 - (ranks[m:] - rankdata(negative)) / m
    auroc = float(wins_positive.mean())
    if auroc in (0.0, 1.0):
        bound = (1 - confidence) ** (1 / min(m, n))
        return (1.0, bound, 1.0) if auroc else (0.0, 0.0, 1 - bound)
    variance = _variance(wins_positive) / m + _variance(wins_negative) / n
    half_width = norm.ppf(0.5 + confidence / 2) * np.sqrt(variance) / (auroc * (1 - auroc))
    low, high = expit(logit(auroc) + half_width * np.array([-1, 1]))
    return auroc, float(low), float(high)


def _variance(values: Shaped[np.ndarray, " n"]) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0
