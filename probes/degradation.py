"""How much separability a modality costs, and where probes of two modalities part: paired over the same queries."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm, rankdata

from probes.intervals import auroc_difference
from probes.metrics import QUERIES, Measured

JACKKNIFE = "95 %, other pairs, jackknife"


def auroc_drop(
    is_harmful: Bool[np.ndarray, " n"],
    text: Float[np.ndarray, " n"],
    other: Float[np.ndarray, " n"],
    groups: Iterable,
    metric: str = "auroc_drop",
) -> Measured:
    """AUROC of the same queries as text, less that in the other modality."""
    return Measured(metric, *auroc_difference(is_harmful, text, other, groups), QUERIES, len(text))


def drop_p_values(
    is_harmful: Bool[np.ndarray, " n"],
    text: Float[np.ndarray, "layer n"],
    other: Float[np.ndarray, "layer n"],
    groups: Iterable,
    n_draws: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, " layer"]:
    """Two-sided p-value of each layer's drop: modalities exchanged within pairs of queries, largest drop over layers.

    Ranks are exchanged, not scores (Venkatraman & Begg 1996): probes of two modalities have no common scale. Partners
    are exchanged together, in all layers alike; the maximum over layers holds the family-wise error (Westfall & Young
    1993). The least value is 1 / (n_draws + 1).
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
    at_least = reached[:, None] >= found - 1e-9
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

    Between 0 and 2. The interval is a jackknife over groups.
    """
    units = [states / np.linalg.norm(states, axis=1, keepdims=True) for states in (text, other)]
    difference = units[0] - units[1]
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), difference.shape[1]))
    np.add.at(sums, which, difference)
    counts = np.bincount(which)[:, None]
    without = np.linalg.norm((sums.sum(0) - sums) / np.maximum(len(text) - counts, 1), axis=1)
    n_groups, gap = len(names), float(np.linalg.norm(difference.mean(0)))
    error = np.sqrt((n_groups - 1) / n_groups * np.square(without - without.mean()).sum())
    half_width = norm.ppf(0.975) * error
    return Measured("modality_gap", gap, max(0.0, gap - half_width), gap + half_width, JACKKNIFE, len(text))


def cosine(first: Float[np.ndarray, "*n d"], second: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n"]:
    """Along the last axis; NaN where a vector has no length."""
    length = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    found = np.sum(first * second, axis=-1)
    return np.divide(found, length, out=np.full(np.shape(found), np.nan), where=length > 0)
