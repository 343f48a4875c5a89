"""States to be probed: traces of the same queries in several modalities, checked before anything is fitted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, product
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from interp import Store, open_store
from probes import (
    PROBES,
    FitPlan,
    FoldedProbe,
    LinearProbe,
    control_task,
    length_scores,
    out_of_fold_words,
    random_features,
    refit_spread,
    shuffled_labels,
)
from studies.probing.settings import ProbeError, ProbeSettings, QueryLabels, without_slow_probes

FILLER = "filler_tokens"
"""Text after as many filler tokens as a picture takes: a control of text, traced as if it were a modality."""
CONTROL_SEED = 1000
"""First seed of the control labels, so that they share none with folds and splits."""
ROUNDING, HALF_ROUNDING = 1e-5, 2e-2
"""Differences between states that should be equal, relative to the largest: in float32, and in half precision."""
FEW = 0.1
"""With a smaller share of states that differ from the others, a fold may have none of them."""
MOST_NAMED = 5
"""At most this many prompts are listed in an error."""


@dataclass(frozen=True)
class ProbeData:
    """States of the same queries, in the same order, in every modality, with what is fitted on them."""

    states: Mapping[str, xr.Dataset]
    settings: ProbeSettings
    seed: int = 0
    anchors: xr.Dataset | None = None
    """States of other queries, as text."""
    lengths: Sequence[int] = ()
    """Lengths of the queries in tokens; by default in characters."""
    ends: Sequence[str] = ()
    """First and last token of each query; by default first and last word."""
    verbs: Sequence[str] = ()
    """Verb of each query, to which control tasks assign labels; by default the first word."""
    places: list[tuple[str, str]] = field(init=False)
    """Pairs of site and token."""
    layers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Fill in the derived fields and check everything that can be checked without fitting.

        Raises:
            ProbeError: see `_check`, and `plan`.
        """
        object.__setattr__(self, "places", list(product(self.settings.sites, self.settings.tokens)))
        available = next(iter(self.states.values())).layer.values.tolist()
        object.__setattr__(self, "layers", tuple(self.settings.layers or available))
        self._check(available)
        object.__setattr__(self, "settings", without_slow_probes(self.settings, self.width))
        _ = self.plan

    def _check(self, available: list[int]) -> None:
        """Check that the modalities hold the same queries, and that everything in the settings was traced.

        Raises:
            ProbeError: sites, tokens or layers that were not traced, or different queries in different modalities.
        """
        self.settings.check_layers(available)
        texts = None
        for name, states in self.states.items():
            missing = [site for site in self.settings.sites if site not in states]
            missing += [token for token in self.settings.tokens if token not in states.token.values]
            if missing:
                raise ProbeError(f"{', '.join(missing)} of modality {name} was not traced; trace it, or leave it out")
            own_texts = states.text.values.tolist()
            if texts is not None and own_texts != texts:
                raise ProbeError(
                    f"modality {name} has other queries than {next(iter(self.states))}; trace the same ones"
                )
            texts = own_texts

    @cached_property
    def query_labels(self) -> QueryLabels:
        """Labels of the queries, which all modalities share."""
        return QueryLabels.of_states(next(iter(self.states.values())))

    @property
    def is_harmful(self) -> Bool[np.ndarray, " n"]:
        """Class of each query."""
        return self.query_labels.harmful

    @property
    def texts(self) -> list[str]:
        """Text of each query."""
        return self.query_labels.text

    @cached_property
    def groups(self) -> np.ndarray:
        """Group of each query, which folds do not divide."""
        return self.query_labels.groups

    @property
    def words(self) -> list[str]:
        """Word of each query that decides its label in control tasks."""
        return list(self.verbs) or [text.lower().partition(" ")[0] for text in self.texts]

    @cached_property
    def plan(self) -> FitPlan:
        """Everything that is fitted at the first place.

        Raises:
            ProbeError: a class missing in a fold, fewer pairs than folds, categories that can't be left out.
        """
        settings, seed = self.settings, self.seed
        folds, by_category = settings.folds(self.query_labels, seed)
        # No two seeds of a study share a set of control labels.
        seeds = count(CONTROL_SEED * (1 + seed))
        shuffled = [shuffled_labels(self.is_harmful, self.groups, next(seeds)) for _ in range(settings.n_shuffles)]
        tasks = [control_task(self.words, next(seeds)) for _ in range(settings.n_tasks)]
        tasks = [task for task in tasks if task is not None and _is_learnable(task, folds)]
        controls = {"shuffled_labels": np.stack(shuffled)} if shuffled else {}
        controls |= {"verb_labels": np.stack(tasks)} if tasks else {}
        anchor_labels = None
        if self.anchors is not None:
            anchor_labels = (self.anchors.harmful.values, QueryLabels.of_states(self.anchors).groups)
        return FitPlan(
            self.is_harmful, self.groups, folds, settings.probes, by_category, controls, anchor_labels, seed=seed
        )

    @cached_property
    def baselines(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Out-of-fold scores of baselines that need no model, over the same folds."""
        folds, labels = self.plan.folds, self.is_harmful
        lengths = np.array(self.lengths or [len(text) for text in self.texts], dtype=float)
        noise = random_features(len(labels), self.width, CONTROL_SEED + self.seed)
        probe: LinearProbe = PROBES[self.settings.probes[0]]()
        return {
            "length": length_scores(lengths, labels, folds),
            "first_last_token": out_of_fold_words(self.ends or _ends(self.texts), labels, folds),
            "bag_of_words": out_of_fold_words(self.texts, labels, folds),
            "random_features": FoldedProbe.fit(probe, noise, labels, folds, self.groups).distances(noise),
        }

    @property
    def spread(self) -> float:
        """Factor that widens intervals of out-of-fold scores, because probes are refitted."""
        return refit_spread(len(self.plan.folds))

    @cached_property
    def uninformative(self) -> dict[tuple[str, str], set[str]]:
        """Modalities that are left out, by place, because their states are missing or constant at some layer.

        They have no such token; or no picture token sees the request, and the picture is the same for all.
        """
        return {
            (site, token): {
                name
                for name, states in self.states.items()
                if token.endswith("_mean")
                and any(_is_uninformative(states[site].sel(layer=layer, token=token), states) for layer in self.layers)
            }
            for site, token in self.places
        }

    @property
    def width(self) -> int:
        """Dimension of the states."""
        return next(iter(self.states.values()))[self.settings.sites[0]].sizes["d_model"]

    def plan_at(self, place: tuple[str, str]) -> FitPlan:
        """Return what is fitted at a place: everything at the first one, the first probe alone at the others."""
        if place == self.places[0]:
            return self.plan
        return FitPlan(self.is_harmful, self.groups, self.plan.folds, self.settings.probes[:1], seed=self.seed)

    def states_at(self, layer: int, place: tuple[str, str]) -> dict[str, Float[np.ndarray, "n d"]]:
        """Return the states at a place, by modality, without modalities that nothing can be fitted on there.

        Raises:
            ProbeError: states that are not finite, or constant at every layer; the message names prompts and place.
        """
        site, token = place
        constant = self.constant_at(layer, place)
        by_modality = {}
        for name in self._informative(place):
            if name not in constant:
                states = self.states[name][site].sel(layer=layer, token=token).values
                where = f"modality {name} ({site}, token {token}, layer {layer})"
                by_modality[name] = _finite(states, self.texts, where)
        return by_modality

    def constant_at(self, layer: int, place: tuple[str, str]) -> tuple[str, ...]:
        """Return the modalities whose states are the same for all prompts at a place, though not at every layer.

        Raises:
            ProbeError: they are the same at every layer.
        """
        return tuple(name for name in self._informative(place) if layer in self._constant_layers(name, place))

    def _informative(self, place: tuple[str, str]) -> list[str]:
        is_first = place == self.places[0]
        return [name for name in self.states if name not in self.uninformative[place] and (name != FILLER or is_first)]

    def _constant_layers(self, name: str, place: tuple[str, str]) -> frozenset[int]:
        if (name, place) not in self._constant:
            self._constant[name, place] = _constant_layers(self.states[name], place, self.layers, f"modality {name}")
        return self._constant[name, place]

    @cached_property
    def _constant(self) -> dict[tuple, frozenset[int]]:
        """Layers at which states are constant, by modality and place, as they are looked up."""
        return {}

    def anchors_at(self, layer: int, place: tuple[str, str]) -> np.ndarray | None:
        """Return the states of the anchors at the first place; None elsewhere, or where nothing can be fitted on them.

        Raises:
            ProbeError: see `states_at`.
        """
        if self.anchors is None or place != self.places[0]:
            return None
        site, token = place
        states = self.anchors[site].sel(layer=layer, token=token).values
        if token.endswith("_mean") and np.isnan(states).all():
            return None
        if layer in _constant_layers(self.anchors, place, self.layers, "the anchors"):
            return None
        where = f"the anchors ({site}, token {token}, layer {layer})"
        return _finite(states, self.anchors.text.values.tolist(), where)


def _constant_layers(traced: xr.Dataset, place: tuple[str, str], layers: Sequence[int], whose: str) -> frozenset[int]:
    """Return the layers at which the states of all prompts are the same.

    Raises:
        ProbeError: that is so at every layer.
    """
    site, token = place
    states, tolerance = traced[site].sel(token=token), _tolerance(traced)
    constant = frozenset(layer for layer in layers if _is_constant(states.sel(layer=layer).values, tolerance))
    if len(constant) == len(layers):
        where = f"{whose} ({site}, token {token}, layer {', '.join(map(str, layers))})"
        raise ProbeError(
            f"states of {where} are the same for all {states.sizes['prompt']} prompts, so there is nothing to fit; "
            "leave it out (resid_pre of layer 0 is the last token's embedding, which all prompts share)"
        )
    return constant


def load_probe_data(
    folder: Path, settings: ProbeSettings, modalities: Sequence[str] = (), split: str = "", seed: int = 0
) -> ProbeData:
    """Load the states that `vlm-guard trace` has stored; the model is not needed.

    Args:
        folder: the store.
        settings: what is probed.
        modalities: modalities that are probed; by default all that were traced.
        split: split whose queries are probed; by default all queries of a store without splits. If the store holds
            anchors, a probe is also fitted on them.
        seed: seed of folds and controls.

    Raises:
        StoreError: there is no store, or it is not complete.
        ProbeError: the store lacks the modality, the split, the sites, tokens or layers.
    """
    Store(folder).check()
    states = open_store(folder)
    available, splits = (list(dict.fromkeys(states[name].values.tolist())) for name in ("modality", "split"))
    missing = [name for name in modalities if name not in available]
    if missing:
        raise ProbeError(f"{str(folder)!r} holds no {', '.join(missing)}; its modalities are {', '.join(available)}")
    if split not in splits:
        raise ProbeError(f"{str(folder)!r} has no split {split!r}; give one of {', '.join(map(repr, splits))}")
    by_modality = {name: _part(states, name, split) for name in modalities or available}
    anchors = None
    if "anchors" in splits and split != "anchors" and "text" in available:
        anchors = _part(states, "text", "anchors")
    return ProbeData(by_modality, settings, seed, anchors if anchors is not None and anchors.sizes["prompt"] else None)


def _part(states: xr.Dataset, modality: str, split: str) -> xr.Dataset:
    return states.isel(prompt=((states.modality == modality) & (states.split == split)).values)


def _finite(states: np.ndarray, texts: Sequence[str], where: str) -> np.ndarray:
    """Return states that can be fitted.

    Raises:
        ProbeError: some are not finite; the message names prompts and place.
    """
    broken = ~np.isfinite(states).all(axis=1)
    if broken.any():
        prompts = ", ".join(repr(texts[i]) for i in np.flatnonzero(broken)[:MOST_NAMED])
        raise ProbeError(
            f"{broken.sum()} of {len(states)} states of {where} are not finite: prompts {prompts}; trace them "
            "again, perhaps in float32"
        )
    return states


def _is_uninformative(states: xr.DataArray, traced: xr.Dataset) -> bool:
    return bool(np.isnan(states.values).all()) or _is_constant(states.values, _tolerance(traced))


def _tolerance(traced: xr.Dataset) -> float:
    """Return how far rounding separates equal states of different batches, relative to the largest state."""
    return ROUNDING if traced.attrs.get("dtype", "float32") == "float32" else HALF_ROUNDING


def _is_constant(states: Float[np.ndarray, "n d"], tolerance: float) -> bool:
    """Return whether almost all states are the same, so that nothing can be fitted: a fold may lack the others.

    They are the same but for rounding: in each dimension, relative to its own size or the usual one. A few dimensions
    of a language model are hundreds of times as large as the others (massive activations, arXiv:2402.17762), so the
    largest one says nothing about rounding in the others.
    """
    with np.errstate(invalid="ignore"):
        size = np.abs(states).max(axis=0)
        is_same = np.abs(states - np.median(states, axis=0)) <= tolerance * np.maximum(size, np.median(size))
    return bool((~is_same.all(axis=1)).mean() < FEW)


def _is_learnable(task: Bool[np.ndarray, " n"], folds: Sequence) -> bool:
    return all(min(task[train].sum(), (~task[train]).sum()) > 1 for train, _ in folds)


def _ends(texts: Sequence[str]) -> list[str]:
    """Return first and last word of each text, labelled, because the same word may be first here and last there."""
    word_lists = ([word.lower() for word in text.split()] or [""] for text in texts)
    return [f"first={words[0]} last={words[-1]}" for words in word_lists]
