"""Which requests can be detected, by what, and does a detector do what the guard does?

Every detector is fitted on each set in turn (a data set in a modality, and all of them together), with its layer chosen
and its thresholds set on validation prompts of that set alone, and is then applied to every set. So the table holds
matrices of sets: how well a detector orders requests (`auroc`, `tpr_at_fpr_0.01`, `tpr_at_fpr_0.05`), and what its
thresholds do elsewhere (`true_positive_rate`, `false_positive_rate`, with the threshold in `selection_rule`).

    hidden_detect       HiddenDetect: states read through the unembedding, over a window of layers
    mcd, kcd            RCS: distances to harmless and harmful clusters, or neighbours
    linear_probe        logistic regression
    ssd_coordinate      the coordinate on the safety direction
    refusal_score       log-odds of a refusal at the start of the answer
    text_refusal_score  the same for a text: the prompt's own, or what the model reads in the picture
    perplexity          of such a text: finds strings that nobody would write
    gate                what the guard's gate compares with its border, of such a text

Rows with a `fit_category` are fitted on one category of the run's own queries, or on all `others`, and applied to each.
The table of defences (`Detection.defences`) holds what attacks come to if a detector refuses what it detects (a bound:
nothing is changed in the model), and if it is the guard's gate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pandas as pd

from interp import Guard
from probes import auroc, true_positive_rate_at
from studies import claims, layer_sweep
from studies.bookkeeping.console import plain_console
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.bookkeeping.verdict_words import NOT_TESTABLE
from studies.defences.benchmark_sets import BenchmarkOptions
from studies.detectors.acting import GATES, REFUSES, Acting, acting_rows, answer
from studies.detectors.detection_claims import claimed, does_as_well, in_words
from studies.detectors.evidence import Evidence, pooled, read
from studies.detectors.fitted import (
    BORDER,
    FALSE_POSITIVE_RATES,
    GATE,
    RULE,
    SSD,
    FitSet,
    FittedDetector,
    Preferred,
    best_layers,
    fitted_on,
    threshold_rows,
)
from studies.detectors.sets import DetectionSet, check_sets, leaks, own_sets, sets_of_files
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.guards.configuration import GuardConfiguration

ALL = "all"
"""Name of the set of all sets that detectors can be fitted on."""
OTHERS = "others"
"""Name of all categories but the one that a detector is applied to."""
BY_CATEGORY = (SSD, "linear_probe")
"""Detectors that are also fitted on single categories."""
CATEGORY_MODALITIES = ("text", "blank", "typographic")
"""Modalities in which they are applied."""
LEAST_OF_CATEGORY = 3
"""Fewest requests of each class, in anchors and in validation, of a category that detectors are fitted on."""


@dataclass(frozen=True, eq=False)
class Detection:
    """A finished comparison of detectors."""

    table: pd.DataFrame = field(repr=False)
    defences: pd.DataFrame = field(repr=False)
    """Attack success and over-refusal with each detector, next to the guard's; empty if nothing was answered."""
    verdicts: claims.Verdicts
    """Verdicts on the claim that a detector does as well as the guard."""


