"""Which rule should choose the layer when there is no time for a sweep? Each rule's pick, and what it is worth.

Each sees anchors and validation alone, and picks a layer for the same guard (`substitute`, sign gate, strength 1):

    probe_auroc            where a probe within a modality tells harmful from harmless best (mean over modalities)
    separability_drop      where the probe fitted on text loses most beside and inside pictures
    sas                    AutoSteer's safety awareness score: mean pairwise cosine of the pairs' differences, anchors
    kl_and_refusal_score   Arditi et al.: the direction whose ablation lowers the refusal score of text most, if its KL
                           on harmless text is at most 0.1, adding it makes the model refuse, and it is not in the last
                           fifth of the layers (of the guard's direction, where theirs is a mean difference)
    shift_cosine           ShiftDC's cosine: where pictures push harmful requests furthest against the direction
    patching               the first layer where states of the text run, at the last token, bring back nine tenths of
                           what the best layer's do
    validation             the guard at every layer, answers judged: the rule of the sweep. The default
    middle_to_last         the guard at all layers of the second half
    fixed                  the middle layer
    random                 any layer: the mean over all of them, from the worst to the best
    best_on_test           no rule but a bound: what it would have been best to pick

`setting` tells apart `criterion` (what each rule went by, by layer, on validation), `pick` (what the guard does there,
on the reported split) and `every_layer` (the guard at each layer, on both splits).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from interp.activations import fingerprint
from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.inputs import TYPOGRAPHIC, text_prompt
from interp.patching import patch, recovered
from interp.related_methods import arditi_ablation, arditi_addition
from probes import FoldedProbe, LogisticProbe, grouped_folds
from probes.intervals import auroc_interval
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import first_judge, tidy
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load
from studies.experiment.reference_states import read_references
from studies.generation.first_token import refusal_scores
from studies.generation.reference_texts import reference_for
from studies.guards.measures import describe, harmful_among, measured
from studies.guards.runner import GuardRun, GuardRunner, RunBatch
from studies.guards.selection import judged_selection_metrics, rank
from studies.probing.rows import shift_cosines
from studies.probing.states import QueryLabels
from studies.separability import fit_direction

MOST_KL, LAST_FIFTH = 0.1, 0.2
"""Arditi et al.'s limits: KL on harmless requests, nats; and the share of layers that may not be chosen."""
NEAR_BEST = 0.9
"""Of what patching brings back."""
BOUND = "best_on_test"


