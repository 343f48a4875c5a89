"""Comparisons on the same cases: is one rate higher, and do two judges agree? Intervals are at 95 % by default."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from probes.intervals import wilson_interval
from probes.metrics import Measured

EDGE = 1e-9
"""Distance from -1 and 1 at which the search for limits stops."""


@dataclass(frozen=True)
class Paired:
    """A comparison of two rates on the same cases."""

    difference: float
    """The first rate minus the second."""
    low: float
    high: float
    p_value: float
    """McNemar's exact test, two-sided, of equal chances that only the first or only the second hits."""
    n_first: int
    """Number of cases that only the first hits."""
    n_second: int
    """Number of cases that only the second hits."""
    n: int
    """Number of all cases."""

    def measured(self, metric: str) -> Measured:
        """Return the difference as a value with its interval."""
        return Measured(metric, self.difference, self.low, self.high, self.n)


def mcnemar(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"], confidence: float = 0.95) -> Paired:
    """Compare two rates on the same cases (McNemar 1947, exact), with Tango's interval of their difference.

    Raises:
        ValueError: there are no cases.
    """
    if len(first) == 0:
        raise ValueError("0 cases; two rates are compared on at least one")
    n, n_first, n_second = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    low, high = tango_interval(n_first, n_second, n, confidence)
    return Paired((n_first - n_second) / n, low, high, sign_test(n_first, n_second), n_first, n_second, n)


@cache
def sign_test(n_first: int, n_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, which is the sign test of the cases that differ.

    Args:
        n_first: number of cases that only the first hits.
        n_second: number of cases that only the second hits.
    """
    return float(binomtest(n_first, n_first + n_second).pvalue) if n_first + n_second else 1.0


def tango_interval(n_first: int, n_second: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval for a difference of paired proportions (Tango 1998).

    It holds all differences that a score test does not reject. Like Wilson's interval at 0 and 1, it has width where
    the two never differ, and it stays within -1 and 1.

    Args:
        n_first: number of cases that only the first hits.
        n_second: number of cases that only the second hits.
        n: number of all cases.
        confidence: coverage of the interval.

    Returns:
        (low, high).
    """
    z, observed = norm.ppf(0.5 + confidence / 2), (n_first - n_second) / n

    def score(difference: float) -> float:
        """Return the standardised distance, with the variance under that difference."""
        # `rate` is p21, the rate of cases that only the second hits: its maximum likelihood estimate, given the
        # difference, is the larger root of a quadratic (Tango's equation for p21).
        b = (2 * n - n_first + n_second) * difference - n_first - n_second
        c = -n_second * difference * (1 - difference)
        rate = max(0.0, (np.sqrt(max(0.0, b**2 - 8 * n * c)) - b) / (4 * n))
        variance = n * (2 * rate + difference * (1 - difference))
        return (n_first - n_second - n * difference) / np.sqrt(max(variance, EDGE))

    # The score falls as the difference grows: it crosses z below the observed difference and -z above it.
    low = _root(lambda d: score(d) - z, -1 + EDGE, observed, otherwise=-1.0)
    high = _root(lambda d: score(d) + z, observed, 1 - EDGE, otherwise=1.0)
    return low, high


def _root(f: Callable[[float], float], left: float, right: float, otherwise: float) -> float:
    """Return where a falling function crosses 0, or `otherwise` if it does not."""
    if left >= right or f(left) * f(right) > 0:
        return otherwise
    return float(brentq(f, left, right))


def holm(p_values: Sequence[float] | Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Return p-values adjusted for the number of tests (Holm 1979), which controls the chance of any false alarm.

    Returns:
        Adjusted values in the order given; NaN stays NaN and does not count as a test.
    """
    values = np.asarray(p_values, dtype=float)
    adjusted, tested = values.copy(), np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def cohen_kappa(
    first: Shaped[np.ndarray, " n"], second: Shaped[np.ndarray, " n"], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the agreement beyond chance (Cohen 1960), for any number of classes.

    The interval is Wilson's for the raw agreement, with the agreement by chance taken as fixed, as in Cohen's own
    standard error; unlike that one, it has width where two judges never differ.

    Returns:
        (kappa, low, high); NaN where both judges give every case the same class.

    Raises:
        ValueError: there are no cases.
    """
    if len(first) == 0:
        raise ValueError("0 cases; agreement is measured on at least one")
    n, n_same = len(first), int((first == second).sum())
    classes = np.unique(np.concatenate([first, second]))
    by_chance = float(sum((first == label).mean() * (second == label).mean() for label in classes))
    if by_chance == 1:
        return float("nan"), float("nan"), float("nan")
    limits = (n_same / n, *wilson_interval(n_same, n, confidence))
    value, low, high = ((share - by_chance) / (1 - by_chance) for share in limits)
    return value, max(-1.0, low), high
