"""Rows of the separability table: probes at every place of the network, for the same queries in several modalities.

Rows are distinguished by these columns:

    setting       `folds`: fitted and tested within the split, folds by pair.  `category`: one category left out.
                  `anchors`: fitted on the text of other queries.
    fit_modality  modality that the probe was fitted on; if it differs from `modality`, the probe was tested in another
                  modality, on queries that it has not seen in any
    control       what the row is a control with, or a comparison to
    interval      what `ci_low` and `ci_high` cover
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from joblib import Parallel, delayed

from probes import (
    FitPlan,
    Measured,
    PlaceScores,
    accuracy,
    auroc,
    auroc_drop,
    control_ceiling,
    cosine,
    drop_p_values,
    fit_place,
    measure,
    modality_gap,
    refit_spread,
)
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.progress import phase
from studies.probing.settings import ProbeError
from studies.probing.states import FILLER, ProbeData

FITS_PER_FOLD = 36
"""Seven penalties on five inner folds, and the chosen one."""
FEW_FITS = 20_000
"""Up to this many fits, a pool of processes takes longer to start than it saves."""
FORMAT = 2
"""Version of the saved scores, which changes with the fits."""
Place = tuple[str, str]
"""Site and token."""


def probe_rows(data: ProbeData, folder: Path, inputs: Mapping, title: str = "probes") -> list[dict]:
    """Fit all probes and return every row of the table.

    Args:
        data: the states.
        folder: where finished fits are saved; a run that was stopped resumes from them.
        inputs: what identifies the states, so that fits on other states are not mistaken for fits on these.
        title: name of the work in the progress display.

    Returns:
        Rows with the columns of `studies.bookkeeping.tables.COLUMNS` that apply.

    Raises:
        ProbeError: states that are not finite, or constant at every layer; raised before anything is fitted.
    """
    scores = _all_scores(data, folder, inputs, title)
    rows = list(_baseline_rows(data))
    for place in data.places:
        labels = {"site": place[0], "token": place[1]}
        by_layer = {layer: _by_rank_of_modality(data, scores[layer, place]) for layer in data.layers}
        rows += [labels | row for row in _place_rows(data, place, by_layer)]
    return rows


def _by_rank_of_modality(data: ProbeData, scores: PlaceScores) -> PlaceScores:
    """Sort scores by modality, because saved ones come back in the order of the alphabet."""
    rank = {name: i for i, name in enumerate(data.states)}

    def sort_key(name: str) -> list[tuple[int, str]]:
        return [(rank.get(part, -1), part) for part in name.split("/")]

    return {name: scores[name] for name in sorted(scores, key=sort_key)}


def _all_scores(data: ProbeData, folder: Path, inputs: Mapping, title: str) -> dict[tuple, PlaceScores]:
    """Return the scores by layer and place: saved ones are read, the others are fitted in parallel."""
    keys = list(product(data.layers, data.places))
    for layer, place in keys:
        data.states_at(layer, place)
        data.anchors_at(layer, place)
    # Everything is fitted at the first place, the first probe alone at the others: two computations.
    saved = {
        place: Checkpoints(
            folder,
            {**inputs, "format": FORMAT, "plan": _plan_hash(data.plan_at(place)), "modalities": list(data.states)},
        )
        for place in data.places
    }
    scores = {key: read for key in keys if (read := saved[key[1]].read(_file_name(*key))) is not None}
    missing = [key for key in keys if key not in scores]
    n_fits = len(missing) * len(data.states) * len(data.plan.folds) * FITS_PER_FOLD
    n_fits *= len(data.settings.probes) + data.settings.n_shuffles + data.settings.n_tasks
    jobs = (delayed(_fit)(key, data.plan_at(key[1]), data.states_at(*key), data.anchors_at(*key)) for key in missing)
    with phase(title, len(keys)) as report:
        report(len(scores))
        run_all = Parallel(n_jobs=1 if n_fits < FEW_FITS else -1, return_as="generator_unordered")
        for key, fitted in run_all(jobs):
            saved[key[1]].write(_file_name(*key), fitted)
            scores[key] = fitted
            report(1)
    return scores


def _file_name(layer: int, place: Place) -> str:
    return f"{place[0]}.{place[1]}.{layer}"


def _plan_hash(plan: FitPlan) -> str:
    """Hash everything that a fit depends on except the states."""
    digest = hashlib.sha256()
    for part in (plan.labels, plan.groups, *chain(*plan.folds, *plan.category_folds), *(plan.anchor_labels or ())):
        digest.update(str(np.asarray(part).tolist()).encode())
    for name, labels in plan.controls.items():
        digest.update(f"{name} {labels.tolist()}".encode())
    digest.update(str((plan.probes, plan.n_inner, plan.seed)).encode())
    return digest.hexdigest()


def _fit(
    key: tuple, plan: FitPlan, states: Mapping[str, np.ndarray], anchors: np.ndarray | None
) -> tuple[tuple, PlaceScores]:
    """Fit one place, usually in a process of its own.

    Raises:
        ProbeError: see `fit_place`; the message names the place.
    """
    try:
        return key, fit_place(plan, states, anchors)
    except ValueError as error:
        layer, (site, token) = key
        raise ProbeError(f"{site}, token {token}, layer {layer}: {error}") from error


def _place_rows(data: ProbeData, place: Place, by_layer: Mapping[int, PlaceScores]) -> Iterator[dict]:
    plan = data.plan_at(place)
    for layer, scores in by_layer.items():
        states = data.states_at(layer, place)
        rows = list(_score_rows(plan, scores, data.spread))
        if place == data.places[0]:
            rows += [
                *_transfer_rows(plan, scores, data.spread),
                *_control_rows(data, plan, scores),
                *_gain_rows(data, plan, scores),
            ]
            rows += _gap_rows(states, plan.groups)
        rows += _constant_rows(plan, data.constant_at(layer, place))
        yield from ({"layer": layer} | as_control(row) for row in rows)
    probe = plan.probes[0]
    for setting, prefix in (("folds", f"within/{probe}"), ("anchors", "anchors")):
        by_modality = _by_modality(by_layer, prefix)
        labels, spread = {"probe": probe, "setting": setting}, data.spread
        if setting == "anchors":
            labels["fit_modality"], spread = "text", 1.0
        yield from (labels | row for row in drop_rows(data, by_modality, spread))


def _constant_rows(plan: FitPlan, modalities: Iterable[str]) -> Iterator[dict]:
    """Yield a row without a value for each modality that nothing could be fitted on."""
    interval = "not measurable: almost all requests have the same state here, so nothing was fitted"
    for name in modalities:
        yield (
            _fold_labels(plan.probes[0], name) | Measured("auroc", np.nan, n=len(plan.labels), interval=interval).row()
        )


def _by_modality(by_layer: Mapping[int, PlaceScores], prefix: str) -> dict[str, Float[np.ndarray, "layer n"]]:
    start = f"{prefix}/"
    return stacked(
        [
            {key.removeprefix(start): values for key, values in scores.items() if key.startswith(start)}
            for scores in by_layer.values()
        ]
    )


def drop_rows(
    data: ProbeData, by_modality: Mapping[str, Float[np.ndarray, "layer n"]], spread: float = 1.0
) -> Iterator[dict]:
    """Yield `auroc_drop`, the AUROC of text minus that of each other modality, and its p-value over all layers.

    Nothing is yielded without text.
    """
    if "text" not in by_modality:
        return
    is_harmful, groups, n_swaps, text = data.is_harmful, data.groups, data.settings.n_swaps, by_modality["text"]
    interval = f"none: {n_swaps} swaps within pairs, largest drop over layers"
    for name, other in by_modality.items():
        layers = both_exist(text, other)
        if name == "text" or not len(layers):
            continue
        p_values = drop_p_values(is_harmful, text[layers], other[layers], groups, n_swaps, spread=spread)
        for i, corrected in zip(layers, p_values, strict=True):
            labels = as_control({"modality": name, "layer": data.layers[i]})
            p_value = Measured("auroc_drop_p", corrected, n=len(is_harmful), interval=interval)
            yield labels | auroc_drop(is_harmful, text[i], other[i], groups, spread=spread).row()
            yield labels | p_value.row()


def stacked(by_layer: Sequence[Mapping[str, Float[np.ndarray, " n"]]]) -> dict[str, Float[np.ndarray, "layer n"]]:
    """Stack scores by modality; they are NaN at layers where nothing could be fitted on it."""
    length = next((len(values) for scores in by_layer for values in scores.values()), 0)
    names = dict.fromkeys(name for scores in by_layer for name in scores)
    missing = np.full(length, np.nan)
    return {name: np.stack([scores.get(name, missing) for scores in by_layer]) for name in names}


def both_exist(text: Float[np.ndarray, "layer n"], other: Float[np.ndarray, "layer n"]) -> Int[np.ndarray, " existing"]:
    """Return the indices of the layers at which there are scores of both."""
    return np.flatnonzero(~np.isnan(text).any(axis=1) & ~np.isnan(other).any(axis=1))


def as_control(row: dict) -> dict:
    """Label rows of filler tokens as a control of text, since fillers are traced as if they were a modality.

    Returns:
        The row, with other columns if it is one of filler tokens.
    """
    if row.get("modality") != FILLER:
        return row
    fitted = {"fit_modality": "text"} if row.get("fit_modality") == FILLER else {}
    return row | {"modality": "text", "control": FILLER} | fitted


def _score_rows(plan: FitPlan, scores: PlaceScores, spread: float) -> Iterator[dict]:
    """Yield rows of probes within the modality that they were fitted in, and of those fitted on the anchors."""
    is_harmful, groups, first = plan.labels, plan.groups, plan.probes[0]
    for key, values in scores.items():
        match key.split("/"):
            case ["within", probe, modality]:
                labels = _fold_labels(probe, modality)
                log_odds = scores.get(f"log_odds/{probe}/{modality}")
                measures = measure(is_harmful, values, groups, log_odds, spread)
                yield from (labels | measured.row() for measured in measures)
            case ["category", modality]:
                labels = _fold_labels(first, modality) | {"setting": "category"}
                yield labels | auroc(is_harmful, values, groups, refit_spread(len(plan.category_folds))).row()
            case ["anchors", modality]:
                labels = {"probe": first, "setting": "anchors", "modality": modality, "fit_modality": "text"}
                log_odds = scores.get(f"log_odds/anchors/{modality}")
                measures = measure(is_harmful, values, groups, log_odds)
                yield from (labels | measured.row() for measured in measures)


def _fold_labels(probe: str, modality: str) -> dict:
    return {"probe": probe, "setting": "folds", "modality": modality, "fit_modality": modality}


def _transfer_rows(plan: FitPlan, scores: PlaceScores, spread: float) -> Iterator[dict]:
    """Yield rows of the first probe in other modalities than its own, and cosines between probe weights."""
    is_harmful, groups = plan.labels, plan.groups
    for key, values in scores.items():
        match key.split("/"):
            case ["across", fitted, modality] if FILLER not in (fitted, modality):
                labels = _fold_labels(plan.probes[0], modality) | {"fit_modality": fitted}
                yield labels | auroc(is_harmful, values, groups, spread).row()
                yield labels | accuracy((values > 0) == is_harmful, groups, spread=spread).row()
            case ["halves", fitted, modality] if FILLER not in (fitted, modality):
                labels = {"probe": "logistic", "setting": "halves", "modality": modality, "fit_modality": fitted}
                interval = "none: mean of two halves of the pairs"
                yield labels | Measured("weight_cosine", float(values[0]), n=len(is_harmful), interval=interval).row()


def _control_rows(data: ProbeData, plan: FitPlan, scores: PlaceScores) -> Iterator[dict]:
    """Yield rows of shuffled labels and of control tasks: means over all sets of control labels, with their range.

    Selectivity is the accuracy on the real labels minus that on a control task (Hewitt & Liang 2019). It can't be less
    than the real accuracy minus `control_ceiling`, that of a probe that remembers all it was fitted on.
    """
    probe, ceiling = plan.probes[0], control_ceiling(data.words, plan.folds)
    for control, label_sets in plan.controls.items():
        for key, values in scores.items():
            name, _, modality = key.partition("/")
            if name != control or modality == FILLER:
                continue
            labels = _fold_labels(probe, modality) | {"control": control}
            interval, n = f"range of {len(label_sets)} deals", len(plan.labels)
            pairs = list(zip(label_sets, values, strict=True))
            if control == "shuffled_labels":
                aurocs = [auroc(shuffled, distances, plan.groups).value for shuffled, distances in pairs]
                yield labels | _mean_and_range("auroc", aurocs, n, interval)
                continue
            accuracies = [np.mean((distances > 0) == task) for task, distances in pairs]
            yield labels | _mean_and_range("accuracy", accuracies, n, interval)
            real = np.mean((scores[f"within/{probe}/{modality}"] > 0) == plan.labels)
            says_ceiling = f"{interval}; remembering reaches {ceiling:.2f} of the task"
            yield labels | _mean_and_range("selectivity", [real - share for share in accuracies], n, says_ceiling)
            yield labels | Measured("control_ceiling", ceiling, n=n, interval="none: follows from the folds").row()


def _mean_and_range(metric: str, values: Sequence[float], n: int, interval: str) -> dict:
    return Measured(metric, float(np.mean(values)), min(values), max(values), n, interval).row()


def _gain_rows(data: ProbeData, plan: FitPlan, scores: PlaceScores) -> Iterator[dict]:
    """Yield how much the probe gains over each baseline that needs no model, on the same queries."""
    probe = plan.probes[0]
    for key, values in scores.items():
        if not key.startswith(f"within/{probe}/") or key.endswith(FILLER):
            continue
        labels = _fold_labels(probe, key.rpartition("/")[2])
        for name, baseline in data.baselines.items():
            # Words that are balanced over classes score below chance out of fold, which is no baseline to beat.
            is_above_chance = auroc(plan.labels, baseline, plan.groups).value >= 0.5
            reference = baseline if is_above_chance else np.zeros(len(baseline))
            gain = auroc_drop(plan.labels, values, reference, plan.groups, "auroc_gain", data.spread)
            yield labels | {"control": name} | gain.row()


def _baseline_rows(data: ProbeData) -> Iterator[dict]:
    for name, scores in data.baselines.items():
        yield _fold_labels(name, "text") | auroc(data.is_harmful, scores, data.groups, data.spread).row()


def _gap_rows(states: Mapping[str, np.ndarray], groups: np.ndarray) -> Iterator[dict]:
    for name, other in states.items():
        if name != "text" and "text" in states:
            yield {"modality": name} | modality_gap(states["text"], other, groups).row()


def shift_cosines(
    text: Float[np.ndarray, "n d"], other: Float[np.ndarray, "n d"], direction: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " n"]:
    """Return ShiftDC's cosine (arXiv:2502.13095) of each query: between its modality shift and the safety direction.

    Negative values mean a shift towards harmless.
    """
    return cosine(other - text, np.broadcast_to(direction, other.shape))
