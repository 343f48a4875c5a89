"""Five metrics of a probe's scores, each with an interval that says what it covers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import expit, logit
from scipy.stats import norm
from scipy.stats import t as student

from probes.intervals import auroc_interval, drawn_weights

N_CALIBRATED = 200
"""Draws of labels for the calibration error of a perfectly calibrated probe."""
N_BINS = 10
"""Bins of the expected calibration error."""
QUERIES = "95 %, other pairs, this probe"
REFITTED = "95 %, other pairs, probes refitted"
"""Labels of what an interval covers: other pairs of queries like these; for out-of-fold scores also refitted probes."""
ONE_SIDED = "95 %, other pairs, one-sided"
NO_WIDTH = "none: complete separation"
"""Label for complete separation, where a bootstrap has no width."""
BIASED = "none: biased upwards, see ece_if_calibrated"
"""Label of the expected calibration error: even a perfect probe has some, and a bootstrap adds more."""
CALIBRATED = "95 % of perfectly calibrated probes"

Labels = Bool[np.ndarray, " n"]
Scores = Float[np.ndarray, " n"]
Draws = Shaped[np.ndarray, "draw n"]
"""How often each row occurs in each draw; a draw of ones is the sample itself."""


@dataclass(frozen=True)
class Measured:
    """A measured value, optionally with its interval and what the interval covers."""

    metric: str
    value: float
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    """Number of cases behind the value."""
    interval: str | None = None
    """Label of what the interval covers, e.g. `QUERIES`."""

    def row(self) -> dict:
        """Return the columns of a table row.

        Returns:
            `metric`, `value`, `ci_low`, `ci_high`, `interval` and `n`, without those that are None.
        """
        names = ("metric", "value", "ci_low", "ci_high", "interval", "n")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def covered(spread: float) -> str:
    """Return the label that says what an interval with this spread covers."""
    return QUERIES if spread == 1 else REFITTED


def measure(
    is_harmful: Bool[np.ndarray, " n"],
    distances: Float[np.ndarray, " n"],
    groups: Iterable,
    log_odds: Float[np.ndarray, " n"] | None = None,
    spread: float = 1.0,
) -> Iterator[Measured]:
    """Measure AUROC, accuracy, average precision and d', and with log-odds the expected calibration error.

    Args:
        is_harmful: true labels.
        distances: scores that are comparable between folds; above 0 means harmful.
        groups: pairs, which intervals draw together.
        log_odds: log-odds, for probes that give probabilities.
        spread: factor on the width of intervals; `refit_spread` for out-of-fold scores.

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    n, interval = len(distances), covered(spread)
    yield auroc(is_harmful, distances, groups, spread)
    yield accuracy((distances > 0) == is_harmful, groups, spread=spread)
    draws, whole = drawn_weights(groups), np.ones((1, n))
    (precision,), drawn = (average_precision(is_harmful, distances, weights) for weights in (whole, draws))
    is_perfect = distances[is_harmful].min() > distances[~is_harmful].max()
    bounds = (np.nan, np.nan) if is_perfect else _on_logit_scale(precision, drawn, spread)
    yield Measured("average_precision", float(precision), *bounds, n, NO_WIDTH if is_perfect else interval)
    (distance,), drawn = (d_prime(is_harmful, distances, weights) for weights in (whole, draws))
    # Percentiles cover 0.65 to 0.85 with 11 pairs and 0.86 to 0.92 with 60: a draw repeats rows, which makes it tighter
    # than the sample and d' larger. Its standard deviation, Student's quantile for the pairs, covers 0.91 to 0.98.
    half_width = student.ppf(0.975, max(len(set(groups)) - 1, 1)) * spread * np.nanstd(drawn)
    yield Measured("d_prime", float(distance), float(distance - half_width), float(distance + half_width), n, interval)
    if log_odds is not None:
        yield from _calibration(is_harmful, log_odds)


def _calibration(is_harmful: Bool[np.ndarray, " n"], log_odds: Float[np.ndarray, " n"]) -> Iterator[Measured]:
    """Measure the calibration error, and that of labels drawn from the probe's own probabilities."""
    n, whole = len(log_odds), np.ones((1, len(log_odds)))
    yield Measured("ece", float(calibration_error(is_harmful, log_odds, whole)[0]), np.nan, np.nan, n, BIASED)
    labels = np.random.default_rng(0).random((N_CALIBRATED, n)) < expit(log_odds)
    errors = [float(calibration_error(drawn, log_odds, whole)[0]) for drawn in labels]
    low, high = np.percentile(errors, [2.5, 97.5])
    # The median, not the mean: where probabilities are near 0 and 1, a rare draw is far off.
    yield Measured("ece_if_calibrated", float(np.median(errors)), float(low), float(high), n, CALIBRATED)


