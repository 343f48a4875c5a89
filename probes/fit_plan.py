"""All probes of one place in the network (a layer, a site and a token), over every modality."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement

import numpy as np
from jaxtyping import Bool, Float
from threadpoolctl import threadpool_limits

from probes.degradation import cosine
from probes.folds import Fold
from probes.linear import PROBES, LinearProbe, LogisticProbe
from probes.out_of_fold import FoldedProbe, apply_weights

PlaceScores = dict[str, Float[np.ndarray, "..."]]
"""Scores at one place, by the names that `fit_place` lists."""


@dataclass(frozen=True)
class FitPlan:
    """Everything to fit, which is the same at every place."""

    labels: Bool[np.ndarray, " n"]
    groups: np.ndarray
    folds: Sequence[Fold]
    probes: Sequence[str] = ("logistic",)
    """Names in `PROBES`. The first one also learns the controls and is tested across modalities."""
    category_folds: Sequence[Fold] = ()
    controls: Mapping[str, Bool[np.ndarray, "task n"]] = field(default_factory=dict)
    """Sets of labels by name: shuffled labels and the labels of control tasks."""
    anchor_labels: tuple[Bool[np.ndarray, " m"], np.ndarray] | None = None
    """Labels and groups of the anchors."""
    n_inner: int = 5
    seed: int = 0


def fit_place(
    plan: FitPlan, states: Mapping[str, Float[np.ndarray, "n d"]], anchors: Float[np.ndarray, "m d"] | None
) -> PlaceScores:
    """Fit every probe of a plan and return the out-of-fold scores.

    Uses a single thread, since many places are fitted in parallel.

    Args:
        plan: what to fit.
        states: states of the queries, by modality.
        anchors: text states of other queries, on which the first probe is fitted once more.

    Returns:
        Scores by name:
        `within/<probe>/<modality>` and `log_odds/<probe>/<modality>`: fitted and tested in one modality, by fold.
        `across/<modality>/<modality>`: the first probe, fitted in the first modality and tested in the second.
        `category/<modality>`: each category scored by a probe fitted on the other categories.
        `<control>/<modality>`: one row per set of control labels.
        `anchors/<modality>`, `log_odds/anchors/<modality>`: fitted on the anchors.
        `halves/<modality>/<modality>`: cosine of the weights of probes fitted on two halves of the pairs. Within one
        modality it shows how reproducible weights are, which bounds any comparison between modalities.

    Raises:
        ValueError: a fold lacks a class, or features are not finite or all constant; the message names the modality.
    """
    scores: PlaceScores = {}
    with threadpool_limits(1):
        for modality, features in states.items():
            try:
                scores |= _fit_modality(plan, modality, features, states)
            except ValueError as error:
                raise ValueError(f"modality {modality}: {error}") from error
        if anchors is not None:
            labels, groups = plan.anchor_labels
            (weights,) = _first_probe(plan).fit_each(anchors.astype(np.float64), labels[None], groups)
            for modality, features in states.items():
                scores[f"anchors/{modality}"] = apply_weights(weights, features)
                scores[f"log_odds/anchors/{modality}"] = apply_weights(weights, features, as_distances=False)
        scores |= _half_cosines(plan, states)
    return scores


def _first_probe(plan: FitPlan) -> LinearProbe:
    return _build_probe(plan, plan.probes[0])


def _build_probe(plan: FitPlan, name: str) -> LinearProbe:
    kind = PROBES[name]
    return kind(n_inner=plan.n_inner, seed=plan.seed) if "n_inner" in kind().get_params() else kind()


def _fit_modality(plan: FitPlan, modality: str, features: np.ndarray, states: Mapping[str, np.ndarray]) -> PlaceScores:
    """Fit all probes on one modality; the first one is also scored in the others."""
    scores: PlaceScores = {}
    # Rows are tasks: the real labels, then every set of control labels. Fitted together, they share the scaling and
    # the Gram matrix.
    tasks = np.concatenate([plan.labels[None], *plan.controls.values()])
    for kind in plan.probes:
        is_first, probe = kind == plan.probes[0], _build_probe(plan, kind)
        folded = FoldedProbe.fit(probe, features, tasks if is_first else plan.labels, plan.folds, plan.groups)
        scores[f"within/{kind}/{modality}"] = folded.distances(features)
        if probe.gives_probability:
            scores[f"log_odds/{kind}/{modality}"] = folded.scores(features)
        if is_first:
            for other, other_features in states.items():
                if other != modality:
                    scores[f"across/{modality}/{other}"] = folded.distances(other_features)
            task = 1
            for control, label_sets in plan.controls.items():
                tasks_of_control = range(task, task + len(label_sets))
                scores[f"{control}/{modality}"] = np.stack([folded.distances(features, i) for i in tasks_of_control])
                task += len(label_sets)
    if plan.category_folds:
        folded = FoldedProbe.fit(_first_probe(plan), features, plan.labels, plan.category_folds, plan.groups)
        scores[f"category/{modality}"] = folded.distances(features)
    return scores


def _half_cosines(plan: FitPlan, states: Mapping[str, np.ndarray]) -> PlaceScores:
    """Compare weights fitted on different halves of the pairs, so that no two of them have seen the same query."""
    names = np.random.default_rng(plan.seed).permutation(np.unique(plan.groups))
    in_first_half = np.isin(plan.groups, names[: len(names) // 2])
    weights = {}
    for modality, features in states.items():
        for half, rows in enumerate((in_first_half, ~in_first_half)):
            if len(set(plan.labels[rows])) < 2:
                return {}
            probe = LogisticProbe(n_inner=plan.n_inner, seed=plan.seed)
            weights[modality, half] = probe.fit(features[rows], plan.labels[rows], plan.groups[rows]).coef_[0]
    # Both ways round, and averaged: half 0 of the first with half 1 of the second, and the reverse.
    return {
        f"halves/{first}/{second}": np.mean(
            [cosine(weights[first, 0], weights[second, 1]), cosine(weights[first, 1], weights[second, 0])],
            keepdims=True,
        )
        for first, second in combinations_with_replacement(states, 2)
    }
