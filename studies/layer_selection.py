"""Which rule should choose the layer when there is no time for a sweep? Each rule's pick, and what it is worth.

Every rule sees anchors and validation only, and picks a layer for the same guard (`substitute`, sign gate, strength 1):

    probe_auroc            where a probe within a modality separates harmful from harmless best (mean over modalities)
    separability_drop      where the probe fitted on text loses most with and inside pictures
    sas                    AutoSteer's safety awareness score: mean pairwise cosine of the pairs' differences, anchors
    kl_and_refusal_score   Arditi et al.: the direction whose ablation lowers the refusal score of text most, if its KL
                           on harmless text is at most 0.1, adding it makes the model refuse, and it is not in the last
                           fifth of the layers (of the guard's direction, where theirs is a mean difference)
    shift_cosine           ShiftDC's cosine: where pictures push harmful requests furthest against the direction
    patching               the first layer where states of the text run, at the last token, recover nine tenths of what
                           the best layer's states do
    validation             the guard at every layer, answers judged: the rule of the sweep. The default
    middle_to_last         the guard at all layers of the second half
    fixed                  the middle layer
    random                 any layer: the mean over all of them, from the worst to the best
    best_on_test           not a rule but a bound: the best pick in hindsight

The column `setting` names the part of the study: `criterion` (each rule's criterion by layer, on validation), `pick`
(the guard at the rule's layer, on the reported split) and `every_layer` (the guard at each layer, on both splits).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from figures import first_judge
from interp import TYPOGRAPHIC, Guard, SafetyDirection, patch, recovered, text_prompt
from interp.identity import fingerprint
from interp.related_methods import arditi_ablation, arditi_addition
from probes import FoldedProbe, LogisticProbe, Measured, auroc_interval, grouped_folds
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.experiment.reference_states import read_references
from studies.generation.cached_model import CachedModel
from studies.generation.first_token import opening_score
from studies.generation.reference_texts import reference_for
from studies.guards.choice_rule import judged_selection_metrics, rank
from studies.guards.configuration import guard_columns
from studies.guards.measures import harmful_mask, outcome_rows
from studies.guards.runner import GuardRun, GuardRunner, RunBatch
from studies.probing.rows import shift_cosines
from studies.probing.settings import QueryLabels
from studies.separability import fit_direction

MOST_KL, LAST_FIFTH = 0.1, 0.2
"""Arditi et al.'s limits: KL on harmless requests, nats; and the share of layers that may not be chosen."""
NEAR_BEST = 0.9
"""Share of the best layer's recovery that `patching` is content with."""
BOUND = "best_on_test"


