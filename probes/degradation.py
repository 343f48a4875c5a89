"""How much separability a modality costs, and where probes of two modalities part: paired over the same queries."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm, rankdata

from probes.intervals import auroc_difference
from probes.metrics import Measured, covered

JACKKNIFE = "95 %, other pairs, jackknife"


def auroc_drop(
    is_harmful: Bool[np.ndarray, " n"],
    text: Float[np.ndarray, " n"],
    other: Float[np.ndarray, " n"],
    groups: Iterable,
    metric: str = "auroc_drop",
    spread: float = 1.0,
) -> Measured:
    """AUROC of the same queries as text, less that in the other modality."""
    value, low, high = auroc_difference(is_harmful, text, other, groups, spread=spread)
    return Measured(metric, value, low, high, covered(spread), len(text))


def drop_p_values(
    is_harmful: Bool[np.ndarray, " n"],
    text: Float[np.ndarray, "layer n"],
    other: Float[np.ndarray, "layer n"],
    groups: Iterable,
    n_draws: int = 1000,
    seed: int = 0,
    spread: float = 1.0,
) -> Float[np.ndarray, " layer"]:
    """Two-sided p-value of each layer's drop: modalities exchanged within pairs of queries, largest drop over layers.

    Ranks are exchanged, not scores (Venkatraman & Begg 1996): probes of two modalities have no common scale. Partners
    are exchanged together, in all layers alike; the maximum over layers holds the family-wise error (Westfall & Young
    1993). The least value is 1 / (n_draws + 1).

    Args:
        spread: of `probes.out_of_fold.refit_spread`: exchanging fixed scores does not refit the probes behind them.
    """
    ranks = np.stack([rankdata(scores, axis=1) for scores in (text, other)])
    found = np.abs(_drops(is_harmful, ranks[None]))[0]
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    is_swapped = np.random.default_rng(seed).integers(2, size=(n_draws, len(names))).astype(bool)[:, which]
    swapped = (
        np.where(some[:, None, None], ranks[::-1], ranks) for some in np.array_split(is_swapped, n_draws // 50 + 1)
    )
    reached = np.concatenate([np.abs(_drops(is_harmful, some)).max(1) for some in swapped])
    # Sums of ranks in another order differ in the last digit.
    at_least = spread * reached[:, None] >= found - 1e-9
    return (1 + at_least.sum(0)) / (1 + n_draws)


def _drops(
    is_harmful: np.ndarray, ranks: Float[np.ndarray, "draw modality layer n"]
) -> Float[np.ndarray, "draw layer"]:
    """Difference of AUROCs. Exchanged ranks are no longer 1 to n, so they are ranked again."""
    again = rankdata(ranks, axis=-1)
    m, n = is_harmful.sum(), (~is_harmful).sum()
    auroc = (again[..., is_harmful].sum(-1) - m * (m + 1) / 2) / (m * n)
    return auroc[:, 0] - auroc[:, 1]


def modality_gap(text: Float[np.ndarray, "n d"], other: Float[np.ndarray, "n d"], groups: Iterable) -> Measured:
    """Distance between the centroids of states of unit length (Liang et al., arXiv:2203.02053, section 4.2).

    Between 0 and 2. The distance of two means is too large where they are noisy, and never 0; so its square is
    estimated without bias, from products of different groups, and is 0 where that falls below. The interval is a
    jackknife of it.
    """
    units = [states / np.linalg.norm(states, axis=1, keepdims=True) for states in (text, other)]
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), text.shape[1]))
    np.add.at(sums, which, units[0] - units[1])
    of_group, n = sums / np.bincount(which)[:, None], len(names)
    total, own = of_group.sum(0), np.square(of_group).sum(1)
    square = (total @ total - own.sum()) / (n * (n - 1))
    left = np.square(total - of_group).sum(1) - (own.sum() - own)
    without = left / ((n - 1) * (n - 2))
    half_width = norm.ppf(0.975) * np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    gap, low, high = np.sqrt(np.maximum(0, [square, square - half_width, square + half_width]))
    return Measured("modality_gap", float(gap), float(low), float(high), JACKKNIFE, len(text))


def cosine(first: Float[np.ndarray, "*n d"], second: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n"]:
    """Along the last axis; NaN where a vector has no length."""
    length = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    found = np.sum(first * second, axis=-1)
    return np.divide(found, length, out=np.full(np.shape(found), np.nan), where=length > 0)
