"""Cost of an answer under a defence: seconds, forward passes, and positions that went through the model."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from interp import VLM, Prompt
from studies.defences.defence import Defence
from studies.defences.guarded import answer_alone
from studies.generation.cached_model import CachedModel
from studies.generation.generate import Generation


@dataclass
class PassCount:
    """Work done by the language model; encoding pictures is not counted."""

    passes: int = 0
    positions: int = 0


@contextmanager
def counting(vlm: VLM) -> Iterator[PassCount]:
    """Count what goes through the first decoder block."""
    count = PassCount()

    def add(module, args, kwargs) -> None:
        resid = args[0] if args else kwargs["hidden_states"]
        count.passes += 1
        count.positions += resid.shape[0] * resid.shape[1]

    handle = vlm.blocks[0].register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


def costs(vlm: VLM, defence: Defence, prompts: Sequence[Prompt], generation: Generation) -> dict[str, list[float]]:
    """Measure each prompt by itself, as a user of the deployed model would meet it.

    Nothing is cached from prompt to prompt: references are read and pictures transcribed every time. First-token
    scores are not computed. The first prompt is run once beforehand, so that one-time checks of the model don't count.

    Args:
        vlm: the model.
        defence: what answers.
        prompts: run one by one.
        generation: how answers are generated.

    Returns:
        `seconds`, `forward_passes` and `tokens`, one value a prompt each.
    """
    answer_alone(CachedModel(vlm, generation), prompts[0], defence)
    measured = {"seconds": [], "forward_passes": [], "tokens": []}
    for prompt in prompts:
        model, start = CachedModel(vlm, generation), time.perf_counter()
        with counting(vlm) as count:
            answer_alone(model, prompt, defence)
        measured["seconds"].append(time.perf_counter() - start)
        measured["forward_passes"].append(float(count.passes))
        measured["tokens"].append(float(count.positions))
    return measured
