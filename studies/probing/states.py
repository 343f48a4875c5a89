"""What is probed: traced states of the same queries in several modalities, and how far the probing goes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from rich.console import Console

from interp.activations import open_store
from interp.inputs import Query
from interp.token_positions import TOKEN_ROLES
from probes import (
    PROBES,
    FitPlan,
    as_groups,
    category_folds,
    control_task,
    grouped_folds,
    length_scores,
    out_of_fold_words,
    random_features,
    refit_spread,
    shuffled_labels,
)
from probes.folds import Fold
from probes.linear import LinearProbe
from probes.out_of_fold import FoldedProbe
from studies.experiment.config import WIDEST_LDA

PROBED_SITES = ("resid_post", "resid_pre", "attn_out", "mlp_out")
"""That probes can be fitted at: those of the decoder blocks."""
FILLER = "filler_tokens"
"""Text behind as many filler tokens as a picture takes: a control of text, traced as if it were a modality."""
CONTROL_SEED = 1000
"""Labels of controls are dealt with seeds from here on, apart from those of folds and splits."""
ROUNDING, HALF_ROUNDING = 1e-5, 2e-2
"""Of states that should be alike, relative to the largest: in float32, and in half precision."""
NAMED = 5
"""Prompts that an error lists by name."""


class ProbeError(ValueError):
    """These states can't be probed as asked; says why."""


class QueryLabels(NamedTuple):
    """What is known of the queries."""

    harmful: Bool[np.ndarray, " n"]
    pair: list[str | None]
    category: list[str]
    text: list[str]

    @classmethod
    def of(cls, queries: Sequence[Query]) -> "QueryLabels":
        harmful = np.array([query.harmful for query in queries])
        columns = ([getattr(query, name) for query in queries] for name in ("pair", "category", "text"))
        return cls(harmful, *columns)

    @classmethod
    def of_states(cls, traced: xr.Dataset) -> "QueryLabels":
        columns = (traced[name].values.tolist() for name in ("pair", "category", "text"))
        return cls(traced.harmful.values, *columns)

    @property
    def groups(self) -> np.ndarray:
        """What must not be divided: pairs, and the same text standing there twice."""
        return as_groups(self.pair, self.text)


@dataclass(frozen=True)
class ProbeSettings:
    """What is probed, and by what. All controls stand at the first site and token."""

    sites: tuple[str, ...] = ("resid_post",)
    tokens: tuple[str, ...] = ("last",)
    layers: tuple[int, ...] | None = None
    """By default every one that was traced."""
    probes: tuple[str, ...] = ("logistic",)
    """At the first site and token; the first one everywhere, and from modality to modality."""
    n_shuffles: int = 20
    """Deals of shuffled labels."""
    n_tasks: int = 5
    """Control tasks: a label drawn for each verb."""
    n_swaps: int = 1000
    """Permutations of modalities."""
    n_folds: int = 5
    by_category: bool = False
    """Also with a category left out."""
    attacks: bool = False
    """Also whether modality shifts tell attacks that succeed; the model answers for that."""
    trained: bool = False
    """Also requests that the built-in model was trained on."""

    def folds(self, known: QueryLabels, seed: int) -> tuple[list[Fold], list[Fold]]:
        """By pair, and by category where asked for.

        Raises:
            ProbeError: a class missing in a fold, fewer pairs than folds, categories that can't be left out.
        """
        groups = known.groups
        try:
            by_pair = grouped_folds(known.harmful, groups, self.n_folds, seed)
            left_out = category_folds(known.harmful, known.category) if self.by_category else []
        except ValueError as error:
            raise ProbeError(str(error)) from error
        for train, _ in (*by_pair, *left_out):
            if any(len(set(groups[train][known.harmful[train] == label])) < 2 for label in (True, False)):
                raise ProbeError(
                    "a fold leaves one pair of a class to fit on, and no penalty can be chosen; give more pairs"
                )
        return by_pair, left_out

    def check_layers(self, there: Sequence[int]) -> None:
        """Raises:
        ProbeError: a layer that is not there.
        """
        absent = sorted(set(self.layers or ()) - set(there))
        if absent:
            raise ProbeError(f"layers {absent} do not exist or were not traced; there are {named_layers(there)}")

    def __post_init__(self) -> None:
        """Raises:
        ProbeError: something in it does not exist, or there is nothing in it.
        """
        for name, given, known in (
            ("site", self.sites, PROBED_SITES),
            ("token", self.tokens, TOKEN_ROLES),
            ("probe", self.probes, tuple(PROBES)),
        ):
            strange = [one for one in given if one not in known]
            if strange or not given:
                raise ProbeError(f"{name}s {strange or 'none'}; expected some of {', '.join(known)}")
        if self.n_folds < 2:
            raise ProbeError(f"{self.n_folds} folds; expected two at least")
        if self.layers is not None and not self.layers:
            raise ProbeError("no layers; expected one at least")
        numbers = (self.n_shuffles, self.n_tasks, self.n_swaps - 1)
        if min(numbers) < 0:
            raise ProbeError(
                f"{self.n_shuffles} shuffles, {self.n_tasks} tasks, {self.n_swaps} swaps; expected 0, 0, 1"
            )
        for name in ("sites", "tokens", "probes", "layers"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(dict.fromkeys(given)))


