"""Rates and means with their intervals, as rows of a table."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from probes import Measured, mean_interval, wilson_interval


def rate(metric: str, hits: Sequence[bool] | Bool[np.ndarray, " n"]) -> dict:
    """Return a proportion with its Wilson interval.

    Returns:
        The columns `metric`, `value`, `ci_low`, `ci_high` and `n` of a row; the value is NaN if nothing was observed.
    """
    n = len(hits)
    interval = wilson_interval(int(np.sum(hits)), n) if n else (np.nan, np.nan)
    return Measured(metric, float(np.mean(hits)) if n else np.nan, *interval, n=n).row()


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