def run(
    config: Config, experiment: Experiment | None = None, ray: str | None = None, cpus_per_worker: int = 1
) -> pd.DataFrame:
    """Compute every rule's criterion and pick, and measure the guard at every layer.

    Args:
        config: settings of the run.
        experiment: loaded from the settings by default.
        ray: address of a cluster that the guards are spread over.
        cpus_per_worker: CPUs per worker on a cluster without GPUs.

    Returns:
        Rows with the metric `criterion` for each rule and layer (the pick is the largest, except for `patching`; NaN
        where a layer may not be chosen); and for each rule and modality the measures of
        `studies.guards.measures.outcome_rows` for its pick on the reported split.
    """
    experiment = experiment or load_experiment(config)
    inputs, runner = _CriterionInputs(experiment), GuardRunner(experiment, ray, cpus_per_worker)
    n_layers = experiment.vlm.n_layers
    # 1. the criterion of each rule
    criteria = _criteria(inputs)
    # 2. the guard at each layer, and at the second half of them
    guards = [Guard(inputs.direction, (layer,)) for layer in range(n_layers)]
    guards.append(Guard(inputs.direction, tuple(range(n_layers // 2, n_layers))))
    splits = dict.fromkeys(("validation", config.split))
    by_split = {split: _guard_rows(experiment, split, guards, runner) for split in splits}
    # 3. the picks
    criteria["validation"] = _sweep_criterion(by_split["validation"], n_layers)
    rows = [row for name, values in criteria.items() for row in _criterion_rows(name, values)]
    for split, split_rows in by_split.items():
        rows += [{"setting": "every_layer", "split": split} | row for row in split_rows]
    rows += _pick_rows(criteria, by_split[config.split], n_layers, config.split)
    return tidy(experiment.labels | row for row in rows)


def _criteria(inputs: "_CriterionInputs") -> dict[str, np.ndarray]:
    """Compute each rule's criterion by layer, or read it from an earlier run."""
    criteria, checkpoints = {}, inputs.checkpoints
    with phase("layer selection, criteria", len(CRITERIA)) as report:
        for name, criterion in CRITERIA.items():
            if (arrays := checkpoints.read(name)) is None:
                has_none = name in ABOUT_PICTURES and not inputs.pictured
                values = np.full(inputs.experiment.vlm.n_layers, np.nan) if has_none else criterion(inputs)
                checkpoints.write(name, arrays := {"by_layer": values})
            criteria[name] = arrays["by_layer"]
            report(1, note=name)
    return criteria


def _guard_rows(experiment: Experiment, split: str, guards: Sequence[Guard], runner: GuardRunner) -> list[dict]:
    """Measure every guard in each modality."""
    modalities, max_new_tokens = experiment.sizes.swept, experiment.config.generation.max_new_tokens
    prompts = {modality: experiment.prompts(split, modality) for modality in modalities}
    batches = []
    for modality in modalities:
        states = read_references(experiment, prompts[modality], reference_for(modality)).states
        batches.append(RunBatch(prompts[modality], [GuardRun(guard, states) for guard in guards], max_new_tokens))
    with phase(f"layer selection, {split}", len(guards) * sum(map(len, prompts.values()))) as report:
        outcomes = runner.run(batches, report)
    rows = []
    for (modality, guard), outcome in zip(product(modalities, guards), outcomes, strict=True):
        columns = guard_columns(guard, reference_for(modality)) | {"modality": modality}
        columns = {"category": None, "judge": None} | columns
        rows += [columns | row for row in outcome_rows(experiment, prompts[modality], outcome)]
    return rows


def _sweep_criterion(rows: Sequence[dict], n_layers: int) -> np.ndarray:
    """Turn the sweep's own rule into a criterion: the best layer gets 0, the next -1; NaN beyond the limits."""
    table = pd.DataFrame(rows)
    single = first_judge(table[table.last_layer.isna()])
    candidate_metrics = [
        {"place": layer} | judged_selection_metrics(single[single.layer == layer]) for layer in range(n_layers)
    ]
    order, _ = rank(candidate_metrics)
    values = np.full(n_layers, np.nan)
    values[order.place.to_numpy()] = -np.arange(len(order))
    return values


def _criterion_rows(name: str, values: np.ndarray) -> Iterator[dict]:
    columns = {"setting": "criterion", "split": "validation", "selection_rule": name}
    for layer, value in enumerate(values):
        yield columns | {"layer": layer} | Measured("criterion", value, n=len(values)).row()


def picked(values: np.ndarray, near: float = 1.0) -> int | None:
    """Return the layer with the largest criterion, or the first that comes near it; None if no layer may be chosen."""
    if np.isnan(values).all():
        return None
    return int(np.flatnonzero(values >= np.nanmax(values) - (1 - near) * abs(np.nanmax(values)))[0])


def _pick_rows(criteria: Mapping[str, np.ndarray], rows: Sequence[dict], n_layers: int, split: str) -> Iterator[dict]:
    """Yield the rows of the guard at each rule's pick."""
    picks = {name: picked(values, NEAR_BEST if name == "patching" else 1.0) for name, values in criteria.items()}
    picks |= {"fixed": n_layers // 2, BOUND: picked(_sweep_criterion(rows, n_layers))}
    single = [row for row in rows if "last_layer" not in row]
    for name, layer in picks.items():
        labels = {"setting": "pick", "split": split, "selection_rule": name}
        yield from (row | labels for row in single if row["layer"] == layer)
    for row in rows:
        if "last_layer" in row:
            yield row | {"setting": "pick", "split": split, "selection_rule": "middle_to_last"}
    yield from _random_rows(single, split)


def _random_rows(single: Sequence[dict], split: str) -> Iterator[dict]:
    """Yield the expectation over all layers; the interval reaches from the worst of them to the best."""
    table = pd.DataFrame(single)
    varying = ["value", "ci_low", "ci_high", "n", "layer", "direction_layer"]
    keys = [name for name in table if name not in varying]
    labels = {"setting": "pick", "split": split, "selection_rule": "random"}
    for key, rows in table.groupby(keys, dropna=False, sort=False):
        columns = {name: value for name, value in zip(keys, key, strict=True) if not pd.isna(value)}
        values = rows.value
        summary = {"value": values.mean(), "ci_low": values.min(), "ci_high": values.max(), "n": rows.n.min()}
        yield columns | summary | labels | {"interval": f"range of {len(rows)} layers"}


@dataclass(frozen=True)
class _CriterionInputs:
    """Everything that criteria are computed from: anchors and validation."""

    experiment: Experiment

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Criteria of earlier runs."""
        experiment = self.experiment
        prompts = [*experiment.prompts("anchors", "text"), *experiment.prompts("validation", "text")]
        for modality in self.pictured:
            prompts += experiment.prompts("validation", modality)
        depends_on = {
            "shown": fingerprint(experiment.vlm, prompts),
            "patched": experiment.sizes.n_patched,
            "openings": experiment.refusal_openings.ids,
            "seed": experiment.config.seed,
        }
        return Checkpoints(Path(experiment.config.out) / "selection", depends_on)

    @cached_property
    def direction(self) -> SafetyDirection:
        return fit_direction(self.experiment)

    @property
    def pictured(self) -> tuple[str, ...]:
        """Modalities with a picture."""
        return tuple(name for name in self.experiment.sizes.swept if name != "text")

    @cached_property
    def states(self) -> dict[str, np.ndarray]:
        """Last-token states of validation, `prompt layer d_model`, by modality."""
        traced = {name: self.experiment.activations("validation", name) for name in ("text", *self.pictured)}
        return {name: states.resid_post.sel(token="last").values for name, states in traced.items()}

    @cached_property
    def labels(self) -> QueryLabels:
        """Labels of the validation queries."""
        return QueryLabels.of(self.experiment.queries["validation"])


def _probe_auroc(inputs: _CriterionInputs) -> np.ndarray:
    is_harmful, groups = inputs.labels.harmful, inputs.labels.groups
    folds = grouped_folds(is_harmful, groups, seed=inputs.experiment.config.seed)

    def auroc(modality: str, layer: int) -> float:
        states = inputs.states[modality][:, layer]
        folded = FoldedProbe.fit(LogisticProbe(), states, is_harmful, folds, groups)
        return auroc_interval(is_harmful, folded.distances(states))[0]

    return _mean_by_layer(inputs, auroc, inputs.experiment.sizes.swept)


def _separability_drop(inputs: _CriterionInputs) -> np.ndarray:
    anchors = inputs.experiment.activations("anchors", "text")
    states, groups = anchors.resid_post.sel(token="last").values, QueryLabels.of_states(anchors).groups
    probes = [LogisticProbe().fit(states[:, layer], anchors.harmful.values, groups) for layer in range(states.shape[1])]

    def auroc(modality: str, layer: int) -> float:
        distances = probes[layer].decision_function(inputs.states[modality][:, layer])
        return auroc_interval(inputs.labels.harmful, distances)[0]

    return _mean_by_layer(inputs, lambda name, layer: auroc("text", layer) - auroc(name, layer), inputs.pictured)


def _mean_by_layer(inputs: _CriterionInputs, criterion: Callable, modalities: Sequence[str]) -> np.ndarray:
    layers = range(inputs.experiment.vlm.n_layers)
    return np.array([np.mean([criterion(modality, layer) for modality in modalities]) for layer in layers])


def safety_awareness(harmful: np.ndarray, harmless: np.ndarray) -> float:
    """Compute the mean cosine between any two pairs' differences.

    AutoSteer (arXiv:2507.13255), as in its released code.
    """
    differences = harmful.astype(float) - harmless
    units = differences / np.linalg.norm(differences, axis=1, keepdims=True)
    n = len(units)
    # The squared norm of the sum holds every cosine twice, and each unit vector's own 1.
    return float((np.square(units.sum(0)).sum() - n) / (n * (n - 1)))


def _sas(inputs: _CriterionInputs) -> np.ndarray:
    """Compute the safety awareness score; NaN if the anchors are not paired."""
    n_layers = inputs.experiment.vlm.n_layers
    if not inputs.experiment.is_paired:
        return np.full(n_layers, np.nan)
    anchors = inputs.experiment.activations("anchors", "text")
    # Sorted by pair, harmful and harmless partners have the same index within their class.
    states, order = anchors.resid_post.sel(token="last").values, np.argsort(anchors.pair.values, kind="stable")
    is_harmful = anchors.harmful.values[order]
    harmful, harmless = states[order][is_harmful], states[order][~is_harmful]
    return np.array([safety_awareness(harmful[:, layer], harmless[:, layer]) for layer in range(n_layers)])


def _kl_and_refusal_score(inputs: _CriterionInputs) -> np.ndarray:
    experiment, n_layers = inputs.experiment, inputs.experiment.vlm.n_layers
    prompts = experiment.prompts("validation", "text")
    # The openings are the experiment's: found from answers of one token, they would be others.
    one_token = replace(experiment.config.generation, max_new_tokens=1)
    model = CachedModel(experiment.vlm, one_token, experiment.refusal_openings)
    ablated = model.run_guards(prompts, [arditi_ablation(inputs.direction, layer) for layer in range(n_layers)])
    added = model.run_guards(prompts, [arditi_addition(inputs.direction, layer) for layer in range(n_layers)])
    is_harmful = harmful_mask(prompts)
    values = np.full(n_layers, np.nan)
    for layer, (ablation, addition) in enumerate(zip(ablated, added, strict=True)):
        is_eligible = ablation.kl[~is_harmful].mean() <= MOST_KL and addition.refusal_score[~is_harmful].mean() >= 0
        # They number the states before a block, we number those after it: their layer is ours plus one.
        if is_eligible and layer + 1 < int((1 - LAST_FIFTH) * n_layers):
            values[layer] = -ablation.refusal_score[is_harmful].mean()
    return values


def _shift_cosine(inputs: _CriterionInputs) -> np.ndarray:
    text, is_harmful = inputs.states["text"], inputs.labels.harmful

    def against(modality: str, layer: int) -> float:
        basis = inputs.direction.basis[layer, 0].numpy()
        shifted = inputs.states[modality][is_harmful, layer]
        return -float(np.nanmean(shift_cosines(text[is_harmful, layer], shifted, basis)))

    return _mean_by_layer(inputs, against, inputs.pictured)


def _patching(inputs: _CriterionInputs) -> np.ndarray:
    """Compute what patched states of the text run recover.

    The last layer's states recover everything, so the first layer near the best is picked.
    """
    experiment, n = inputs.experiment, inputs.experiment.sizes.n_patched
    score, by_modality = opening_score(experiment.refusal_openings), []
    for modality in inputs.pictured:
        prompts = [prompt for prompt in experiment.prompts("validation", modality) if prompt.query.harmful][:n]
        donors = [text_prompt(prompt.query.text) for prompt in prompts] if modality in TYPOGRAPHIC else None
        patched = patch(experiment.vlm, prompts, score, donors, roles=("last",))
        by_modality.append(recovered(patched).sel(role="last").values)
    return np.mean(by_modality, axis=0)


CRITERIA: dict[str, Callable[[_CriterionInputs], np.ndarray]] = {
    "probe_auroc": _probe_auroc,
    "separability_drop": _separability_drop,
    "sas": _sas,
    "kl_and_refusal_score": _kl_and_refusal_score,
    "shift_cosine": _shift_cosine,
    "patching": _patching,
}
"""Criteria by rule, each a value per layer."""
ABOUT_PICTURES = ("separability_drop", "shift_cosine", "patching")
"""Rules that compare prompts with a picture with their text; of a text-only model they choose no layer."""


def summary_lines(table: pd.DataFrame) -> list[str]:
    """Say for each rule which layer it picks, and what the guard does there on the reported split."""
    criteria = table[table.setting == "criterion"].groupby("selection_rule", sort=False).value
    lines = [f"{name}: may pick no layer here" for name, values in criteria if values.isna().all()]
    picks = first_judge(table[table.setting == "pick"])
    for name, rows in picks.groupby("selection_rule", sort=False):
        by_metric = rows.groupby("metric").value
        layers = rows.layer.dropna().astype(int).unique() if "layer" in rows else []
        where = (
            "any layer" if name == "random" else f"layer {layers[0]}{' to last' if name == 'middle_to_last' else ''}"
        )
        lines.append(
            f"{name}: {where}; harmful refused {by_metric.mean()['refusal_rate']:.2f}, harmless refused at most "
            f"{by_metric.max()['over_refusal_rate']:.2f}, KL {by_metric.mean()['kl']:.3f}"
        )
    return lines
