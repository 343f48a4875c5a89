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
    validation             the guard at each of the scale's layers, answers judged: the rule of the sweep. The default
    middle_to_last         the guard at all layers of the second half
    fixed                  the middle layer
    random                 any of the scale's layers: the mean over them, from the worst to the best
    best_on_test           not a rule but a bound: the best pick in hindsight

The column `setting` names the part of the study: `criterion` (each rule's criterion by layer, on validation), `pick`
(the guard at the rule's layer, on the reported split) and `every_layer` (the guard at each of the scale's layers, on
both splits, and at the picks, on the reported one).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from figures import first_judge
from interp import Guard
from probes import Measured
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.experiment.reference_states import read_references
from studies.generation.reference_texts import reference_for
from studies.guards.choice_rule import judged_selection_metrics, rank
from studies.guards.configuration import guard_columns
from studies.guards.layer_criteria import CriterionInputs, criteria_by_layer
from studies.guards.measures import outcome_rows
from studies.guards.runner import GuardRun, GuardRunner, RunBatch
from studies.guards.sweep_grid import Grid

NEAR_BEST = 0.9
"""Share of the best layer's recovery that `patching` is content with."""
BOUND = "best_on_test"


def run(
    config: Config, experiment: Experiment | None = None, ray: str | None = None, cpus_per_worker: int = 1
) -> pd.DataFrame:
    """Compute every rule's criterion and pick, and measure the guard at the scale's layers and at the picks.

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
    inputs, runner = CriterionInputs(experiment), GuardRunner(experiment, ray, cpus_per_worker)
    n_layers = experiment.vlm.n_layers
    swept = [layer for (layer,) in Grid(layers=(experiment.sizes.layers,)).windows(n_layers)]
    # 1. the criterion of each rule
    criteria = criteria_by_layer(inputs)
    picks = {name: picked(values, NEAR_BEST if name == "patching" else 1.0) for name, values in criteria.items()}
    fixed = n_layers // 2
    # 2. the guard at single layers, and at the second half of them
    layers = {"validation": swept} | {config.split: sorted({*swept, fixed, *picks.values()} - {None})}
    by_split = {}
    for split, own_layers in layers.items():
        guards = [None, *(Guard(inputs.direction, (layer,)) for layer in own_layers)]
        guards.append(Guard(inputs.direction, tuple(range(n_layers // 2, n_layers))))
        by_split[split] = _guard_rows(experiment, split, guards, runner)
    # 3. the picks that answers decide
    criteria["validation"] = _sweep_criterion(by_split["validation"], swept, n_layers)
    picks |= {
        "validation": picked(criteria["validation"]),
        "fixed": fixed,
        BOUND: picked(_sweep_criterion(by_split[config.split], layers[config.split], n_layers)),
    }
    rows = [row for name, values in criteria.items() for row in _criterion_rows(name, values)]
    guarded = {split: [row for row in own if row["defence"] == "guard"] for split, own in by_split.items()}
    for split, split_rows in guarded.items():
        rows += [{"setting": "every_layer", "split": split} | row for row in split_rows]
    rows += _pick_rows(picks, guarded[config.split], swept, config.split)
    return tidy(experiment.labels | row for row in rows)


def _guard_rows(experiment: Experiment, split: str, guards: Sequence[Guard | None], runner: GuardRunner) -> list[dict]:
    """Measure every guard in each modality, and the unguarded model for None."""
    modalities, max_new_tokens = experiment.sizes.swept, experiment.config.generation.max_new_tokens
    prompts = {modality: experiment.prompts(split, modality) for modality in modalities}
    batches = []
    for modality in modalities:
        states = read_references(experiment, prompts[modality], reference_for(modality)).states
        runs = [GuardRun(guard, states if guard else None) for guard in guards]
        batches.append(RunBatch(prompts[modality], runs, max_new_tokens))
    with phase(f"layer selection, {split}", len(guards) * sum(map(len, prompts.values()))) as report:
        outcomes = runner.run(batches, report)
    rows = []
    for (modality, guard), outcome in zip(product(modalities, guards), outcomes, strict=True):
        columns = guard_columns(guard, reference_for(modality)) | {"modality": modality}
        columns = {"category": None, "judge": None} | columns
        rows += [columns | row for row in outcome_rows(experiment, prompts[modality], outcome)]
    return rows


def _sweep_criterion(rows: Sequence[dict], layers: Sequence[int], n_layers: int) -> np.ndarray:
    """Turn the sweep's own rule into a criterion: the best layer gets 0, the next -1; NaN beyond the limits."""
    table = pd.DataFrame(rows)
    single = first_judge(table[table.last_layer.isna()])
    unguarded = single[single.defence == "unguarded"]
    candidate_metrics = [
        {"place": layer} | judged_selection_metrics(single[single.layer == layer], unguarded) for layer in layers
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


def _pick_rows(
    picks: Mapping[str, int | None], rows: Sequence[dict], swept: Sequence[int], split: str
) -> Iterator[dict]:
    """Yield the rows of the guard at each rule's pick."""
    single = [row for row in rows if "last_layer" not in row]
    for name, layer in picks.items():
        labels = {"setting": "pick", "split": split, "selection_rule": name}
        yield from (row | labels for row in single if row["layer"] == layer)
    for row in rows:
        if "last_layer" in row:
            yield row | {"setting": "pick", "split": split, "selection_rule": "middle_to_last"}
    yield from _random_rows([row for row in single if row["layer"] in swept], split)


def _random_rows(single: Sequence[dict], split: str) -> Iterator[dict]:
    """Yield the expectation over the scale's layers; the interval reaches from the worst of them to the best."""
    table = pd.DataFrame(single)
    varying = ["value", "ci_low", "ci_high", "n", "layer", "direction_layer"]
    keys = [name for name in table if name not in varying]
    labels = {"setting": "pick", "split": split, "selection_rule": "random"}
    for key, rows in table.groupby(keys, dropna=False, sort=False):
        columns = {name: value for name, value in zip(keys, key, strict=True) if not pd.isna(value)}
        values = rows.value
        summary = {"value": values.mean(), "ci_low": values.min(), "ci_high": values.max(), "n": rows.n.min()}
        yield columns | summary | labels | {"interval": f"range of {len(rows)} layers"}


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
