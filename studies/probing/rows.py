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
from itertools import chain, product
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from joblib import Parallel, delayed

from probes import (
    FitPlan,
    accuracy,
    auroc,
    auroc_drop,
    cosine,
    drop_p_values,
    fit_place,
    measure,
    modality_gap,
    refit_spread,
)
from probes.place import PlaceScores
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.progress import phase
from studies.experiment.config import TRAINED
from studies.probing.states import FILLER, ProbeData, ProbeError, named_layers

FITS_OF_A_FOLD = 36
"""Seven penalties on five inner folds, and the chosen one."""
FEW_FITS = 20_000
"""Below that a pool of processes takes longer to start than they save."""
FORMAT = 2
"""Of kept scores: another where fits change."""


def probe_rows(probed: ProbeData, folder: Path, about: Mapping, title: str = "probes") -> list[dict]:
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


def _fitted(probed: ProbeData, folder: Path, about: Mapping, title: str) -> dict[tuple, PlaceScores]:
    """Scores by layer and place: those that are there, and the others fitted side by side."""
    wanted = list(product(probed.layers, probed.places))
    for layer, place in wanted:
        probed.at(layer, place)
        probed.anchors_at(layer, place)
    kinds = {
        is_first: Checkpoints(
            folder, {**about, "format": FORMAT, "plan": _hashed(plan), "modalities": list(probed.states)}
        )
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


def _hashed(plan: FitPlan) -> str:
    """Of everything that a fit depends on, but for the states."""
    digest = hashlib.sha256()
    for part in (plan.labels, plan.groups, *chain(*plan.folds, *plan.category_folds), *(plan.taught or ())):
        digest.update(str(np.asarray(part).tolist()).encode())
    for name, labels in plan.controls.items():
        digest.update(f"{name} {labels.tolist()}".encode())
    digest.update(str((plan.probes, plan.n_inner, plan.seed)).encode())
    return digest.hexdigest()


def _fit(
    key: tuple, plan: FitPlan, states: Mapping[str, np.ndarray], anchors: np.ndarray | None
) -> tuple[tuple, PlaceScores]:
    """In a process of its own.

    Raises:
        ProbeError: see `fit_place`; says where.
    """
    try:
        return key, fit_place(plan, states, anchors)
    except ValueError as error:
        layer, (site, token) = key
        raise ProbeError(f"{site}, token {token}, layer {layer}: {error}") from error


def _place_rows(probed: ProbeData, place: tuple[str, str], by_layer: Mapping[int, PlaceScores]) -> Iterator[dict]:
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


def _by_modality(by_layer: Mapping[int, PlaceScores], prefix: str) -> dict[str, Float[np.ndarray, "layer n"]]:
    names = [key.removeprefix(f"{prefix}/") for key in next(iter(by_layer.values())) if key.startswith(f"{prefix}/")]
    return {name: np.stack([scores[f"{prefix}/{name}"] for scores in by_layer.values()]) for name in names}


def drop_rows(
    probed: ProbeData, by_modality: Mapping[str, Float[np.ndarray, "layer n"]], spread: float = 1.0
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


def _score_rows(plan: FitPlan, scores: PlaceScores, spread: float) -> Iterator[dict]:
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


def _carried_rows(plan: FitPlan, scores: PlaceScores, spread: float) -> Iterator[dict]:
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


def _control_rows(plan: FitPlan, scores: PlaceScores) -> Iterator[dict]:
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


def _gains(probed: ProbeData, plan: FitPlan, scores: PlaceScores) -> Iterator[dict]:
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


def _baseline_rows(probed: ProbeData) -> Iterator[dict]:
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


def summary_lines(table: pd.DataFrame) -> list[str]:
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
        beaten = ", ".join(missed.pop((), []))
        words = [f"beats {beaten} at every layer"] if beaten else []
        words += [f"does not beat {', '.join(names)} at {named_layers(at)}" for at, names in missed.items()]
        reached = f"{probe} probe, AUROC up to {best.value:.2f} (layer {best.layer:.0f})"
        told.append(f"{modality}: {reached}: {'; '.join(words)}")
    return told