def run(
    config: Config, material: Experiment | None = None, ray: str | None = None, cpus_per_worker: int = 1
) -> pd.DataFrame:
    """Criteria, picks and what they are worth.

    Args:
        ray: address of a cluster that guards are spread over.
        cpus_per_worker: of a cluster without GPUs.

    Returns:
        `metric` `criterion` for each rule and layer (the pick is the largest, but for `patching`; NaN where a layer may
        not be chosen); for each rule, and in each modality, what `studies.guards.measures.measured` tells of its pick on the
        reported split.
    """
    material = material or load(config)
    facts, sweeper = _CriterionInputs(material), GuardRunner(material, ray, cpus_per_worker)
    splits = dict.fromkeys(("validation", config.split))
    n_layers = material.vlm.n_layers
    # 1. what each rule goes by
    criteria, pieces = {}, facts.pieces
    with phase("layer selection, criteria", len(CRITERIA)) as report:
        for name, criterion in CRITERIA.items():
            if (kept := pieces.read(name)) is None:
                pieces.write(name, kept := {"by_layer": criterion(facts)})
            criteria[name] = kept["by_layer"]
            report(1, note=name)
    # 2. the guard everywhere
    guards = [Guard(facts.direction, (layer,)) for layer in range(n_layers)]
    guards.append(Guard(facts.direction, tuple(range(n_layers // 2, n_layers))))
    tables = {split: _everywhere(material, split, guards, sweeper) for split in splits}
    # 3. the picks
    criteria["validation"] = _ranks(tables["validation"], n_layers)
    rows = [row for name, values in criteria.items() for row in _criterion_rows(name, values)]
    for split, table in tables.items():
        rows += [{"setting": "every_layer", "split": split} | row for row in table]
    rows += _pick_rows(criteria, tables[config.split], n_layers, config.split)
    return tidy(material.labels | row for row in rows)


def _everywhere(material: Experiment, split: str, guards: Sequence[Guard], sweeper: GuardRunner) -> list[dict]:
    """What every guard does, in each modality."""
    modalities, n_new = material.config.sizes.swept, material.config.generation.max_new_tokens
    shown, batches = {name: material.prompts(split, name) for name in modalities}, []
    for name, prompts in shown.items():
        states = read_references(material, prompts, reference_for(name)).states
        batches.append(RunBatch(prompts, [GuardRun(guard, states) for guard in guards], n_new))
    with phase(f"layer selection, {split}", len(guards) * sum(map(len, shown.values()))) as report:
        found = sweeper.work(batches, report)
    rows = []
    for (name, guard), outcome in zip(product(modalities, guards), found, strict=True):
        about = {"category": None, "judge": None} | describe(guard, reference_for(name)) | {"modality": name}
        rows += [about | row for row in measured(material, shown[name], outcome)]
    return rows


def _of_layer(table: Sequence[dict], layer: int) -> pd.DataFrame:
    found = pd.DataFrame(table)
    return first_judge(found[(found.layer == layer) & found.last_layer.isna()])


def _ranks(table: Sequence[dict], n_layers: int) -> np.ndarray:
    """The sweep's own rule as a criterion: the best layer has 0, the next -1; NaN beyond its limits."""
    standings = [{"place": layer} | judged_selection_metrics(_of_layer(table, layer)) for layer in range(n_layers)]
    order, _ = rank(standings)
    values = np.full(n_layers, np.nan)
    values[order.place.to_numpy()] = -np.arange(len(order))
    return values


def _criterion_rows(name: str, values: np.ndarray) -> Iterator[dict]:
    about = {"setting": "criterion", "split": "validation", "selection_rule": name, "metric": "criterion"}
    for layer, value in enumerate(values):
        yield about | {"layer": layer, "value": value, "n": len(values)}


def picked(values: np.ndarray, near: float = 1.0) -> int | None:
    """The layer with the largest criterion, or the first that comes near it; None where no layer may be chosen."""
    if np.isnan(values).all():
        return None
    return int(np.flatnonzero(values >= np.nanmax(values) - (1 - near) * abs(np.nanmax(values)))[0])


def _pick_rows(criteria: dict[str, np.ndarray], table: list[dict], n_layers: int, split: str) -> Iterator[dict]:
    picks = {name: picked(values, NEAR_BEST if name == "patching" else 1.0) for name, values in criteria.items()}
    picks |= {"fixed": n_layers // 2, BOUND: picked(_ranks(table, n_layers))}
    for name, layer in picks.items():
        about = {"setting": "pick", "split": split, "selection_rule": name}
        if layer is None:
            continue
        for row in table:
            if row["layer"] == layer and "last_layer" not in row:
                yield row | about
    for row in table:
        if "last_layer" in row:
            yield row | {"setting": "pick", "split": split, "selection_rule": "middle_to_last"}
    yield from _random_rows(table, split)


def _random_rows(table: list[dict], split: str) -> Iterator[dict]:
    """The expectation over all layers; the interval is from the worst of them to the best."""
    single = pd.DataFrame([row for row in table if "last_layer" not in row])
    own = ["value", "ci_low", "ci_high", "n", "layer", "direction_layer"]
    keys = [name for name in single if name not in own]
    for key, some in single.groupby(keys, dropna=False, sort=False):
        told = {name: value for name, value in zip(keys, key, strict=True) if not pd.isna(value)}
        value = {"value": some.value.mean(), "ci_low": some.value.min(), "ci_high": some.value.max(), "n": some.n.min()}
        yield (
            told
            | value
            | {
                "setting": "pick",
                "split": split,
                "selection_rule": "random",
                "interval": f"range of {len(some)} layers",
            }
        )


@dataclass(frozen=True)
class _CriterionInputs:
    """What rules go by: anchors and validation."""

    material: Experiment

    @cached_property
    def pieces(self) -> Checkpoints:
        """Criteria that were worked out before."""
        material = self.material
        shown = [*material.prompts("anchors", "text"), *material.prompts("validation", "text")]
        for name in self.pictured:
            shown += material.prompts("validation", name)
        about = {"shown": fingerprint(material.vlm, shown), "patched": material.config.sizes.n_patched}
        about |= {"tokens": material.refusal_tokens.ids.tolist(), "seed": material.config.seed}
        return Checkpoints(Path(material.config.out) / "selection", about)

    @cached_property
    def direction(self) -> SafetyDirection:
        return fit_direction(self.material)

    @property
    def pictured(self) -> tuple[str, ...]:
        return self.material.config.sizes.swept

    @cached_property
    def states(self) -> dict[str, np.ndarray]:
        """`prompt layer d_model` of validation, by modality."""
        names = ("text", *self.pictured)
        traced = {name: self.material.activations("validation", name) for name in names}
        return {name: one.resid_post.sel(token="last").values for name, one in traced.items()}

    @cached_property
    def known(self) -> QueryLabels:
        return QueryLabels.of(self.material.queries["validation"])


def _probe_auroc(facts: _CriterionInputs) -> np.ndarray:
    is_harmful, groups = facts.known.harmful, facts.known.groups
    folds = grouped_folds(is_harmful, groups, seed=facts.material.config.seed)

    def of(states):
        fitted = FoldedProbe.fit(LogisticProbe(), states, is_harmful, folds, groups)
        return auroc_interval(is_harmful, fitted.distances(states))[0]

    return _mean_by_layer(facts, lambda name, layer: of(facts.states[name][:, layer]))


def _separability_drop(facts: _CriterionInputs) -> np.ndarray:
    anchors = facts.material.activations("anchors", "text")
    states, groups = anchors.resid_post.sel(token="last").values, QueryLabels.of_states(anchors).groups
    probes = [LogisticProbe().fit(states[:, layer], anchors.harmful.values, groups) for layer in range(states.shape[1])]

    def auroc(name: str, layer: int) -> float:
        return auroc_interval(facts.known.harmful, probes[layer].decision_function(facts.states[name][:, layer]))[0]

    return _mean_by_layer(facts, lambda name, layer: auroc("text", layer) - auroc(name, layer))


def _mean_by_layer(facts: _CriterionInputs, of: Callable[[str, int], float]) -> np.ndarray:
    layers = range(facts.material.vlm.n_layers)
    return np.array([np.mean([of(name, layer) for name in facts.pictured]) for layer in layers])


def safety_awareness(harmful: np.ndarray, harmless: np.ndarray) -> float:
    """Mean cosine between any two pairs' differences (AutoSteer, arXiv:2507.13255, as in its released code)."""
    differences = harmful.astype(float) - harmless
    units = differences / np.linalg.norm(differences, axis=1, keepdims=True)
    n = len(units)
    return float((np.square(units.sum(0)).sum() - n) / (n * (n - 1)))


def _sas(facts: _CriterionInputs) -> np.ndarray:
    """Needs pairs."""
    n_layers = facts.material.vlm.n_layers
    if not facts.material.is_paired:
        return np.full(n_layers, np.nan)
    anchors = facts.material.activations("anchors", "text")
    states, order = anchors.resid_post.sel(token="last").values, np.argsort(anchors.pair.values, kind="stable")
    is_harmful = anchors.harmful.values[order]
    harmful, harmless = states[order][is_harmful], states[order][~is_harmful]
    return np.array([safety_awareness(harmful[:, layer], harmless[:, layer]) for layer in range(n_layers)])


def _kl_and_refusal_score(facts: _CriterionInputs) -> np.ndarray:
    material, n_layers = facts.material, facts.material.vlm.n_layers
    prompts = material.prompts("validation", "text")
    first = replace(
        material, config=replace(material.config, generation=replace(material.config.generation, max_new_tokens=1))
    )
    ablated = first.asker.ride(prompts, [arditi_ablation(facts.direction, layer) for layer in range(n_layers)])
    added = first.asker.ride(prompts, [arditi_addition(facts.direction, layer) for layer in range(n_layers)])
    is_harmful = harmful_among(prompts)
    values = np.full(n_layers, np.nan)
    for layer, (without, more) in enumerate(zip(ablated, added, strict=True)):
        is_kept = without.kl[~is_harmful].mean() <= MOST_KL and more.refusal_score[~is_harmful].mean() >= 0
        # They count states before a block, we count those behind it: their layer is ours and one.
        if is_kept and layer + 1 < int((1 - LAST_FIFTH) * n_layers):
            values[layer] = -without.refusal_score[is_harmful].mean()
    return values


def _shift_cosine(facts: _CriterionInputs) -> np.ndarray:
    text, mine = facts.states["text"], facts.known.harmful

    def against(name: str, layer: int) -> float:
        basis = facts.direction.basis[layer, 0].numpy()
        return -float(np.nanmean(shift_cosines(text[mine, layer], facts.states[name][mine, layer], basis)))

    return _mean_by_layer(facts, against)


def _patching(facts: _CriterionInputs) -> np.ndarray:
    """What states of the text run bring back. The last layer's bring back all, so the first near it is picked."""
    material, n = facts.material, facts.material.config.sizes.n_patched
    score, brought = partial(refusal_scores, tokens=material.refusal_tokens.ids), []
    for name in facts.pictured:
        prompts = [p for p in material.prompts("validation", name) if p.query.harmful][:n]
        donors = [text_prompt(p.query.text) for p in prompts] if name in TYPOGRAPHIC else None
        found = patch(material.vlm, prompts, score, donors, roles=("last",))
        brought.append(recovered(found).sel(role="last").values)
    return np.mean(brought, axis=0)


CRITERIA: dict[str, Callable[[_CriterionInputs], np.ndarray]] = {
    "probe_auroc": _probe_auroc,
    "separability_drop": _separability_drop,
    "sas": _sas,
    "kl_and_refusal_score": _kl_and_refusal_score,
    "shift_cosine": _shift_cosine,
    "patching": _patching,
}


def summary_lines(table: pd.DataFrame) -> list[str]:
    """For each rule: its layer, and over all modalities on the reported split what the guard does there."""
    tried = table[table.setting == "criterion"].groupby("selection_rule", sort=False).value
    told = [f"{name}: may pick no layer here" for name, values in tried if values.isna().all()]
    table = first_judge(table[table.setting == "pick"])
    for name, rows in table.groupby("selection_rule", sort=False):
        by_metric = rows.groupby("metric").value
        layers = rows.layer.dropna().astype(int).unique() if "layer" in rows else []
        where = (
            "any layer" if name == "random" else f"layer {layers[0]}{' to last' if name == 'middle_to_last' else ''}"
        )
        told.append(
            f"{name}: {where}; harmful refused {by_metric.mean()['refusal_rate']:.2f}, harmless refused at most "
            f"{by_metric.max()['over_refusal_rate']:.2f}, KL {by_metric.mean()['kl']:.3f}"
        )
    return told
