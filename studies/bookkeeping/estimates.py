"""Rates and means with their intervals, as rows of a table."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from probes import wilson_interval


def rate(metric: str, hits: Sequence[bool] | Bool[np.ndarray, " n"]) -> dict:
    """A proportion with Wilson's interval; no value where nothing was observed."""
    n = len(hits)
    low, high = wilson_interval(int(np.sum(hits)), n) if n else (np.nan, np.nan)
    return {"metric": metric, "value": float(np.mean(hits)) if n else np.nan, "ci_low": low, "ci_high": high, "n": n}


def mean(metric: str, values: Sequence[float] | Shaped[np.ndarray, " n"]) -> dict:
    """A mean with its bootstrap interval (percentile, 1000 seeded draws), which stays where the values can be."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return {"metric": metric, "value": np.nan, "ci_low": np.nan, "ci_high": np.nan, "n": 0}
    draws = np.random.default_rng(0).choice(values, (1000, n)).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"metric": metric, "value": values.mean(), "ci_low": low, "ci_high": high, "n": n}