@dataclass(frozen=True)
class ProbeData:
    """States to be probed: the same queries, in the same order, in every modality."""

    states: Mapping[str, xr.Dataset]
    extent: ProbeSettings
    seed: int = 0
    anchors: xr.Dataset | None = None
    """Other queries as text."""
    lengths: Sequence[int] = ()
    """Of the queries in tokens; by default in characters."""
    ends: Sequence[str] = ()
    """First and last token of each query; by default first and last word."""
    verbs: Sequence[str] = ()
    """What control tasks deal labels to; by default the first word."""
    places: list[tuple[str, str]] = field(init=False)
    layers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Raises:
        ProbeError: see `_check`, and `plan`.
        """
        object.__setattr__(self, "places", list(product(self.extent.sites, self.extent.tokens)))
        there = next(iter(self.states.values())).layer.values.tolist()
        object.__setattr__(self, "layers", tuple(self.extent.layers or there))
        self._check(there)
        object.__setattr__(self, "extent", fitting(self.extent, self.width))
        _ = self.plan

    def _check(self, there: list[int]) -> None:
        """Raises:
        ProbeError: sites, tokens or layers that were not traced, or other queries in other modalities.
        """
        self.extent.check_layers(there)
        texts = None
        for name, traced in self.states.items():
            missing = [site for site in self.extent.sites if site not in traced]
            missing += [token for token in self.extent.tokens if token not in traced.token.values]
            if missing:
                raise ProbeError(f"{', '.join(missing)} of modality {name} was not traced; trace it, or leave it out")
            own = traced.text.values.tolist()
            if texts is not None and own != texts:
                raise ProbeError(
                    f"modality {name} has other queries than {next(iter(self.states))}; trace the same ones"
                )
            texts = own

    @cached_property
    def known(self) -> QueryLabels:
        return QueryLabels.of_states(next(iter(self.states.values())))

    @property
    def is_harmful(self) -> Bool[np.ndarray, " n"]:
        return self.known.harmful

    @property
    def texts(self) -> list[str]:
        return self.known.text

    @cached_property
    def groups(self) -> np.ndarray:
        return self.known.groups

    @cached_property
    def plan(self) -> FitPlan:
        """Raises:
        ProbeError: a class missing in a fold, fewer pairs than folds, categories that can't be left out.
        """
        seed = self.seed
        folds, left_out = self.extent.folds(self.known, seed)
        # No two seeds of a study share a deal.
        seeds = count(CONTROL_SEED * (1 + seed))
        deals = [shuffled_labels(self.is_harmful, self.groups, next(seeds)) for _ in range(self.extent.n_shuffles)]
        words = self.verbs or [text.lower().partition(" ")[0] for text in self.texts]
        tasks = [control_task(words, next(seeds)) for _ in range(self.extent.n_tasks)]
        tasks = [task for task in tasks if task is not None and _is_learnable(task, folds)]
        controls = {"shuffled_labels": np.stack(deals)} if deals else {}
        controls |= {"verb_labels": np.stack(tasks)} if tasks else {}
        taught = None
        if self.anchors is not None:
            taught = (self.anchors.harmful.values, QueryLabels.of_states(self.anchors).groups)
        return FitPlan(self.is_harmful, self.groups, folds, self.extent.probes, left_out, controls, taught, seed=seed)

    @cached_property
    def baselines(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Out-of-fold scores of what needs no model, over the same folds."""
        folds, labels = self.plan.folds, self.is_harmful
        lengths = np.array(self.lengths or [len(text) for text in self.texts], dtype=float)
        noise = random_features(len(labels), self.width, CONTROL_SEED + self.seed)
        probe: LinearProbe = PROBES[self.extent.probes[0]]()
        return {
            "length": length_scores(lengths, labels, folds),
            "first_last_token": out_of_fold_words(self.ends or _ends(self.texts), labels, folds),
            "bag_of_words": out_of_fold_words(self.texts, labels, folds),
            "random_features": FoldedProbe.fit(probe, noise, labels, folds, self.groups).distances(noise),
        }

    @property
    def spread(self) -> float:
        return refit_spread(len(self.plan.folds))

    @cached_property
    def silent(self) -> dict[tuple[str, str], set[str]]:
        """By place, modalities in which it says nothing at some layer.

        They have no such token, or no picture token sees the request, and the picture is the same for all.
        """
        found = {}
        for site, token in self.places:
            found[site, token] = {
                name
                for name, traced in self.states.items()
                if token.endswith("_mean")
                and any(_says_nothing(traced[site].sel(layer=layer, token=token), traced) for layer in self.layers)
            }
        return found

    @property
    def width(self) -> int:
        return next(iter(self.states.values()))[self.extent.sites[0]].sizes["d_model"]

    def plan_at(self, place: tuple[str, str]) -> FitPlan:
        """Everything at the first place, the first probe alone at others."""
        if place == self.places[0]:
            return self.plan
        return FitPlan(self.is_harmful, self.groups, self.plan.folds, self.extent.probes[:1], seed=self.seed)

    def at(self, layer: int, place: tuple[str, str]) -> dict[str, Float[np.ndarray, "n d"]]:
        """States by modality. A token that a modality has nowhere (`image_mean` of text) leaves it out.

        Raises:
            ProbeError: states that are no numbers; says of which prompts, and where.
        """
        site, token = place
        found = {}
        for name, traced in self.states.items():
            if name in self.silent[place] or (name == FILLER and place != self.places[0]):
                continue
            states = traced[site].sel(layer=layer, token=token).values
            where = f"{site}, token {token}, layer {layer}"
            _check_states(states, self.texts, f"modality {name} ({where})", _tolerance(traced))
            found[name] = states
        return found

    def anchors_at(self, layer: int, place: tuple[str, str]) -> np.ndarray | None:
        """Of the first place alone; none where their text has no such token.

        Raises:
            ProbeError: see `at`.
        """
        if self.anchors is None or place != self.places[0]:
            return None
        site, token = place
        states = self.anchors[site].sel(layer=layer, token=token).values
        if token.endswith("_mean") and np.isnan(states).all():
            return None
        texts = self.anchors.text.values.tolist()
        _check_states(states, texts, f"the anchors ({site}, token {token}, layer {layer})", _tolerance(self.anchors))
        return states


