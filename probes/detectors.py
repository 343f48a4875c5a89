"""Detectors of harmful requests from states and labels: fitted on some rows, called on others, higher where harmful.

RCS (Hua et al., arXiv:2512.12069) contrasts distances to harmless and to harmful clusters. Its released code first maps
states through a network that is trained for the purpose, and replaces Ledoit and Wolf's shrinkage by a rule of thumb;
here states are used as they are given, so a map of them is the caller's, and the shrinkage is the published one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.neighbors import NearestNeighbors

from probes.linear import LogisticProbe

NEIGHBOURS = 40
"""Neighbours of KCD in its released code."""
RANK_TOLERANCE = 1e-10
"""Variance along an axis below this share of the largest is rounding."""
Detector = Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, " n"]]
"""A fitted detector: a score per row of states, higher where harmful."""


@dataclass(frozen=True)
class Cluster:
    """A group of states as a normal distribution, with Ledoit and Wolf's shrunk covariance.

    The covariance of n rows has at most n - 1 axes, and shrinkage adds the same variance along every other direction:
    both are kept apart, so that wide states cost no inverse of their covariance.
    """

    mean: Float[np.ndarray, " d"]
    axes: Float[np.ndarray, "axis d"]
    """Orthonormal directions in which the rows vary."""
    variances: Float[np.ndarray, " axis"]
    """Shrunk variance along each of them."""
    floor: float
    """Shrunk variance along all other directions; 0 where there are none, or nothing is shrunk."""

    @classmethod
    def fit(cls, rows: Float[np.ndarray, "n d"]) -> "Cluster":
        """Fit mean and covariance (Ledoit & Wolf 2004) as `sklearn.covariance.LedoitWolf` does.

        Raises:
            ValueError: fewer than two rows, rows that are all the same, or too few of them for unshrunk variances.
        """
        if len(rows) < 2 or not np.ptp(rows, axis=0).any():
            raise ValueError(f"a cluster of {len(rows)} rows, all the same; expected at least two different ones")
        mean = rows.mean(0)
        centred = rows - mean
        shrinkage = ledoit_wolf_shrinkage(centred, assume_centered=True)
        _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
        variances = lengths**2 / len(rows)
        is_axis = variances > RANK_TOLERANCE * variances[0]
        floor = float(shrinkage * variances.sum() / rows.shape[1])
        if floor == 0 and is_axis.sum() < rows.shape[1]:
            raise ValueError(f"{len(rows)} rows span {is_axis.sum()} of {rows.shape[1]} dimensions; give more rows")
        return cls(mean, axes[is_axis], (1 - shrinkage) * variances[is_axis] + floor, floor)

    def distances(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Return the Mahalanobis distance of each row from the mean."""
        centred = rows - self.mean
        along = centred @ self.axes.T
        squared = (along**2 / self.variances).sum(1)
        if len(self.axes) < rows.shape[1]:
            rest = np.maximum((centred**2).sum(1) - (along**2).sum(1), 0)
            squared += rest / self.floor
        return np.sqrt(squared)


@dataclass(frozen=True)
class MahalanobisContrast:
    """RCS's MCD: the distance to the nearest harmless cluster minus that to the nearest harmful one."""

    harmful: tuple[Cluster, ...]
    harmless: tuple[Cluster, ...]

    @classmethod
    def fit(
        cls,
        states: Float[np.ndarray, "n d"],
        is_harmful: Bool[np.ndarray, " n"],
        clusters: Shaped[np.ndarray, " n"] | None = None,
    ) -> "MahalanobisContrast":
        """Fit one cluster per class and name.

        Args:
            states: rows of both classes.
            is_harmful: their labels.
            clusters: name of each row's cluster, in the paper its data set; by default each class is one cluster.

        Raises:
            ValueError: a class is missing, or see `Cluster.fit`.
        """
        _check_classes(is_harmful)
        names = np.zeros(len(states), int) if clusters is None else clusters
        rows = states.astype(float)

        def fitted(label: bool) -> tuple[Cluster, ...]:
            own = is_harmful == label
            return tuple(Cluster.fit(rows[own & (names == name)]) for name in np.unique(names[own]))

        return cls(fitted(True), fitted(False))

    def __call__(self, states: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        rows = states.astype(float)
        harmful, harmless = (
            np.min([cluster.distances(rows) for cluster in part], axis=0) for part in (self.harmful, self.harmless)
        )
        return harmless - harmful


@dataclass(frozen=True)
class NeighbourContrast:
    """RCS's KCD: the distance to the k-th harmless neighbour minus that to the k-th harmful one, of unit states."""

    harmful: Float[np.ndarray, "harmful d"]
    harmless: Float[np.ndarray, "harmless d"]
    k: int

    @classmethod
    def fit(
        cls, states: Float[np.ndarray, "n d"], is_harmful: Bool[np.ndarray, " n"], k: int = NEIGHBOURS
    ) -> "NeighbourContrast":
        """Keep the rows of both classes; of a class with fewer than k, the farthest row is the k-th.

        Args:
            states: rows of both classes; their lengths don't count.
            is_harmful: their labels.
            k: number of the neighbour whose distance counts.

        Raises:
            ValueError: a class is missing, or k is below 1.
        """
        _check_classes(is_harmful)
        if k < 1:
            raise ValueError(f"k = {k}; expected at least 1")
        rows = _unit(states)
        return cls(rows[is_harmful], rows[~is_harmful], k)

    def __call__(self, states: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        rows = _unit(states)
        # Both classes count the same neighbour, or the smaller one would seem farther away.
        k = min(self.k, len(self.harmful), len(self.harmless))
        harmful, harmless = (
            NearestNeighbors(n_neighbors=k, algorithm="brute").fit(part).kneighbors(rows)[0][:, -1]
            for part in (self.harmful, self.harmless)
        )
        return harmless - harmful


def _unit(states: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    rows = states.astype(float)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _check_classes(is_harmful: Bool[np.ndarray, " n"]) -> None:
    if is_harmful.all() or not is_harmful.any():
        n = int(is_harmful.sum())
        raise ValueError(f"a detector needs both classes; got {n} harmful and {len(is_harmful) - n} harmless rows")


def _linear(states: np.ndarray, is_harmful: np.ndarray, groups: np.ndarray, clusters: np.ndarray) -> Detector:
    _check_classes(is_harmful)
    return LogisticProbe().fit(states, is_harmful, groups).decision_function


def _mcd(states: np.ndarray, is_harmful: np.ndarray, groups: np.ndarray, clusters: np.ndarray) -> Detector:
    return MahalanobisContrast.fit(states, is_harmful, clusters)


def _kcd(states: np.ndarray, is_harmful: np.ndarray, groups: np.ndarray, clusters: np.ndarray) -> Detector:
    _check_classes(is_harmful)
    # The k-th neighbour of as many rows would be the farthest one.
    smallest = int(min(is_harmful.sum(), (~is_harmful).sum()))
    return NeighbourContrast.fit(states, is_harmful, min(NEIGHBOURS, max(1, smallest // 3)))


DETECTORS: dict[str, Callable[..., Detector]] = {"linear_probe": _linear, "mcd": _mcd, "kcd": _kcd}
"""Detectors by name: functions of states (`n d`), labels (`n`), groups that inner folds keep together (`n`), and names
of clusters (`n`), which return a fitted `Detector` whose border is 0. `kcd` counts the 40th neighbour as
its released code does, or that of a third of the smaller class."""
