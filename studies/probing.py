"""Probes at every place of the network: traced states of the same queries in several modalities -> tidy rows.

Told apart by columns:

    setting       `folds`: fitted and tested within the split, folds by pair.  `category`: a category left out.
                  `anchors`: fitted on the text of other queries.
    fit_modality  what the probe was fitted on; where it is not `modality`, the probe was carried over, to queries that
                  it has not seen in any modality
    control       what the row is instead, or is compared with
    interval      what `ci_low` and `ci_high` cover
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, count, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from joblib import Parallel, delayed
from rich.console import Console

from interp.activations import open_store
from interp.inputs import Query
from interp.spots import TOKENS
from probes import (
    PROBES,
    Plan,
    accuracy,
    as_groups,
    auroc,
    auroc_drop,
    category_folds,
    control_task,
    cosine,
    drop_p_values,
    fit_cell,
    grouped_folds,
    length_scores,
    measure,
    modality_gap,
    out_of_fold_words,
    random_features,
    refit_spread,
    shuffled_labels,
)
from probes.cells import Scores
from probes.folded import FoldedProbe
from probes.folds import Fold
from probes.linear import LinearProbe
from studies.material import TRAINED, WIDEST_LDA
from studies.pieces import Pieces
from studies.progress import phase

SITES = ("resid_post", "resid_pre", "attn_out", "mlp_out")
"""That probes can be fitted at: those of the decoder blocks."""
FILLER = "filler_tokens"
"""Text behind as many filler tokens as a picture takes: a control of text, traced as if it were a modality."""
CONTROL_SEED = 1000
"""Labels of controls are dealt with seeds from here on, apart from those of folds and splits."""
FITS_OF_A_FOLD = 36
"""Seven penalties on five inner folds, and the chosen one."""
FEW_FITS = 20_000
"""Below that a pool of processes takes longer to start than they save."""
ROUNDING, HALF_ROUNDING = 1e-5, 2e-2
"""Of states that should be alike, relative to the largest: in float32, and in half precision."""
FORMAT = 2
"""Of kept scores: another where fits change."""
NAMED = 5
"""Prompts that an error lists by name."""


class ProbeError(ValueError):
    """These states can't be probed as asked; says why."""


class Known(NamedTuple):
    """What is known of the queries."""

    harmful: Bool[np.ndarray, " n"]
    pair: list[str | None]
    category: list[str]
    text: list[str]

    @classmethod
    def of(cls, queries: Sequence[Query]) -> "Known":
        harmful = np.array([query.harmful for query in queries])
        columns = ([getattr(query, name) for query in queries] for name in ("pair", "category", "text"))
        return cls(harmful, *columns)

    @classmethod
    def of_states(cls, traced: xr.Dataset) -> "Known":
        columns = (traced[name].values.tolist() for name in ("pair", "category", "text"))
        return cls(traced.harmful.values, *columns)

    @property
    def groups(self) -> np.ndarray:
        """What must not be divided: pairs, and the same text standing there twice."""
        return as_groups(self.pair, self.text)


