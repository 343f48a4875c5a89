"""Settings of the probes: places, probes and controls; and the labels of the probed queries."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool

from interp import DECODER_SITES, TOKEN_ROLES, Query
from probes import PROBES, Fold, category_folds, grouped_folds
from studies.bookkeeping.console import plain_console
from studies.datasets.copies import kept_together
from studies.experiment.config import WIDEST_LDA


class ProbeError(ValueError):
    """These states can't be probed with these settings; the message says why."""


class QueryLabels(NamedTuple):
    """Classes, pairs, categories and texts of the probed queries."""

    harmful: Bool[np.ndarray, " n"]
    pair: list[str | None]
    category: list[str]
    text: list[str]

    @classmethod
    def of(cls, queries: Sequence[Query]) -> "QueryLabels":
        """Collect the labels of queries."""
        harmful = np.array([query.harmful for query in queries])
        columns = ([getattr(query, name) for query in queries] for name in ("pair", "category", "text"))
        return cls(harmful, *columns)

    @classmethod
    def of_states(cls, states: xr.Dataset) -> "QueryLabels":
        """Read the labels that are stored with traced states."""
        columns = (states[name].values.tolist() for name in ("pair", "category", "text"))
        return cls(states.harmful.values, *columns)

    @property
    def groups(self) -> np.ndarray:
        """Group of each query; pairs and copies, exact or near, share one, because folds must not divide them."""
        return kept_together(self.pair, self.text)


@dataclass(frozen=True)
class ProbeSettings:
    """Sites, tokens and layers that are probed, the probes, and the controls.

    Controls are run at the first site and token only.
    """

    sites: tuple[str, ...] = ("resid_post",)
    tokens: tuple[str, ...] = ("last",)
    layers: tuple[int, ...] | None = None
    """Layers that are probed; by default all that were traced."""
    probes: tuple[str, ...] = ("logistic",)
    """Probes at the first site and token; the first of them is fitted everywhere and tested across modalities."""
    n_shuffles: int = 20
    """Number of controls with shuffled labels."""
    n_tasks: int = 5
    """Number of control tasks, in which each verb gets a random label."""
    n_swaps: int = 1000
    """Number of permutations, which swap modalities within pairs."""
    n_folds: int = 5
    by_category: bool = False
    """Also leaves out one category at a time."""
    attacks: bool = False
    """Also measures whether modality shifts predict which attacks succeed; for this the model has to answer."""
    trained: bool = False
    """Also probes requests that the built-in model was trained on."""

    def folds(self, labels: QueryLabels, seed: int) -> tuple[list[Fold], list[Fold]]:
        """Divide queries into folds by pair, and by category if `by_category` is set.

        Returns:
            The folds by pair, and those by category (empty unless `by_category` is set).

        Raises:
            ProbeError: a class missing in a fold, fewer pairs than folds, categories that can't be left out.
        """
        groups = labels.groups
        try:
            by_pair = grouped_folds(labels.harmful, groups, self.n_folds, seed)
            by_category = category_folds(labels.harmful, labels.category, groups) if self.by_category else []
        except ValueError as error:
            raise ProbeError(str(error)) from error
        for train, _ in (*by_pair, *by_category):
            if any(len(set(groups[train][labels.harmful[train] == label])) < 2 for label in (True, False)):
                raise ProbeError(
                    "a fold leaves only one pair of a class to fit on, too few to choose a penalty; give more pairs"
                )
        return by_pair, by_category

    def check_layers(self, available: Sequence[int]) -> None:
        """Check that the layers exist.

        Raises:
            ProbeError: a layer is not available.
        """
        absent = sorted(set(self.layers or ()) - set(available))
        if absent:
            raise ProbeError(f"layers {absent} do not exist or were not traced; there are {named_layers(available)}")

    def __post_init__(self) -> None:
        """Check the settings and remove duplicates.

        Raises:
            ProbeError: a name that does not exist, an empty list, or a number that is too small.
        """
        for kind, names, available in (
            ("site", self.sites, DECODER_SITES),
            ("token", self.tokens, TOKEN_ROLES),
            ("probe", self.probes, tuple(PROBES)),
        ):
            unknown = [name for name in names if name not in available]
            if unknown or not names:
                raise ProbeError(f"{kind}s {unknown or 'none'}; expected some of {', '.join(available)}")
        if self.n_folds < 2:
            raise ProbeError(f"{self.n_folds} folds; expected at least two")
        if self.layers is not None and not self.layers:
            raise ProbeError("no layers; expected at least one")
        if min(self.n_shuffles, self.n_tasks, self.n_swaps - 1) < 0:
            raise ProbeError(
                f"{self.n_shuffles} shuffles, {self.n_tasks} tasks, {self.n_swaps} swaps; expected at least 0, 0 and 1"
            )
        for name in ("sites", "tokens", "probes", "layers"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(dict.fromkeys(values)))


def without_slow_probes(settings: ProbeSettings, width: int) -> ProbeSettings:
    """Drop probes that would take hours on states of this width, and say so on stderr.

    Raises:
        ProbeError: no other probe is left.
    """
    if "lda" not in settings.probes or width <= WIDEST_LDA:
        return settings
    probes = tuple(name for name in settings.probes if name != "lda")
    if not probes:
        raise ProbeError(f"lda inverts a {width} x {width} matrix for each fit; ask for another probe")
    plain_console(stderr=True).print(
        f"lda is left out: it inverts a {width} x {width} matrix for each fit", soft_wrap=True
    )
    return replace(settings, probes=probes)


def named_layers(layers: Sequence[int]) -> str:
    """Write layers as a phrase such as `layers 0-3, 7`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    names = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {names}"