def _on_logit_scale(value: float, drawn: Float[np.ndarray, " draw"], spread: float) -> tuple[float, float]:
    """Return limits from the draws' standard deviation on the logit scale (Boyd et al. 2013).

    Percentiles of average precision cover too little, because a row that is drawn twice helps itself.
    """
    half_width = norm.ppf(0.975) * spread * np.nanstd(logit(np.clip(drawn, 1e-6, 1 - 1e-6)))
    low, high = expit(logit(value) + half_width * np.array([-1, 1]))
    return float(low), float(high)


def auroc(
    is_harmful: Bool[np.ndarray, " n"], distances: Float[np.ndarray, " n"], groups: Iterable, spread: float = 1.0
) -> Measured:
    """Measure AUROC with the interval of `auroc_interval`.

    Args:
        is_harmful: true labels.
        distances: higher means harmful.
        groups: pairs, which the interval draws together.
        spread: factor on the standard error, see `measure`.

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    value, low, high = auroc_interval(is_harmful, distances, groups, spread=spread)
    interval = ONE_SIDED if value in (0.0, 1.0) else covered(spread)
    return Measured("auroc", value, low, high, len(distances), interval)


def accuracy(
    is_right: Bool[np.ndarray, " n"], groups: Iterable, confidence: float = 0.95, spread: float = 1.0
) -> Measured:
    """Measure accuracy with Wilson's interval for the effective number of observations.

    Partners often err together, so that two of them count for less than two independent rows.

    Args:
        is_right: whether each prediction is right.
        groups: pairs, whose errors may be correlated.
        confidence: coverage of the interval.
        spread: factor on the standard error, see `measure`.
    """
    n, share = len(is_right), float(is_right.mean())
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    errors = np.bincount(which, is_right - share)
    n_groups, scatter = len(errors), share * (1 - share)
    # Effective n: the variance of independent rows over that of summed groups. Without any variance there is no
    # evidence about partners, and a group counts as a single row.
    n_effective = n_groups if scatter == 0 else min(n, scatter * n**2 / max(np.square(errors).sum(), 1e-12))
    n_effective, z = n_effective / spread**2, norm.ppf(0.5 + confidence / 2)
    centre = (share + z**2 / (2 * n_effective)) / (1 + z**2 / n_effective)
    half_width = z / (1 + z**2 / n_effective) * np.sqrt(scatter / n_effective + z**2 / (4 * n_effective**2))
    low, high = max(0.0, centre - half_width), min(1.0, centre + half_width)
    return Measured("accuracy", share, low, high, n, covered(spread))


def average_precision(is_harmful: Labels, distances: Scores, draws: Draws) -> Float[np.ndarray, " draw"]:
    """Return the mean precision at each harmful query, from the highest score down, for each draw.

    Ties count as a single step, as in scikit-learn.
    """
    order = np.argsort(-distances, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(distances[order]) != 0, True))
    drawn = draws[:, order].astype(float)
    hits = np.cumsum(drawn * is_harmful[order], axis=1)[:, ends]
    retrieved = np.cumsum(drawn, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(gained > 0, gained * hits / retrieved, 0).sum(1) / hits[:, -1]


def d_prime(is_harmful: Labels, distances: Scores, draws: Draws) -> Float[np.ndarray, " draw"]:
    """Return the distance of the class means over the root mean square of their deviations (Green & Swets 1966)."""
    means, variances = [], []
    for label in (True, False):
        weights, values = draws[:, is_harmful == label], distances[is_harmful == label]
        # A draw that lacks a class has no mean of it.
        total = np.where(weights.sum(1) > 0, weights.sum(1), np.nan)
        mean = weights @ values / total
        means.append(mean)
        variances.append((weights * np.square(values - mean[:, None])).sum(1) / np.fmax(total - 1, 1))
    spread = np.sqrt((variances[0] + variances[1]) / 2)
    return np.divide(means[0] - means[1], spread, out=np.full(len(spread), np.nan), where=spread > 0)


def calibration_error(is_harmful: Labels, log_odds: Scores, draws: Draws) -> Float[np.ndarray, " draw"]:
    """Return the expected calibration error over ten bins of equal width (Naeini et al. 2015).

    It is biased upwards where n is small.
    """
    chance = expit(log_odds)
    bins = np.minimum((chance * N_BINS).astype(int), N_BINS - 1)
    gaps = np.eye(N_BINS)[bins] * (is_harmful - chance)[:, None]
    return np.abs(draws @ gaps).sum(1) / draws.sum(1)
