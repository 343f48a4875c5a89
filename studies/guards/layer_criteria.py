"""Cheap rules that choose a layer: each gives every layer a value, from anchors and validation alone.

`studies.layer_selection` says what each of them is, and compares them with the sweep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from interp import TYPOGRAPHIC, Guard, Prompt, SafetyDirection, patch, recovered, text_prompt
from interp.identity import fingerprint
from interp.related_methods import arditi_ablation, arditi_addition
from probes import FoldedProbe, LogisticProbe, auroc_interval, grouped_folds
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.progress import phase
from studies.experiment.experiment import Experiment
from studies.generation.cached_model import CachedModel, Outcome
from studies.generation.first_token import opening_score
from studies.guards.anchor_fits import AnchorFits
from studies.probing.rows import shift_cosines
from studies.probing.settings import QueryLabels

MOST_KL, LAST_FIFTH = 0.1, 0.2
"""Arditi et al.'s limits: KL on harmless requests, nats; and the share of layers that may not be chosen."""


@dataclass(frozen=True)
class CriterionInputs:
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

    @property
    def direction(self) -> SafetyDirection:
        return AnchorFits.on(self.experiment).direction()

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


def _probe_auroc(inputs: CriterionInputs) -> np.ndarray:
    is_harmful, groups = inputs.labels.harmful, inputs.labels.groups
    folds = grouped_folds(is_harmful, groups, seed=inputs.experiment.config.seed)

    def auroc(modality: str, layer: int) -> float:
        states = inputs.states[modality][:, layer]
        folded = FoldedProbe.fit(LogisticProbe(), states, is_harmful, folds, groups)
        return auroc_interval(is_harmful, folded.distances(states))[0]

    return _mean_by_layer(inputs, auroc, inputs.experiment.sizes.swept)


def _separability_drop(inputs: CriterionInputs) -> np.ndarray:
    anchors = inputs.experiment.activations("anchors", "text")
    states, groups = anchors.resid_post.sel(token="last").values, QueryLabels.of_states(anchors).groups
    probes = [LogisticProbe().fit(states[:, layer], anchors.harmful.values, groups) for layer in range(states.shape[1])]

    def auroc(modality: str, layer: int) -> float:
        distances = probes[layer].decision_function(inputs.states[modality][:, layer])
        return auroc_interval(inputs.labels.harmful, distances)[0]

    return _mean_by_layer(inputs, lambda name, layer: auroc("text", layer) - auroc(name, layer), inputs.pictured)


def _mean_by_layer(inputs: CriterionInputs, criterion: Callable, modalities: Sequence[str]) -> np.ndarray:
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


def _sas(inputs: CriterionInputs) -> np.ndarray:
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


def _kl_and_refusal_score(inputs: CriterionInputs) -> np.ndarray:
    """Compute what refusal remains without the direction; each condition is tried where the ones before hold."""
    experiment, n_layers = inputs.experiment, inputs.experiment.vlm.n_layers
    prompts = experiment.prompts("validation", "text")
    harmful, harmless = ([each for each in prompts if each.query.harmful == label] for label in (True, False))
    # The openings are the experiment's: found from answers of one token, they would be others.
    one_token = replace(experiment.config.generation, max_new_tokens=1)
    model = CachedModel(experiment.vlm, one_token, experiment.refusal_openings)

    def outcomes(kind: Callable[..., Guard], layers: Sequence[int], shown: Sequence[Prompt]) -> dict[int, Outcome]:
        guards = [kind(inputs.direction, layer) for layer in layers]
        return dict(zip(layers, model.run_guards(shown, guards) if guards else (), strict=True))

    # They number the states before a block, we number those after it: their layer is ours plus one.
    early = range(int((1 - LAST_FIFTH) * n_layers) - 1)
    inducing = [i for i, run in outcomes(arditi_addition, early, harmless).items() if run.refusal_score.mean() >= 0]
    surgical = [i for i, run in outcomes(arditi_ablation, inducing, harmless).items() if run.kl.mean() <= MOST_KL]
    left = outcomes(arditi_ablation, surgical, harmful)
    return np.array([-left[i].refusal_score.mean().item() if i in left else np.nan for i in range(n_layers)])


def _shift_cosine(inputs: CriterionInputs) -> np.ndarray:
    text, is_harmful = inputs.states["text"], inputs.labels.harmful

    def against(modality: str, layer: int) -> float:
        basis = inputs.direction.basis[layer, 0].numpy()
        shifted = inputs.states[modality][is_harmful, layer]
        return -float(np.nanmean(shift_cosines(text[is_harmful, layer], shifted, basis)))

    return _mean_by_layer(inputs, against, inputs.pictured)


def _patching(inputs: CriterionInputs) -> np.ndarray:
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


CRITERIA: dict[str, Callable[[CriterionInputs], np.ndarray]] = {
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


def criteria_by_layer(inputs: CriterionInputs) -> dict[str, np.ndarray]:
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
