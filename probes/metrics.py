"""What a probe's scores are worth: five metrics, each with an interval that says what it covers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import expit, logit
from scipy.stats import norm

from probes.intervals import auroc_interval, drawn_weights

N_CALIBRATED = 200
N_BINS = 10
"""Of the expected calibration error."""
QUERIES = "95 %, other pairs, this probe"
REFITTED = "95 %, other pairs, probes refitted"
"""What intervals cover: other pairs of queries like these; with out-of-fold scores other probes as well."""
ONE_SIDED = "95 %, other pairs, one-sided"
NO_WIDTH = "none: complete separation"
"""A bootstrap of cases that are all told apart rightly has no width."""
BIASED = "none: biased upwards, see ece_if_calibrated"
"""Of the expected calibration error: even a perfect probe has some, and a bootstrap of it more."""
CALIBRATED = "95 % of perfectly calibrated probes"

Labels = Bool[np.ndarray, " n"]
Scores = Float[np.ndarray, " n"]
Draws = Shaped[np.ndarray, "draw n"]
"""How often each row stands in each draw; a row of ones is the sample itself."""


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


def covered(spread: float) -> str:
    return QUERIES if spread == 1 else REFITTED


def measure(
    is_harmful: Bool[np.ndarray, " n"],
    distances: Float[np.ndarray, " n"],
    groups: Iterable,
    log_odds: Float[np.ndarray, " n"] | None = None,
    spread: float = 1.0,
) -> Iterator[Measured]:
    """AUROC, accuracy, average precision, d', and where there are log-odds the expected calibration error.

    Args:
        is_harmful: the truth.
        distances: comparable over folds; above 0 says harmful.
        groups: pairs, which intervals draw as one.
        log_odds: of probes that give probabilities.
        spread: of `probes.out_of_fold.refit_spread`, for out-of-fold scores.

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    n, covers = len(distances), covered(spread)
    yield auroc(is_harmful, distances, groups, spread)
    yield accuracy((distances > 0) == is_harmful, groups, spread=spread)
    draws, whole = drawn_weights(groups), np.ones((1, n))
    (precision,), drawn = (average_precision(is_harmful, distances, some) for some in (whole, draws))
    is_perfect = distances[is_harmful].min() > distances[~is_harmful].max()
    bounds = (np.nan, np.nan) if is_perfect else _on_logit_scale(precision, drawn, spread)
    yield Measured("average_precision", float(precision), *bounds, NO_WIDTH if is_perfect else covers, n)
    (apart,), drawn = (d_prime(is_harmful, distances, some) for some in (whole, draws))
    low, high = apart + spread * (np.nanpercentile(drawn, [2.5, 97.5]) - apart)
    yield Measured("d_prime", float(apart), float(low), float(high), covers, n)
    if log_odds is not None:
        yield from _calibration(is_harmful, log_odds)


def _calibration(is_harmful: Bool[np.ndarray, " n"], log_odds: Float[np.ndarray, " n"]) -> Iterator[Measured]:
    """The error, and what a probe would have whose probabilities are true: labels drawn by them."""
    n, whole = len(log_odds), np.ones((1, len(log_odds)))
    yield Measured("ece", float(calibration_error(is_harmful, log_odds, whole)[0]), np.nan, np.nan, BIASED, n)
    labels = np.random.default_rng(0).random((N_CALIBRATED, n)) < expit(log_odds)
    found = [float(calibration_error(one, log_odds, whole)[0]) for one in labels]
    low, high = np.percentile(found, [2.5, 97.5])
    # The median: where probabilities are near 0 and 1, a rare draw is far off.
    yield Measured("ece_if_calibrated", float(np.median(found)), float(low), float(high), CALIBRATED, n)


def _on_logit_scale(value: float, drawn: Float[np.ndarray, " draw"], spread: float) -> tuple[float, float]:
    """The value and the draws' spread on the logit scale (Boyd et al. 2013): percentiles of average precision cover too
    little, for rows that are drawn twice help each other."""
    half_width = norm.ppf(0.975) * spread * np.nanstd(logit(np.clip(drawn, 1e-6, 1 - 1e-6)))
    low, high = expit(logit(value) + half_width * np.array([-1, 1]))
    return float(low), float(high)


def auroc(
    is_harmful: Bool[np.ndarray, " n"], distances: Float[np.ndarray, " n"], groups: Iterable, spread: float = 1.0
) -> Measured:
    value, low, high = auroc_interval(is_harmful, distances, groups, spread=spread)
    covers = ONE_SIDED if value in (0.0, 1.0) else covered(spread)
    return Measured("auroc", value, low, high, covers, len(distances))


def accuracy(
    is_right: Bool[np.ndarray, " n"], groups: Iterable, confidence: float = 0.95, spread: float = 1.0
) -> Measured:
    """Wilson's interval, of as many observations as the pairs are worth: both partners often err together."""
    n, share = len(is_right), float(is_right.mean())
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    errors = np.bincount(which, is_right - share)
    n_groups, scatter = len(errors), share * (1 - share)
    # Where nothing varies, nothing tells how partners hang together: as one.
    n_worth = n_groups if scatter == 0 else min(n, scatter * n**2 / max(np.square(errors).sum(), 1e-12))
    n_worth, z = n_worth / spread**2, norm.ppf(0.5 + confidence / 2)
    centre = (share + z**2 / (2 * n_worth)) / (1 + z**2 / n_worth)
    half_width = z / (1 + z**2 / n_worth) * np.sqrt(scatter / n_worth + z**2 / (4 * n_worth**2))
    low, high = max(0.0, centre - half_width), min(1.0, centre + half_width)
    return Measured("accuracy", share, low, high, covered(spread), n)


def average_precision(is_harmful: Labels, distances: Scores, draws: Draws) -> Float[np.ndarray, " draw"]:
    """Mean precision at each harmful query, from the highest score down; ties count as one step, as in scikit-learn."""
    order = np.argsort(-distances, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(distances[order]) != 0, True))
    drawn = draws[:, order].astype(float)
    hits = np.cumsum(drawn * is_harmful[order], axis=1)[:, ends]
    shown = np.cumsum(drawn, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(gained > 0, gained * hits / shown, 0).sum(1) / hits[:, -1]


def d_prime(is_harmful: Labels, distances: Scores, draws: Draws) -> Float[np.ndarray, " draw"]:
    """Distance of the class means in units of the root mean square of the classes' deviations (Green & Swets 1966)."""
    means, variances = [], []
    for label in (True, False):
        weights, values = draws[:, is_harmful == label], distances[is_harmful == label]
        # A draw without a class has no mean of it.
        total = np.where(weights.sum(1) > 0, weights.sum(1), np.nan)
        mean = weights @ values / total
        means.append(mean)
        variances.append((weights * np.square(values - mean[:, None])).sum(1) / np.fmax(total - 1, 1))
    spread = np.sqrt((variances[0] + variances[1]) / 2)
    return np.divide(means[0] - means[1], spread, out=np.full(len(spread), np.nan), where=spread > 0)


def calibration_error(is_harmful: Labels, log_odds: Scores, draws: Draws) -> Float[np.ndarray, " draw"]:
    """Expected calibration error over ten bins of equal width (Naeini et al. 2015). Biased upwards where n is small."""
    chance = expit(log_odds)
    bins = np.minimum((chance * N_BINS).astype(int), N_BINS - 1)
    gaps = np.eye(N_BINS)[bins] * (is_harmful - chance)[:, None]
    return np.abs(draws @ gaps).sum(1) / draws.sum(1)