@dataclass(frozen=True)
class Extent:
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

    def folds(self, known: Known, seed: int) -> tuple[list[Fold], list[Fold]]:
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
            raise ProbeError(f"layers {absent} do not exist or were not traced; there are {_layers(there)}")

    def __post_init__(self) -> None:
        """Raises:
        ProbeError: something in it does not exist, or there is nothing in it.
        """
        for name, given, known in (
            ("site", self.sites, SITES),
            ("token", self.tokens, TOKENS),
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
class Probed:
    """States to be probed: the same queries, in the same order, in every modality."""

    states: Mapping[str, xr.Dataset]
    extent: Extent
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
        ProbeError: see `check`.
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
    def known(self) -> Known:
        return Known.of_states(next(iter(self.states.values())))

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
    def plan(self) -> Plan:
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
            taught = (self.anchors.harmful.values, Known.of_states(self.anchors).groups)
        return Plan(self.is_harmful, self.groups, folds, self.extent.probes, left_out, controls, taught, seed=seed)

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

    def plan_at(self, place: tuple[str, str]) -> Plan:
        """Everything at the first place, the first probe alone at others."""
        if place == self.places[0]:
            return self.plan
        return Plan(self.is_harmful, self.groups, self.plan.folds, self.extent.probes[:1], seed=self.seed)

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


def of_store(folder: Path, extent: Extent, modalities: Sequence[str] = (), split: str = "", seed: int = 0) -> Probed:
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
    return Probed(chosen, extent, seed, taught if taught is not None and taught.sizes["prompt"] else None)


def fitting(extent: Extent, width: int) -> Extent:
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


def run(probed: Probed, folder: Path, about: Mapping, title: str = "probes") -> list[dict]:
    """Every row.

    Args:
        probed: the states.
        folder: for finished pieces; a run that was stopped goes on.
        about: what the states are, so that pieces of others are not taken for theirs.

    Raises:
        ProbeError: states that are no numbers, or constant; found out before anything is fitted.
    """
    scores = _fitted(probed, folder, about, title)
    rows, rank = list(_baseline_rows(probed)), {name: i for i, name in enumerate(probed.states)}
    # In the order of the modalities, whether they were just fitted or read.
    in_order = lambda key: [(rank.get(part, -1), part) for part in key.split("/")]  # noqa: E731
    scores = {key: {name: found[name] for name in sorted(found, key=in_order)} for key, found in scores.items()}
    for place in probed.places:
        told = {"site": place[0], "token": place[1]}
        rows += [
            told | row for row in _place_rows(probed, place, {layer: scores[layer, place] for layer in probed.layers})
        ]
    return rows


def _fitted(probed: Probed, folder: Path, about: Mapping, title: str) -> dict[tuple, Scores]:
    """Scores by layer and place: those that are there, and the others fitted side by side."""
    wanted = list(product(probed.layers, probed.places))
    for layer, place in wanted:
        probed.at(layer, place)
        probed.anchors_at(layer, place)
    kinds = {
        is_first: Pieces(folder, {**about, "format": FORMAT, "plan": _hashed(plan), "modalities": list(probed.states)})
        for is_first, plan in ((True, probed.plan), (False, probed.plan_at(("", ""))))
    }
    pieces = lambda place: kinds[place == probed.places[0]]  # noqa: E731
    name = lambda layer, place: f"{place[0]}.{place[1]}.{layer}"  # noqa: E731
    found = {key: there for key in wanted if (there := pieces(key[1]).read(name(*key))) is not None}
    missing = [key for key in wanted if key not in found]
    n_fits = len(missing) * len(probed.states) * len(probed.plan.folds) * FITS_OF_A_FOLD
    n_fits *= len(probed.extent.probes) + probed.extent.n_shuffles + probed.extent.n_tasks
    jobs = (delayed(_fit)(key, probed.plan_at(key[1]), probed.at(*key), probed.anchors_at(*key)) for key in missing)
    with phase(title, len(wanted)) as report:
        report(len(found))
        run_all = Parallel(n_jobs=1 if n_fits < FEW_FITS else -1, return_as="generator_unordered")
        for key, scores in run_all(jobs):
            pieces(key[1]).write(name(*key), scores)
            found[key] = scores
            report(1)
    return found


def _hashed(plan: Plan) -> str:
    """Of everything that a fit depends on, but for the states."""
    digest = hashlib.sha256()
    for part in (plan.labels, plan.groups, *chain(*plan.folds, *plan.category_folds), *(plan.taught or ())):
        digest.update(str(np.asarray(part).tolist()).encode())
    for name, labels in plan.controls.items():
        digest.update(f"{name} {labels.tolist()}".encode())
    digest.update(str((plan.probes, plan.n_inner, plan.seed)).encode())
    return digest.hexdigest()


def _fit(key: tuple, plan: Plan, states: Mapping[str, np.ndarray], anchors: np.ndarray | None) -> tuple[tuple, Scores]:
    """In a process of its own.

    Raises:
        ProbeError: see `fit_cell`; says where.
    """
    try:
        return key, fit_cell(plan, states, anchors)
    except ValueError as error:
        layer, (site, token) = key
        raise ProbeError(f"{site}, token {token}, layer {layer}: {error}") from error


def _place_rows(probed: Probed, place: tuple[str, str], by_layer: Mapping[int, Scores]) -> Iterator[dict]:
    plan = probed.plan_at(place)
    for layer, scores in by_layer.items():
        states = probed.at(layer, place)
        rows = list(_score_rows(plan, scores, probed.spread))
        if place == probed.places[0]:
            rows += [
                *_carried_rows(plan, scores, probed.spread),
                *_control_rows(plan, scores),
                *_gains(probed, plan, scores),
            ]
            rows += _gap_rows(states, plan.groups)
        yield from ({"layer": layer} | as_control(row) for row in rows)
    first = plan.probes[0]
    for setting, prefix in (("folds", f"within/{first}"), ("anchors", "anchors")):
        found, about, spread = _by_modality(by_layer, prefix), {"probe": first, "setting": setting}, probed.spread
        if setting == "anchors":
            about["fit_modality"], spread = "text", 1.0
        yield from (about | row for row in drop_rows(probed, found, spread))


def _by_modality(by_layer: Mapping[int, Scores], prefix: str) -> dict[str, Float[np.ndarray, "layer n"]]:
    names = [key.removeprefix(f"{prefix}/") for key in next(iter(by_layer.values())) if key.startswith(f"{prefix}/")]
    return {name: np.stack([scores[f"{prefix}/{name}"] for scores in by_layer.values()]) for name in names}


def drop_rows(
    probed: Probed, by_modality: Mapping[str, Float[np.ndarray, "layer n"]], spread: float = 1.0
) -> Iterator[dict]:
    """`auroc_drop`, text less each other modality, and its p-value over all layers; nothing where there is no text."""
    if "text" not in by_modality:
        return
    labels, groups, n_swaps, text = probed.is_harmful, probed.groups, probed.extent.n_swaps, by_modality["text"]
    interval = f"none: {n_swaps} swaps within pairs, largest drop over layers"
    for name, other in by_modality.items():
        if name == "text":
            continue
        p_values = drop_p_values(labels, text, other, groups, n_swaps, spread=spread)
        for i, layer in enumerate(probed.layers):
            about = as_control({"modality": name, "layer": layer})
            yield about | auroc_drop(labels, text[i], other[i], groups, spread=spread).row()
            yield about | {"metric": "auroc_drop_p", "value": p_values[i], "interval": interval, "n": len(labels)}


def as_control(row: dict) -> dict:
    """The filler tokens are no modality of their own, but a control of text."""
    if row.get("modality") != FILLER:
        return row
    own = {"fit_modality": "text"} if row.get("fit_modality") == FILLER else {}
    return row | {"modality": "text", "control": FILLER} | own


def _score_rows(plan: Plan, scores: Scores, spread: float) -> Iterator[dict]:
    """Probes in the modality that they were fitted in, and those fitted on the anchors."""
    labels, groups, first = plan.labels, plan.groups, plan.probes[0]
    for key, values in scores.items():
        match key.split("/"):
            case ["within", probe, modality]:
                about = {"probe": probe, "setting": "folds", "modality": modality, "fit_modality": modality}
                log_odds = scores.get(f"log_odds/{probe}/{modality}")
                yield from (about | one.row() for one in measure(labels, values, groups, log_odds, spread))
            case ["category", modality]:
                about = {"probe": first, "setting": "category", "modality": modality, "fit_modality": modality}
                yield about | auroc(labels, values, groups, refit_spread(len(plan.category_folds))).row()
            case ["anchors", modality]:
                about = {"probe": first, "setting": "anchors", "modality": modality, "fit_modality": "text"}
                log_odds = scores.get(f"log_odds/anchors/{modality}")
                yield from (about | one.row() for one in measure(labels, values, groups, log_odds))


def _carried_rows(plan: Plan, scores: Scores, spread: float) -> Iterator[dict]:
    """The first probe in other modalities than its own, and how its weights lie to each other."""
    labels, groups = plan.labels, plan.groups
    for key, values in scores.items():
        match key.split("/"):
            case ["across", fitted, modality] if FILLER not in (fitted, modality):
                about = {"probe": plan.probes[0], "setting": "folds", "modality": modality, "fit_modality": fitted}
                yield about | auroc(labels, values, groups, spread).row()
                yield about | accuracy((values > 0) == labels, groups, spread=spread).row()
            case ["halves", one, other] if FILLER not in (one, other):
                value = {"metric": "weight_cosine", "value": float(values[0]), "n": len(labels)}
                about = {"probe": "logistic", "setting": "halves", "modality": other, "fit_modality": one}
                yield about | value | {"interval": "none: mean of two halves of the pairs"}


def _control_rows(plan: Plan, scores: Scores) -> Iterator[dict]:
    """Shuffled labels, and Hewitt and Liang's selectivity: the mean over all deals, from the least to the largest."""
    for control, deals in plan.controls.items():
        for key, values in scores.items():
            name, _, modality = key.partition("/")
            if name != control or modality == FILLER:
                continue
            about = {"probe": plan.probes[0], "setting": "folds", "modality": modality, "fit_modality": modality}
            about |= {"control": control, "interval": f"range of {len(deals)} deals", "n": len(plan.labels)}
            if control == "shuffled_labels":
                found = [auroc(dealt, one, plan.groups).value for dealt, one in zip(deals, values, strict=True)]
                yield about | _spread("auroc", found)
                continue
            found = [np.mean((one > 0) == dealt) for dealt, one in zip(deals, values, strict=True)]
            yield about | _spread("accuracy", found)
            real = np.mean((scores[f"within/{plan.probes[0]}/{modality}"] > 0) == plan.labels)
            yield about | _spread("selectivity", [real - one for one in found])


def _spread(metric: str, values: Sequence[float]) -> dict:
    return {"metric": metric, "value": float(np.mean(values)), "ci_low": min(values), "ci_high": max(values)}


def _gains(probed: Probed, plan: Plan, scores: Scores) -> Iterator[dict]:
    """By how much the probe beats what needs no model, on the same queries."""
    first = plan.probes[0]
    for key, values in scores.items():
        if not key.startswith(f"within/{first}/") or key.endswith(FILLER):
            continue
        modality = key.rpartition("/")[2]
        about = {"probe": first, "setting": "folds", "modality": modality, "fit_modality": modality}
        for name, theirs in probed.baselines.items():
            # Words that balance are anti-learned out of fold: worse than chance is no baseline to beat.
            least = theirs if auroc(plan.labels, theirs, plan.groups).value >= 0.5 else np.zeros(len(theirs))
            gain = auroc_drop(plan.labels, values, least, plan.groups, "auroc_gain", probed.spread)
            yield about | {"control": name} | gain.row()


def _ends(texts: Sequence[str]) -> list[str]:
    """Named apart: the same token may stand first here and last there."""
    words = ([word.lower() for word in text.split()] or [""] for text in texts)
    return [f"first={some[0]} last={some[-1]}" for some in words]


def _baseline_rows(probed: Probed) -> Iterator[dict]:
    for name, scores in probed.baselines.items():
        about = {"probe": name, "setting": "folds", "modality": "text", "fit_modality": "text"}
        yield about | auroc(probed.is_harmful, scores, probed.groups, probed.spread).row()


def _gap_rows(states: Mapping[str, np.ndarray], groups: np.ndarray) -> Iterator[dict]:
    for name, other in states.items():
        if name != "text" and "text" in states:
            yield {"modality": name} | modality_gap(states["text"], other, groups).row()


def shift_cosines(
    text: Float[np.ndarray, "n d"], other: Float[np.ndarray, "n d"], direction: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " n"]:
    """ShiftDC's cosine (arXiv:2502.13095): of each query's modality shift with the safety direction. Negative: towards
    harmless."""
    return cosine(other - text, np.broadcast_to(direction, other.shape))


def in_words(table: pd.DataFrame) -> list[str]:
    """For each modality, in a sentence, where the probe beats what needs no model, and where it does not."""
    table = table[~table.split.isin([TRAINED, "anchors"])] if "split" in table and table.split.nunique() > 1 else table
    main = table[
        (table.setting == "folds")
        & (table.site == table.site.dropna().iloc[0])
        & (table.token == table.token.dropna().iloc[0])
    ]
    gains, told = main[main.metric == "auroc_gain"], []
    for modality, rows in gains.groupby("modality", sort=False):
        probe, missed = rows.probe.iloc[0], {}
        own = main[
            (main.probe == probe)
            & (main.metric == "auroc")
            & (main.modality == modality)
            & (main.fit_modality == modality)
        ]
        own = own[own.control.isna()]
        best = own.loc[own.value.idxmax()]
        for control, some in rows.groupby("control", sort=False):
            at = tuple(sorted(some[~(some.ci_low > 0)].layer.astype(int)))
            missed.setdefault(at, []).append(control.replace("_", " "))
        words = "; ".join(
            f"does not beat {', '.join(names)} at {_layers(at)}" if at else f"beats {', '.join(names)} at every layer"
            for at, names in missed.items()
        )
        told.append(f"{modality}: {probe} probe, AUROC up to {best.value:.2f} (layer {best.layer:.0f}): {words}")
    return told


def _layers(layers: Sequence[int]) -> str:
    """As `layers 0-3, 7`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    names = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {names}"
