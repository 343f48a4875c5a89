"""Separability lost between text and another modality, paired over the same queries."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm, rankdata

from probes.intervals import auroc_difference
from probes.metrics import Measured, covered

JACKKNIFE = "95 %, other pairs, jackknife"
"""Label of what the interval of the modality gap covers."""


def auroc_drop(
    is_harmful: Bool[np.ndarray, " n"],
    text: Float[np.ndarray, " n"],
    other: Float[np.ndarray, " n"],
    groups: Iterable,
    metric: str = "auroc_drop",
    spread: float = 1.0,
) -> Measured:
    """Measure the AUROC of queries as text minus that of the same queries in another modality.

    Args:
        is_harmful: true labels.
        text: scores of the queries as text.
        other: scores of the same queries in the other modality.
        groups: pairs, which the interval draws together.
        metric: name of the measurement.
        spread: factor on standard errors; `refit_spread` for out-of-fold scores.

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    value, low, high = auroc_difference(is_harmful, text, other, groups, spread=spread)
    return Measured(metric, value, low, high, len(text), covered(spread))


def drop_p_values(
    is_harmful: Bool[np.ndarray, " n"],
    text: Float[np.ndarray, "layer n"],
    other: Float[np.ndarray, "layer n"],
    groups: Iterable,
    n_draws: int = 1000,
    seed: int = 0,
    spread: float = 1.0,
) -> Float[np.ndarray, " layer"]:
    """Return the two-sided p-value of each layer's drop, corrected for all layers (max-T permutation test).

    If a modality made no difference, the two scores of a query could be swapped. Ranks are swapped, not scores, since
    probes of two modalities have no common scale (Venkatraman & Begg 1996); partners are swapped together, in all
    layers alike. Comparing with the largest drop over layers controls the family-wise error (Westfall & Young 1993).
    The smallest possible value is 1 / (n_draws + 1).

    Args:
        is_harmful: true labels.
        text: scores of the queries as text, by layer.
        other: scores of the same queries in the other modality.
        groups: pairs, which are swapped together.
        n_draws: number of permutations.
        seed: seed of the permutations.
        spread: factor on the permuted drops; `refit_spread` for out-of-fold scores, because swapping fixed scores does
            not refit the probes behind them.
    """
    ranks = np.stack([rankdata(scores, axis=1) for scores in (text, other)])
    observed = np.abs(_drops(is_harmful, ranks[None]))[0]
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    is_swapped = np.random.default_rng(seed).integers(2, size=(n_draws, len(names))).astype(bool)[:, which]
    # About 50 permutations at a time, each `modality layer n`: memory stays small.
    swapped = (
        np.where(chunk[:, None, None], ranks[::-1], ranks) for chunk in np.array_split(is_swapped, n_draws // 50 + 1)
    )
    largest = np.concatenate([np.abs(_drops(is_harmful, chunk)).max(1) for chunk in swapped])
    # Sums of ranks in another order differ in the last digit.
    at_least = spread * largest[:, None] >= observed - 1e-9
    return (1 + at_least.sum(0)) / (1 + n_draws)


def _drops(
    is_harmful: np.ndarray, ranks: Float[np.ndarray, "draw modality layer n"]
) -> Float[np.ndarray, "draw layer"]:
    """Return differences of AUROC. Swapped ranks are no longer 1 to n, so they are ranked again."""
    again = rankdata(ranks, axis=-1)
    m, n = is_harmful.sum(), (~is_harmful).sum()
    auroc = (again[..., is_harmful].sum(-1) - m * (m + 1) / 2) / (m * n)
    return auroc[:, 0] - auroc[:, 1]


def modality_gap(text: Float[np.ndarray, "n d"], other: Float[np.ndarray, "n d"], groups: Iterable) -> Measured:
    """Measure the distance between the centroids of unit-length states (Liang et al., arXiv:2203.02053, section 4.2).

    It lies between 0 and 2. The distance of two noisy means overestimates it and is never 0. Its square is therefore
    estimated without bias, from products of different groups, and set to 0 where that is negative; the interval is a
    jackknife of the square.
    """
    units = [states / np.linalg.norm(states, axis=1, keepdims=True) for states in (text, other)]
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), text.shape[1]))
    np.add.at(sums, which, units[0] - units[1])
    # With g_i a group's mean difference: |sum g|^2 - sum |g_i|^2 is the sum of g_i . g_j over i != j, whose noise is
    # independent.
    of_group, n = sums / np.bincount(which)[:, None], len(names)
    total, own = of_group.sum(0), np.square(of_group).sum(1)
    square = (total @ total - own.sum()) / (n * (n - 1))
    # The same without each group in turn.
    left = np.square(total - of_group).sum(1) - (own.sum() - own)
    without = left / ((n - 1) * (n - 2))
    half_width = norm.ppf(0.975) * np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    gap, low, high = np.sqrt(np.maximum(0, [square, square - half_width, square + half_width]))
    return Measured("modality_gap", float(gap), float(low), float(high), len(text), JACKKNIFE)


def cosine(first: Float[np.ndarray, "*n d"], second: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n"]:
    """Return the cosine along the last axis; NaN where a vector is zero."""
    length = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    product = np.sum(first * second, axis=-1)
    return np.divide(product, length, out=np.full(np.shape(product), np.nan), where=length > 0)
