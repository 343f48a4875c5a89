"""Cost of an answer by stage: reading the picture, the pass of the reference, the gate, the change, and the rest."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.stats import binom

from interp import Prompt
from interp.stage_times import STAGES, stage_times
from probes import Measured
from studies.defences.costs import COST
from studies.defences.defence import Defence
from studies.defences.guarded import answer_alone
from studies.defences.prompt_sets import PromptSet
from studies.generation.cached_model import CachedModel

WHOLE, ANSWER = "whole", "answer"
"""Stages (column `category`) that are not timed by themselves: all of them, and what is left without the others."""
QUANTILES = {"seconds_p50": 0.5, "seconds_p95": 0.95}
"""Metrics, and the quantile over prompts that each is."""


def stage_rows(
    model: CachedModel,
    prompt_set: PromptSet,
    defences: Sequence[Defence],
    n_prompts: int,
    advance: Callable[[int], None] = lambda n_defences: None,
) -> Iterator[dict]:
    """Yield the median and the 95th percentile of each stage's seconds, on the first prompts of a set, one by one.

    Defences that read the true request are left out, as in `studies.defences.costs`.

    Args:
        model: what answers.
        prompt_set: what is answered.
        defences: what answers it.
        n_prompts: number of prompts.
        advance: called with the number of defences finished since the last call.
    """
    place = {"dataset": prompt_set.dataset, "setting": COST, "modality": prompt_set.modality}
    for defence in defences:
        if defence.reference != "oracle":
            by_stage = seconds_by_stage(model, defence, prompt_set.prompts[:n_prompts])
            for name, seconds in by_stage.items():
                for metric, share in QUANTILES.items():
                    yield place | defence.columns | {"category": name} | _quantile(metric, seconds, share)
        advance(1)


def seconds_by_stage(model: CachedModel, defence: Defence, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
    """Measure each prompt by itself, with nothing cached from prompt to prompt; the first is run once beforehand.

    Args:
        model: what answers, and how; what it has cached is not used.
        defence: what answers.
        prompts: run one by one.

    Returns:
        Seconds by stage, one value a prompt each. `answer` is what is left of `whole`.
    """

    def fresh() -> CachedModel:
        return CachedModel(model.vlm, model.generation, llm=model.llm)

    answer_alone(fresh(), prompts[0], defence)
    by_stage: dict[str, list[float]] = {name: [] for name in (*STAGES, ANSWER, WHOLE)}
    for prompt in prompts:
        own, start = fresh(), time.perf_counter()
        with stage_times() as times:
            answer_alone(own, prompt, defence)
        whole = time.perf_counter() - start
        for name in STAGES:
            by_stage[name].append(float(times[name]))
        by_stage[ANSWER].append(whole - sum(times.values()))
        by_stage[WHOLE].append(whole)
    return by_stage


def _quantile(metric: str, values: Sequence[float], share: float) -> dict:
    """Return a quantile with the 95 % interval of its order statistics; of few prompts it ends at the extremes."""
    ordered, n = np.sort(values), len(values)
    low, high = (int(binom.ppf(tail, n, share)) for tail in (0.025, 0.975))
    interval = ordered[max(0, low - 1)], ordered[min(n - 1, high)]
    return Measured(metric, float(np.quantile(ordered, share)), *map(float, interval), n=n).row()