def run(
    config: Config,
    experiment: Experiment | None = None,
    guard: Guard | None = None,
    files: BenchmarkOptions | None = None,
) -> Detection:
    """Fit every detector on every set, apply it to every set, and compare it with the guard.

    Args:
        config: settings of the run.
        experiment: loaded from the settings by default.
        guard: the guard to compare with; by default the one that the layer sweep chooses, which is run first.
        files: sets of the user's own, next to the run's queries.

    Raises:
        ConfigError: no set holds both classes, two sets have the same name, or the guard reads a model that is not
            loaded.
    """
    experiment = experiment or load_experiment(config)
    if guard:
        experiment.check_source(guard.source)
    sets = own_sets(experiment)
    if files:
        sets += sets_of_files(files.for_model(experiment.vlm), experiment.vlm.picture_size, config.seed)
    check_sets(sets)
    for leakage in leaks(sets):
        plain_console(stderr=True).print(f"Leakage: {leakage}", soft_wrap=True)
    configuration = GuardConfiguration("given", guard, source=guard.source) if guard else layer_sweep.choice(experiment)
    # 1. detectors, fitted on every set; layers and thresholds come from its validation prompts
    fits, validations = _fits(experiment, sets, configuration.guard)
    rows = [row for fit in fits for row in _layer_rows(fit)]
    # 2. each of them on every set
    applied = []
    with phase("apply detectors", len(sets)) as report:
        for own in sets:
            applied.append(read(experiment, own.applied.prompts, _title(own), configuration.guard))
            rows += _applied_rows(own, applied[-1], fits)
            report(1)
    # 3. directions and probes across categories
    rows += _category_rows(experiment, sets, applied)
    # 4. detectors as refusers, and as gates of the guard
    acted = _defence_rows(experiment, sets, applied, fits, configuration)
    labels = experiment.labels | {"split": config.split}
    defences = tidy(labels | row for row in acted)
    # 5. the claim, about detectors that validation prefers
    verdicts = claims.Verdicts(_verdict(defences, name, choice) for name, choice in claimed(fits, validations))
    return Detection(tidy(labels | row for row in rows), defences, verdicts)


def _verdict(defences: pd.DataFrame, name: str, choice: Preferred) -> claims.ClaimVerdict:
    row = defences.iloc[0]
    try:
        holds, ours = does_as_well(defences, choice)
    except LookupError as error:
        ours, word = f"no such measurement ({error})", NOT_TESTABLE
    else:
        word = claims.verdict_word(holds, str(row.model), str(row.dataset))
    return claims.ClaimVerdict(name, "not reported", f"{in_words(choice)}; {ours}", word)


def _title(own: DetectionSet) -> str:
    return f"{own.name}, {own.applied.setting}"


def _fits(experiment: Experiment, sets: Sequence[DetectionSet], guard: Guard) -> tuple[list[FitSet], list[Evidence]]:
    """Fit every detector on each set and on all of them; return the fits, and the validation prompts of each set."""
    sources = [own for own in sets if own.anchors]
    read_parts = [
        (
            read(experiment, own.anchors, f"{own.name}, anchors"),
            read(experiment, own.validation, f"{own.name}, validation", guard),
        )
        for own in sources
    ]
    fits, layer = [], guard.layers[0]
    with phase("fit detectors", len(sources) + (len(sources) > 1)) as report:
        for own, (anchors, validation) in zip(sources, read_parts, strict=True):
            detectors = tuple(fitted_on(anchors, validation, layer))
            fits.append(FitSet(own.applied.dataset, own.applied.modality, detectors))
            report(1)
        if len(sources) > 1:
            anchors, validation = (pooled(parts) for parts in zip(*read_parts, strict=True))
            names = {own.applied.dataset for own in sources}
            dataset = names.pop() if len(names) == 1 else ALL
            fits.append(FitSet(dataset, ALL, tuple(fitted_on(anchors, validation, layer))))
            report(1)
    return fits, [validation for _, validation in read_parts]


def _layer_rows(fit: FitSet) -> Iterator[dict]:
    """Yield the AUROC on validation at every layer that a detector was fitted at."""
    place = {"dataset": fit.dataset, "modality": fit.modality, "split": "validation"}
    for detector in fit.detectors:
        for layer, measured in detector.by_layer:
            yield place | fit.columns | dict(detector.columns) | {"layer": layer} | measured.row()


def _applied_rows(own: DetectionSet, evidence: Evidence, fits: Sequence[FitSet]) -> Iterator[dict]:
    """Yield what every detector does on one set."""
    place = {name: getattr(own.applied, name) for name in ("dataset", "setting", "modality")}
    is_ordered = set()
    for fit in fits:
        for detector in fit.detectors:
            scores = detector.score(evidence)
            columns = place | fit.columns | dict(detector.columns)
            # What is fitted on nothing orders prompts in the same way, wherever its threshold was set.
            key = None if detector.has_fit else (detector.name, detector.columns.get("reference"))
            if evidence.has_both_classes and (key is None or key not in is_ordered):
                ordered = columns if key is None else columns | {"fit_dataset": None, "fit_modality": None}
                yield from (ordered | row for row in _order_rows(evidence, scores))
            is_ordered.add(key)
            yield from (columns | row for row in threshold_rows(detector, evidence, scores))


