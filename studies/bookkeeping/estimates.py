"""Rates and means with their intervals, as rows of a table."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped

from probes import Measured, mean_interval, wilson_interval


def rate(metric: str, hits: Sequence[bool] | Bool[np.ndarray, " n"]) -> dict:
    """Return a proportion with its Wilson interval.

    Returns:
        The columns `metric`, `value`, `ci_low`, `ci_high` and `n` of a row; the value is NaN if nothing was observed.
    """
    n = len(hits)
    interval = wilson_interval(int(np.sum(hits)), n) if n else (np.nan, np.nan)
    return Measured(metric, float(np.mean(hits)) if n else np.nan, *interval, n=n).row()


def mean_share(metric: str, shares: Float[np.ndarray, " n"]) -> dict:
    """Return a mean of shares between 0 and 1, one a request, with a Wilson interval that is wide enough.

    Nothing between 0 and 1 varies more around its mean than a yes or no does (Bhatia and Davis, 2000), so the interval
    is the one of as many hits, rounded outwards.

    Returns:
        The columns `metric`, `value`, `ci_low`, `ci_high` and `n` of a row; the value is NaN if nothing was observed.
    """
    # Shares that add up to a whole number may miss it by a rounding error.
    n, total = len(shares), round(float(np.sum(shares)), 9)
    if not n:
        return rate(metric, [])
    low, high = wilson_interval(math.floor(total), n)[0], wilson_interval(math.ceil(total), n)[1]
    return Measured(metric, total / n, low, high, n=n).row()


def mean(metric: str, values: Sequence[float] | Shaped[np.ndarray, " n"]) -> dict:
    """Return a mean with the interval of `probes.mean_interval`, which covers where values are skewed too.

    Returns:
        The columns `metric`, `value`, `ci_low`, `ci_high` and `n` of a row; values that are not finite are left out.
    """
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return Measured(metric, np.nan, np.nan, np.nan, n=0).row()
    return Measured(metric, float(values.mean()), *mean_interval(values), n=len(values)).row()