def of_store(
    folder: Path, extent: ProbeSettings, modalities: Sequence[str] = (), split: str = "", seed: int = 0
) -> ProbeData:
    """What `vlm-guard trace` has kept, without the model.

    Args:
        folder: of the store.
        extent: what is probed.
        modalities: by default all that were traced.
        split: whose queries are probed; by default all of them, where there are no splits. Anchors, if there are any,
            are what a probe is fitted on once more.
        seed: of folds and controls.

    Raises:
        StoreError: there is no store, or it is not whole.
        ProbeError: it lacks the modality, the split, the sites, tokens or layers.
    """
    states = open_store(folder)
    there, splits = (list(dict.fromkeys(states[name].values.tolist())) for name in ("modality", "split"))
    missing = [name for name in modalities if name not in there]
    if missing:
        raise ProbeError(f"{str(folder)!r} holds no {', '.join(missing)}; its modalities are {', '.join(there)}")
    if split not in splits:
        raise ProbeError(f"{str(folder)!r} has no split {split!r}; give one of {', '.join(map(repr, splits))}")
    of = lambda name, own: states.isel(prompt=((states.modality == name) & (states.split == own)).values)  # noqa: E731
    taught = of("text", "anchors") if "anchors" in splits and split != "anchors" and "text" in there else None
    chosen = {name: of(name, split) for name in modalities or there}
    return ProbeData(chosen, extent, seed, taught if taught is not None and taught.sizes["prompt"] else None)