def _order_rows(evidence: Evidence, scores: np.ndarray) -> Iterator[dict]:
    yield auroc(evidence.is_harmful, scores, evidence.groups).row()
    for share in FALSE_POSITIVE_RATES:
        yield true_positive_rate_at(evidence.is_harmful, scores, share, evidence.groups).row()


def _category_rows(experiment: Experiment, sets: Sequence[DetectionSet], applied: Sequence[Evidence]) -> Iterator[dict]:
    """Yield the matrix of categories: direction, border and layer of one, used on the others; text anchors alone."""
    source = next((own for own in sets if own.anchors and own.applied.modality == "text"), None)
    if source is None:
        return
    parts = [read(experiment, prompts, source.name) for prompts in (source.anchors, source.validation)]
    names = [name for name in dict.fromkeys(parts[0].labels.category) if all(_is_large(part, name) for part in parts)]
    if len(names) < 2:
        return
    plain = [
        (own, evidence)
        for own, evidence in zip(sets, applied, strict=True)
        if own.anchors and own.applied.dataset == source.applied.dataset and own.applied.modality in CATEGORY_MODALITIES
    ]
    columns = {"fit_dataset": source.applied.dataset, "fit_modality": source.applied.modality}
    with phase("categories", 2 * len(names)) as report:
        for name, fitted_name in product(names, (None, OTHERS)):
            is_own = fitted_name is None
            fitted = [part.rows((np.array(part.labels.category) == name) == is_own) for part in parts]
            for detector in best_layers(*fitted, BY_CATEGORY):
                fit = columns | {"fit_category": fitted_name or name} | dict(detector.columns)
                for (own, evidence), category in product(plain, names if is_own else (name,)):
                    place = {part: getattr(own.applied, part) for part in ("dataset", "setting", "modality")}
                    chosen = evidence.rows(np.array(evidence.labels.category) == category)
                    measures = _category_measures(detector, chosen)
                    yield from (place | {"category": category} | fit | row for row in measures)
            report(1)


def _is_large(evidence: Evidence, category: str) -> bool:
    """Tell whether there are enough prompts of both classes in a category to fit on, or to choose by."""
    harmful = evidence.is_harmful[np.array(evidence.labels.category) == category]
    return bool(category and min(harmful.sum(), (~harmful).sum()) >= LEAST_OF_CATEGORY)


def _category_measures(detector: FittedDetector, evidence: Evidence) -> Iterator[dict]:
    scores = detector.score(evidence)
    if evidence.has_both_classes:
        yield auroc(evidence.is_harmful, scores, evidence.groups).row()
    own_border = replace(detector, thresholds={BORDER: detector.thresholds[BORDER]})
    yield from threshold_rows(own_border, evidence, scores)


def _defence_rows(
    experiment: Experiment,
    sets: Sequence[DetectionSet],
    applied: Sequence[Evidence],
    fits: Sequence[FitSet],
    configuration: GuardConfiguration,
) -> Iterator[dict]:
    """Yield attack success and over-refusal where detectors refuse, and where they are the guard's gate.

    Detectors are those fitted on text alone, which is what the guard is fitted on, and those fitted on everything.
    """
    answered = answer(experiment, [own.applied for own in sets], configuration)
    chosen = [fit for fit in fits if fit.modality in ("text", ALL)] or list(fits)
    for own, evidence in zip(answered, applied, strict=True):
        acting = [
            Acting(detector, fit.columns, rule, use, detector.flags(evidence, rule))
            for fit in chosen
            for detector in fit.detectors
            for rule in (BORDER if detector.name == GATE else RULE,)
            for use in (REFUSES, GATES)
        ]
        yield from acting_rows(own, acting, experiment.judges)
