"""What a probe's scores are worth: five metrics, each with an interval that says what it covers."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import expit, logit
from scipy.stats import norm

from probes.intervals import auroc_interval, drawn_weights

N_BINS = 10
"""Of the expected calibration error."""
QUERIES = "95 %, other pairs"
"""What intervals here cover: other pairs of queries like these, the probes as fitted."""
ONE_SIDED = "95 %, other pairs, one-sided"
NO_WIDTH = "none: complete separation"
"""A bootstrap of cases that are all told apart rightly has no width."""

Weighted = Callable[[Shaped[np.ndarray, "draw n"]], Float[np.ndarray, " draw"]]


@dataclass(frozen=True)
class Measured:
    """A value and its interval."""

    metric: str
    value: float
    low: float
    high: float
    covers: str
    """What the interval is about."""
    n: int

    def row(self) -> dict:
        """As it stands in a table."""
        told = {"metric": self.metric, "value": self.value, "ci_low": self.low, "ci_high": self.high}
        return told | {"interval": self.covers, "n": self.n}


def measure(
    is_harmful: Bool[np.ndarray, " n"],
    distances: Float[np.ndarray, " n"],
    groups: Iterable,
    log_odds: Float[np.ndarray, " n"] | None = None,
) -> Iterator[Measured]:
    """AUROC, accuracy, average precision, d', and where there are log-odds the expected calibration error.

    Args:
        is_harmful: the truth.
        distances: out-of-fold, comparable over folds; above 0 says harmful.
        groups: pairs, which intervals draw as one.
        log_odds: of probes that give probabilities.

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    n = len(distances)
    yield auroc(is_harmful, distances, groups)
    yield accuracy((distances > 0) == is_harmful, groups)
    draws = drawn_weights(groups)
    is_perfect = distances[is_harmful].min() > distances[~is_harmful].max()
    some: dict[str, Weighted] = {
        "average_precision": average_precision(is_harmful, distances),
        "d_prime": d_prime(is_harmful, distances),
    }
    if log_odds is not None:
        some["ece"] = calibration_error(is_harmful, log_odds)
    for name, weighted in some.items():
        value, drawn = float(weighted(np.ones((1, n)))[0]), weighted(draws)
        low, high, covers = *np.nanpercentile(drawn, [2.5, 97.5]), QUERIES
        if name == "average_precision":
            low, high = _on_logit_scale(value, drawn)
            covers = NO_WIDTH if is_perfect else QUERIES
        yield Measured(name, value, float(low), float(high), covers, n)


def _on_logit_scale(value: float, drawn: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    """The value and the draws' spread on the logit scale (Boyd et al. 2013): percentiles of average precision cover too
    little, for rows that are drawn twice help each other."""
    if value == 1:
        return np.nan, np.nan
    half_width = norm.ppf(0.975) * np.std(logit(np.clip(drawn, 1e-6, 1 - 1e-6)))
    low, high = expit(logit(value) + half_width * np.array([-1, 1]))
    return float(low), float(high)


def auroc(is_harmful: Bool[np.ndarray, " n"], distances: Float[np.ndarray, " n"], groups: Iterable) -> Measured:
    value, low, high = auroc_interval(is_harmful, distances, groups)
    return Measured("auroc", value, low, high, ONE_SIDED if value in (0.0, 1.0) else QUERIES, len(distances))


def accuracy(is_right: Bool[np.ndarray, " n"], groups: Iterable, confidence: float = 0.95) -> Measured:
    """Wilson's interval, of as many observations as the pairs are worth: both partners often err together."""
    n, share = len(is_right), float(is_right.mean())
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    errors = np.bincount(which, is_right - share)
    n_groups, spread = len(errors), share * (1 - share)
    # Where nothing varies, nothing tells how partners hang together: as one.
    n_worth = n_groups if spread == 0 else min(n, spread * n**2 / max(np.square(errors).sum(), 1e-12))
    z = norm.ppf(0.5 + confidence / 2)
    centre = (share + z**2 / (2 * n_worth)) / (1 + z**2 / n_worth)
    half_width = z / (1 + z**2 / n_worth) * np.sqrt(spread / n_worth + z**2 / (4 * n_worth**2))
    low, high = max(0.0, centre - half_width), min(1.0, centre + half_width)
    return Measured("accuracy", share, low, high, QUERIES, n)


def average_precision(is_harmful: Bool[np.ndarray, " n"], distances: Float[np.ndarray, " n"]) -> Weighted:
    """Mean precision at each harmful query, from the highest score down; ties count as one step, as in scikit-learn."""
    order = np.argsort(-distances, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(distances[order]) != 0, True))

    def weighted(draws):
        drawn = draws[:, order].astype(float)
        hits = np.cumsum(drawn * is_harmful[order], axis=1)[:, ends]
        shown = np.cumsum(drawn, axis=1)[:, ends]
        gained = np.diff(hits, axis=1, prepend=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(gained > 0, gained * hits / shown, 0).sum(1) / hits[:, -1]

    return weighted


def d_prime(is_harmful: Bool[np.ndarray, " n"], distances: Float[np.ndarray, " n"]) -> Weighted:
    """Distance of the class means in units of the root mean square of the classes' deviations (Green & Swets 1966)."""

    def weighted(draws):
        means, variances = [], []
        for label in (True, False):
            weights, values = draws[:, is_harmful == label], distances[is_harmful == label]
            total = np.maximum(weights.sum(1), 1)
            mean = weights @ values / total
            means.append(mean)
            variances.append((weights * np.square(values - mean[:, None])).sum(1) / np.maximum(total - 1, 1))
        spread = np.sqrt((variances[0] + variances[1]) / 2)
        return np.divide(means[0] - means[1], spread, out=np.full(len(spread), np.nan), where=spread > 0)

    return weighted


def calibration_error(is_harmful: Bool[np.ndarray, " n"], log_odds: Float[np.ndarray, " n"]) -> Weighted:
    """Expected calibration error over ten bins of equal width (Naeini et al. 2015). Biased upwards where n is small."""
    chance = expit(log_odds)
    bins = np.minimum((chance * N_BINS).astype(int), N_BINS - 1)
    gap = is_harmful - chance
    chosen = np.eye(N_BINS)[bins] * gap[:, None]

    def weighted(draws):
        return np.abs(draws @ chosen).sum(1) / draws.sum(1)

    return weighted