def fitting(extent: ProbeSettings, width: int) -> ProbeSettings:
    """Without what would take hours at this width.

    Raises:
        ProbeError: nothing else was asked for.
    """
    if "lda" not in extent.probes or width <= WIDEST_LDA:
        return extent
    others = tuple(name for name in extent.probes if name != "lda")
    if not others:
        raise ProbeError(f"lda inverts {width} x {width} for each of its fits; ask for another probe")
    Console(stderr=True).print(f"lda is left out: it inverts {width} x {width} for each of its fits", soft_wrap=True)
    return replace(extent, probes=others)


def _check_states(states: np.ndarray, texts: Sequence[str], where: str, tolerance: float) -> None:
    """Raises:
    ProbeError: states that are no numbers, or the same for all; says of which prompts, and where.
    """
    broken = ~np.isfinite(states).all(axis=1)
    if broken.any():
        which = ", ".join(repr(texts[i]) for i in np.flatnonzero(broken)[:NAMED])
        raise ProbeError(
            f"{broken.sum()} of {len(states)} states of {where} are not finite: of the prompts {which}; trace them "
            "again, in float32 perhaps"
        )
    if _is_constant(states, tolerance):
        raise ProbeError(
            f"states of {where} are the same for all {len(states)} prompts, and there is nothing to fit; leave it out "
            "(resid_pre of layer 0 is the last token's embedding, which all prompts share)"
        )


def _says_nothing(states: xr.DataArray, traced: xr.Dataset) -> bool:
    return bool(np.isnan(states.values).all()) or _is_constant(states.values, _tolerance(traced))


def _tolerance(traced: xr.Dataset) -> float:
    """What batches round apart, relative to the largest state."""
    return ROUNDING if traced.attrs.get("dtype", "float32") == "float32" else HALF_ROUNDING


def _is_constant(states: Float[np.ndarray, "n d"], tolerance: float) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(np.ptp(states, axis=0).max() <= tolerance * np.abs(states).max())


def _is_learnable(task: Bool[np.ndarray, " n"], folds: Sequence) -> bool:
    return all(min(task[train].sum(), (~task[train]).sum()) > 1 for train, _ in folds)


def _ends(texts: Sequence[str]) -> list[str]:
    """Named apart: the same token may stand first here and last there."""
    words = ([word.lower() for word in text.split()] or [""] for text in texts)
    return [f"first={some[0]} last={some[-1]}" for some in words]


def named_layers(layers: Sequence[int]) -> str:
    """As `layers 0-3, 7`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    names = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {names}"
