"""Detectors fitted on one set: their layers chosen and their thresholds set on its validation prompts."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.integrate import trapezoid

from interp import SafetyDirection
from interp.projection import coordinates
from probes import DETECTORS, Measured, auroc, d_prime, threshold_at
from studies.bookkeeping.estimates import rate
from studies.detectors.evidence import Evidence, Key

SSD, HIDDEN_DETECT, GATE = "ssd_coordinate", "hidden_detect", "gate"
FALSE_POSITIVE_RATES = (0.01, 0.05)
"""Shares of harmless validation prompts that a threshold may let through."""
RULE = "fpr_0.05"
"""Name of the threshold at which detectors refuse, or are a gate."""
BORDER = "border"
"""Threshold that a detector brings itself: 0, half-way between the class means, or a gate's own."""
DIGITS = 6
"""Decimals of an AUROC that count when layers are compared; equal ones are compared by d'."""
Scorer = Callable[[Evidence], Float[np.ndarray, " prompt"]]


@dataclass(frozen=True)
class FittedDetector:
    """A detector with everything that was fitted or chosen for it."""

    name: str
    score: Scorer
    columns: Mapping[str, object]
    """Columns that identify it in a table."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Thresholds by rule: `fpr_0.05` is set on harmless validation prompts, `border` is its own."""
    validated: Measured | None = None
    """AUROC on validation, at the chosen layers."""
    by_layer: tuple[tuple[int, Measured], ...] = ()
    """AUROC on validation at each layer it was fitted at; empty if it has no single layer."""

    @property
    def has_fit(self) -> bool:
        """True unless the detector is fitted on nothing, and orders prompts in the same way wherever it is used."""
        return bool(self.by_layer) or "last_layer" in self.columns

    def flags(self, evidence: Evidence, rule: str) -> Bool[np.ndarray, " prompt"]:
        """Return which prompts are above a threshold."""
        return self.score(evidence) > self.thresholds[rule]


@dataclass(frozen=True, eq=False)
class FitSet:
    """A set, or all sets together, and the detectors that were fitted on it."""

    dataset: str
    modality: str
    detectors: tuple[FittedDetector, ...]

    @property
    def columns(self) -> dict:
        """The columns that say what a detector was fitted on."""
        return {"fit_dataset": self.dataset, "fit_modality": self.modality}


@dataclass(frozen=True, eq=False)
class Preferred:
    """A detector that validation prefers, and what it was fitted on."""

    fit: FitSet
    detector: FittedDetector
    value: float
    """Mean over the validation sets of detected harmful minus detected harmless prompts."""


def preferred(fits: Sequence[FitSet], validations: Sequence[Evidence], rule: str) -> Preferred:
    """Return the detector whose threshold serves best on the validation prompts of all sets, wherever it was set.

    The guard's gate is left out, since it is a part of the guard.

    Args:
        fits: sets with their detectors.
        validations: validation prompts of each set.
        rule: name of the threshold.
    """
    found = []
    for fit in fits:
        for detector in fit.detectors:
            if detector.name != GATE:
                gains = [_gain(detector.flags(own, rule), own.is_harmful) for own in validations]
                found.append(Preferred(fit, detector, float(np.mean(gains))))
    return max(found, key=lambda each: (round(each.value, DIGITS), each.detector.validated.value))


def _gain(flags: Bool[np.ndarray, " prompt"], is_harmful: Bool[np.ndarray, " prompt"]) -> float:
    return float(flags[is_harmful].mean() - flags[~is_harmful].mean())


def separation(evidence: Evidence, scores: np.ndarray) -> tuple[float, float]:
    """Return what layers are chosen by: AUROC, and d' where that is the same."""
    area = auroc(evidence.is_harmful, scores, evidence.groups).value
    distance = d_prime(evidence.is_harmful, scores, np.ones((1, len(scores))))[0]
    return round(area, DIGITS), float(np.nan_to_num(distance))


def layered_scorers(anchors: Evidence, names: Sequence[str]) -> Iterator[tuple[str, int, Scorer, float]]:
    """Fit detectors at every layer.

    Args:
        anchors: prompts of both classes.
        names: `ssd_coordinate`, or names of `probes.DETECTORS`.

    Yields:
        The name, the layer, the scorer and its border.
    """
    direction = fit_direction(anchors) if SSD in names else None
    for layer in anchors.states.layer.values.tolist():
        for name in names:
            if name == SSD:
                yield name, layer, _along(direction, layer), direction.midpoint(layer)
                continue
            fitted = DETECTORS[name](anchors.at(layer), anchors.is_harmful, anchors.groups, anchors.clusters)
            yield name, layer, _of_states(fitted, layer), 0.0


