"""Rates and means with their intervals, as rows of a table."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from probes import Measured, wilson_interval


def rate(metric: str, hits: Sequence[bool] | Bool[np.ndarray, " n"]) -> dict:
    """Return a proportion with its Wilson interval.

    Returns:
        The columns `metric`, `value`, `ci_low`, `ci_high` and `n` of a row; the value is NaN if nothing was observed.
    """
    n = len(hits)
    interval = wilson_interval(int(np.sum(hits)), n) if n else (np.nan, np.nan)
    return Measured(metric, float(np.mean(hits)) if n else np.nan, *interval, n=n).row()


def mean(metric: str, values: Sequence[float] | Shaped[np.ndarray, " n"]) -> dict:
    """Return a mean with its bootstrap interval (percentile, 1000 seeded draws), which stays within the values.

    Returns:
        The columns `metric`, `value`, `ci_low`, `ci_high` and `n` of a row; values that are not finite are left out.
    """
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return Measured(metric, np.nan, np.nan, np.nan, n=0).row()
    draws = np.random.default_rng(0).choice(values, (1000, n)).mean(axis=1)
    return Measured(metric, float(values.mean()), *np.percentile(draws, [2.5, 97.5]).tolist(), n=n).row()
