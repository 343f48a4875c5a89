"""Everything that is fitted at one place of the network: layer, site and token, every modality."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement

import numpy as np
from jaxtyping import Bool, Float
from threadpoolctl import threadpool_limits

from probes.degradation import cosine
from probes.folds import Fold
from probes.linear import PROBES, LogisticProbe
from probes.out_of_fold import FoldedProbe, applied

PlaceScores = dict[str, Float[np.ndarray, "..."]]


@dataclass(frozen=True)
class FitPlan:
    """What is fitted: the same at every place."""

    labels: Bool[np.ndarray, " n"]
    groups: np.ndarray
    folds: Sequence[Fold]
    probes: Sequence[str] = ("logistic",)
    """The first is the one that is carried from modality to modality."""
    category_folds: Sequence[Fold] = ()
    controls: Mapping[str, Bool[np.ndarray, "task n"]] = field(default_factory=dict)
    """Sets of labels by name: shuffled ones, and those of control tasks."""
    taught: tuple[Bool[np.ndarray, " m"], np.ndarray] | None = None
    """Labels and groups of the anchors."""
    n_inner: int = 5
    seed: int = 0


def fit_place(
    plan: FitPlan, states: Mapping[str, Float[np.ndarray, "n d"]], anchors: Float[np.ndarray, "m d"] | None
) -> PlaceScores:
    """Out-of-fold scores of every probe, by name; one thread, for many of these run side by side.

    Args:
        plan: what is fitted.
        states: of the queries, by modality.
        anchors: text states of other queries, on which the first probe is fitted once more.

    Returns:
        `within/<probe>/<modality>` and `log_odds/<probe>/<modality>`: fitted and tested in a modality, by fold.
        `across/<modality>/<modality>`: the first probe, fitted in one, tested in another.
        `category/<modality>`: a category left out.
        `<control>/<modality>`: of each set of labels.
        `anchors/<modality>`, `log_odds/anchors/<modality>`: fitted on the anchors.
        `halves/<modality>/<modality>`: cosine of the weights of probes fitted on two halves of the pairs; of a modality
        with itself it says how far weights can be compared at all.

    Raises:
        ValueError: a class missing in a fold, features that are no numbers or all constant; says in which modality.
    """
    found: PlaceScores = {}
    with threadpool_limits(1):
        for name, features in states.items():
            try:
                found |= _within(plan, name, features, states)
            except ValueError as error:
                raise ValueError(f"modality {name}: {error}") from error
        if anchors is not None:
            labels, groups = plan.taught
            (fitted,) = _first(plan).fit_each(anchors.astype(np.float64), labels[None], groups)
            for name, features in states.items():
                found[f"anchors/{name}"] = applied(fitted, features)
                found[f"log_odds/anchors/{name}"] = applied(fitted, features, as_distances=False)
        found |= _halves(plan, states)
    return found


def _first(plan: FitPlan):
    return _made(plan, plan.probes[0])


def _made(plan: FitPlan, name: str):
    kind = PROBES[name]
    return kind(n_inner=plan.n_inner, seed=plan.seed) if "n_inner" in kind().get_params() else kind()


def _within(plan: FitPlan, name: str, features: np.ndarray, states: Mapping[str, np.ndarray]) -> PlaceScores:
    """The first probe learns its controls on the way: they share its scaling and its inner products."""
    found: PlaceScores = {}
    tasks = np.concatenate([plan.labels[None], *plan.controls.values()])
    for kind in plan.probes:
        is_first, probe = kind == plan.probes[0], _made(plan, kind)
        fitted = FoldedProbe.fit(probe, features, tasks if is_first else plan.labels, plan.folds, plan.groups)
        found[f"within/{kind}/{name}"] = fitted.distances(features)
        if probe.gives_probability:
            found[f"log_odds/{kind}/{name}"] = fitted.scores(features)
        if is_first:
            for other, theirs in states.items():
                if other != name:
                    found[f"across/{name}/{other}"] = fitted.distances(theirs)
            task = 1
            for control, dealt in plan.controls.items():
                numbers = range(task, task + len(dealt))
                found[f"{control}/{name}"] = np.stack([fitted.distances(features, i) for i in numbers])
                task += len(dealt)
    if plan.category_folds:
        fitted = FoldedProbe.fit(_first(plan), features, plan.labels, plan.category_folds, plan.groups)
        found[f"category/{name}"] = fitted.distances(features)
    return found


def _halves(plan: FitPlan, states: Mapping[str, np.ndarray]) -> PlaceScores:
    """Both halves of a split by pair in turn, so that no two weights have seen the same query."""
    names = np.random.default_rng(plan.seed).permutation(np.unique(plan.groups))
    is_one = np.isin(plan.groups, names[: len(names) // 2])
    weights = {}
    for name, features in states.items():
        for half, rows in enumerate((is_one, ~is_one)):
            if len(set(plan.labels[rows])) < 2:
                return {}
            probe = LogisticProbe(n_inner=plan.n_inner, seed=plan.seed)
            weights[name, half] = probe.fit(features[rows], plan.labels[rows], plan.groups[rows]).coef_[0]
    return {
        f"halves/{one}/{other}": np.mean(
            [cosine(weights[one, 0], weights[other, 1]), cosine(weights[one, 1], weights[other, 0])], keepdims=True
        )
        for one, other in combinations_with_replacement(states, 2)
    }