def fit_direction(anchors: Evidence) -> SafetyDirection:
    """Fit the safety direction: by the paper's estimator if the anchors are paired, else by the mean difference.

    In prompts of several modalities a query occurs several times, so its pairs are named by set.
    """
    pairs = [f"{pair} {name}" if pair else "" for pair, name in zip(anchors.labels.pair, anchors.clusters, strict=True)]
    states = anchors.states.assign_coords(pair=("prompt", np.array(pairs, dtype=object)))
    counts = Counter(zip(pairs, anchors.is_harmful.tolist(), strict=True))
    paired = all(pair and counts[pair, True] == counts[pair, False] == 1 for pair in pairs)
    return SafetyDirection.fit(states, "paired_svd" if paired else "mean_diff")


def _along(direction: SafetyDirection, layer: int) -> Scorer:
    basis = direction.basis[layer]
    return lambda evidence: coordinates(torch.from_numpy(evidence.at(layer)), basis)[:, 0].double().numpy()


def _of_states(fitted: Callable, layer: int) -> Scorer:
    return lambda evidence: fitted(evidence.at(layer))


def _of_window(first: int, last: int) -> Scorer:
    return lambda evidence: trapezoid(evidence.cosines[:, first : last + 1])


def _as_read(key: Key) -> Scorer:
    return lambda evidence: evidence.scores[key]


def best_layers(anchors: Evidence, validation: Evidence, names: Sequence[str]) -> Iterator[FittedDetector]:
    """Fit detectors at every layer, and yield each at the layer that separates the validation prompts best.

    Args:
        anchors: prompts that are fitted on.
        validation: prompts that choose.
        names: see `layered_scorers`.
    """
    tried: dict[str, list] = {name: [] for name in names}
    for name, layer, scorer, border in layered_scorers(anchors, names):
        tried[name].append((layer, scorer, border, scorer(validation)))
    for name, fits in tried.items():
        layer, scorer, border, scores = max(fits, key=lambda fit: separation(validation, fit[3]))
        by_layer = tuple((each[0], _area(validation, each[3])) for each in fits)
        columns = {"detector": name, "layer": layer, "token": "last"}
        yield _with_thresholds(
            FittedDetector(name, scorer, columns, {BORDER: border}, by_layer=by_layer), validation, scores
        )


def best_window(validation: Evidence) -> FittedDetector:
    """Return HiddenDetect over the window of layers that separates the validation prompts best."""
    n_layers = validation.cosines.shape[1]
    windows = list(combinations(range(n_layers), 2))
    scored = [(window, _of_window(*window)(validation)) for window in windows]
    (first, last), scores = max(scored, key=lambda each: separation(validation, each[1]))
    columns = {"detector": HIDDEN_DETECT, "layer": first, "last_layer": last, "token": "last"}
    return _with_thresholds(FittedDetector(HIDDEN_DETECT, _of_window(first, last), columns), validation, scores)


def unfitted(validation: Evidence, guard_layer: int) -> Iterator[FittedDetector]:
    """Yield the detectors that are fitted on nothing, with thresholds set on the validation prompts."""
    for (name, reference), scores in validation.scores.items():
        columns = {"detector": name} | ({"reference": reference} if reference else {})
        columns |= {"layer": guard_layer, "token": "last"} if name == GATE else {}
        border = {BORDER: 0.0} if name == GATE else {}
        yield _with_thresholds(FittedDetector(name, _as_read((name, reference)), columns, border), validation, scores)


def fitted_on(anchors: Evidence, validation: Evidence, guard_layer: int) -> list[FittedDetector]:
    """Return every detector, fitted on one set.

    Args:
        anchors: prompts that are fitted on.
        validation: prompts that choose layers and set thresholds.
        guard_layer: layer of the guard whose gate is among the detectors.
    """
    return [
        *best_layers(anchors, validation, (SSD, *DETECTORS)),
        best_window(validation),
        *unfitted(validation, guard_layer),
    ]


def _with_thresholds(detector: FittedDetector, validation: Evidence, scores: np.ndarray) -> FittedDetector:
    harmless = scores[~validation.is_harmful]
    set_here = {f"fpr_{share:g}": threshold_at(harmless, share) for share in FALSE_POSITIVE_RATES}
    return replace(detector, thresholds=set_here | dict(detector.thresholds), validated=_area(validation, scores))


def _area(evidence: Evidence, scores: np.ndarray) -> Measured:
    return auroc(evidence.is_harmful, scores, evidence.groups)


def threshold_rows(detector: FittedDetector, evidence: Evidence, scores: np.ndarray) -> Iterator[dict]:
    """Yield what is above each of a detector's thresholds, of each class that there is.

    Args:
        detector: its thresholds were set elsewhere.
        evidence: the prompts.
        scores: the detector's scores of them.
    """
    for rule, threshold in detector.thresholds.items():
        for metric, label in (("true_positive_rate", True), ("false_positive_rate", False)):
            own = scores[evidence.is_harmful == label]
            if len(own):
                yield rate(metric, own > threshold) | {"selection_rule": rule}
