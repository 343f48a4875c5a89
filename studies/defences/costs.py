"""What an answer costs under a defence: seconds, forward passes, and positions that went through the model."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from interp.inputs import Prompt
from interp.vlm import VLM
from studies.defences.defence import Defence
from studies.defences.guarded import answer_alone
from studies.generation.cached_model import CachedModel
from studies.generation.generate import Generation


@dataclass
class Counted:
    """Of the language model: pictures are encoded beside it."""

    passes: int = 0
    positions: int = 0


@contextmanager
def counting(vlm: VLM) -> Iterator[Counted]:
    """Counts what goes through the first decoder block."""
    counted = Counted()

    def look(module, args, kwargs) -> None:
        resid = args[0] if args else kwargs["hidden_states"]
        counted.passes += 1
        counted.positions += resid.shape[0] * resid.shape[1]

    handle = vlm.blocks[0].register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield counted
    finally:
        handle.remove()


def costs(vlm: VLM, defence: Defence, prompts: Sequence[Prompt], how: Generation) -> dict[str, list[float]]:
    """Of each prompt by itself, as somebody would meet it who asks the model: by name, one value a prompt.

    References are read, and pictures transcribed, for each prompt anew; scores are not made. The first prompt is run
    once before: what a model is tried for once is no cost of an answer.
    """
    answer_alone(CachedModel(vlm, how), prompts[0], defence)
    found = {"seconds": [], "forward_passes": [], "tokens": []}
    for prompt in prompts:
        asker, began = CachedModel(vlm, how), time.perf_counter()
        with counting(vlm) as counted:
            answer_alone(asker, prompt, defence)
        found["seconds"].append(time.perf_counter() - began)
        found["forward_passes"].append(float(counted.passes))
        found["tokens"].append(float(counted.positions))
    return found
