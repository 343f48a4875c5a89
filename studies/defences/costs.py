"""Cost of an answer under a defence: seconds, forward passes, and positions that went through the model."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from interp import LLM, VLM, Prompt
from studies.bookkeeping.estimates import mean
from studies.defences.defence import Defence
from studies.defences.guarded import answer_alone
from studies.defences.prompt_sets import PromptSet
from studies.generation.cached_model import CachedModel

COST = "cost"
"""Setting of the rows of costs."""


@dataclass
class PassCount:
    """Work done by the language model; encoding pictures is not counted."""

    passes: int = 0
    positions: int = 0


@contextmanager
def counting(*models: VLM | LLM) -> Iterator[PassCount]:
    """Count what goes through the first decoder block of each model."""
    count = PassCount()

    def add(module, args, kwargs) -> None:
        resid = args[0] if args else kwargs["hidden_states"]
        count.passes += 1
        count.positions += resid.shape[0] * resid.shape[1]

    handles = [model.blocks[0].register_forward_pre_hook(add, with_kwargs=True) for model in models]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def cost_rows(
    model: CachedModel,
    prompt_set: PromptSet,
    defences: Sequence[Defence],
    n_prompts: int,
    advance: Callable[[int], None] = lambda n_defences: None,
) -> Iterator[dict]:
    """Yield the mean cost of an answer under each defence, on the first prompts of a set.

    Defences that read the true request are left out: nobody who deploys one has it as text.

    Args:
        model: what answers.
        prompt_set: what is answered.
        defences: what answers it.
        n_prompts: number of prompts that are run one by one.
        advance: called with the number of defences finished since the last call.
    """
    place = {"dataset": prompt_set.dataset, "setting": COST, "modality": prompt_set.modality}
    for defence in defences:
        if defence.reference != "oracle":
            by_metric = costs(model, defence, prompt_set.prompts[:n_prompts])
            yield from (place | defence.columns | mean(metric, values) for metric, values in by_metric.items())
        advance(1)


def costs(model: CachedModel, defence: Defence, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
    """Measure each prompt by itself, as a user of the deployed model would meet it.

    Nothing is cached from prompt to prompt: references are read and pictures transcribed every time. First-token
    scores are computed only where a defence decides by them. The first prompt is run once beforehand, so that one-time
    checks of the model don't count.

    Args:
        model: what answers, and how; what it has cached is not used.
        defence: what answers.
        prompts: run one by one. A defence that refuses costs what it takes to find that out, so classes count.

    Returns:
        `seconds`, `forward_passes` and `tokens`, one value a prompt each.
    """

    def fresh() -> CachedModel:
        return CachedModel(model.vlm, model.generation, llm=model.llm)

    answer_alone(fresh(), prompts[0], defence)
    models = [model.vlm, *([model.llm] if model.llm else [])]
    measured = {"seconds": [], "forward_passes": [], "tokens": []}
    for prompt in prompts:
        own, start = fresh(), time.perf_counter()
        with counting(*models) as count:
            answer_alone(own, prompt, defence)
        measured["seconds"].append(time.perf_counter() - start)
        measured["forward_passes"].append(float(count.passes))
        measured["tokens"].append(float(count.positions))
    return measured
