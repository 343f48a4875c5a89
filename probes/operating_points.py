"""Thresholds of a detector at a wanted false positive rate, and what it detects there."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.stats import norm

from probes.intervals import drawn_weights
from probes.metrics import Measured

THRESHOLD_TOO = "95 %, other pairs, threshold set anew"
"""Label of an interval that covers other harmless requests to set the threshold on."""
ROUNDING = 1e-9


def threshold_at(scores: Float[np.ndarray, " n"], rate: float) -> float:
    """Return the least score of harmless requests such that at most this share of them lies above it.

    Args:
        scores: of harmless requests; a request is detected if its score is above the threshold.
        rate: the false positive rate, from 0 to below 1. Of fewer than 1 / rate requests, the threshold is the highest.

    Raises:
        ValueError: there are no scores, one is not finite, or the rate is outside of [0, 1).
    """
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"a threshold needs finite scores of harmless requests; got {len(scores)}")
    if not 0 <= rate < 1:
        raise ValueError(f"false positive rate {rate}; expected a number from 0 to below 1")
    return float(np.sort(scores)[::-1][_n_above(len(scores), rate)])


def _n_above(n: int, rate: float) -> int:
    return int(np.floor(rate * n + ROUNDING))


def true_positive_rate_at(
    is_harmful: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], rate: float, groups: Iterable
) -> Measured:
    """Measure the share of harmful requests above the threshold that these harmless ones set (`threshold_at`).

    The threshold is an estimate too: Wilson's interval, which ignores that, covers 0.5 to 0.9 where it says 0.95. So it
    is computed for the number of cases that has the variance of the rate over bootstrap draws of pairs, in each of
    which the threshold is set anew on scores with a little noise (Silverman's bandwidth); without noise no draw can be
    above the highest score. Simulated coverage for 60 of each class: at
    5 % 0.9 to 0.98 for normal, exponential and t scores; at 1 % 0.9 to 0.97 for normal ones, and 0.7 to 0.85 for the
    heavy tails of t with 3 degrees of freedom, about which 60 requests say too little.

    Args:
        is_harmful: true labels.
        scores: higher means harmful.
        rate: the false positive rate.
        groups: pairs, which draws keep together.

    Raises:
        ValueError: a class is missing, or see `threshold_at`.
    """
    if is_harmful.all() or not is_harmful.any():
        raise ValueError(f"a rate of detection needs both classes; got {is_harmful.sum()} harmful of {len(scores)}")
    positive, negative = scores[is_harmful], scores[~is_harmful]
    n, share = len(positive), float((positive > threshold_at(negative, rate)).mean())
    drawn = _drawn_rates(positive, negative, drawn_weights(groups), is_harmful, rate)
    spread = float(np.nanmean(np.square(drawn - share)))
    # Two hits and two misses more, so that a rate of 0 or 1 has a variance as well.
    centred = (share * n + 2) / (n + 4)
    n_effective = float(np.clip(centred * (1 - centred) / max(spread, 1e-12), 1, n))
    z = norm.ppf(0.975)
    middle = (share + z**2 / (2 * n_effective)) / (1 + z**2 / n_effective)
    half = z / (1 + z**2 / n_effective) * np.sqrt(share * (1 - share) / n_effective + z**2 / (4 * n_effective**2))
    low, high = max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
    return Measured(f"tpr_at_fpr_{rate:g}", share, float(low), float(high), len(scores), THRESHOLD_TOO)


def _drawn_rates(
    positive: Float[np.ndarray, " harmful"],
    negative: Float[np.ndarray, " harmless"],
    draws: Shaped[np.ndarray, "draw n"],
    is_harmful: Bool[np.ndarray, " n"],
    rate: float,
) -> Float[np.ndarray, " draw"]:
    """Return the rate of detection in each draw, at the threshold that its own harmless rows set, plus noise."""
    weights, others = draws[:, is_harmful].astype(float), draws[:, ~is_harmful]
    values = negative + np.random.default_rng(0).normal(size=others.shape) * _bandwidth(negative)
    order = np.argsort(-values, axis=1)
    counts = np.take_along_axis(others, order, 1).cumsum(1)
    # As in `threshold_at`, so many of a draw's rows may be above: the next one is the threshold.
    n_above = np.floor(rate * counts[:, -1:] + ROUNDING)
    place = (counts > n_above).argmax(1)[:, None]
    thresholds = np.take_along_axis(np.take_along_axis(values, order, 1), place, 1)
    # A draw that lacks a class has no rate.
    total = np.where(counts[:, -1] > 0, weights.sum(1), 0)
    hits = (weights * (positive > thresholds)).sum(1)
    return np.divide(hits, total, out=np.full(len(total), np.nan), where=total > 0)


def _bandwidth(scores: Float[np.ndarray, " n"]) -> float:
    """Return Silverman's rule of thumb for the width of a kernel."""
    quartiles = np.subtract(*np.percentile(scores, [75, 25])) / 1.34
    return float(0.9 * min(scores.std(), quartiles) * len(scores) ** -0.2)
