"""A vocabulary of 152,000 tokens: traces, passes, answers and many guards on the LLM shape of `llava-qwen-0.5b`."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from interp import VLM, collate, run_guards
from interp.loading import has_bfloat16
from studies.generation.first_token import first_token_scores
from studies.generation.openings import Opening, RefusalOpenings
from tests.speed.contenders import CAREFUL, ours
from tests.speed.guarding import N_CONFIGURATIONS, N_LOOPED
from tests.speed.model import Load, bench_guard, generate, large_vocabulary_vlm
from tests.speed.timing import by_turns, quartiles

N_PROMPTS, N_NEW = 8, 4
OPENINGS = RefusalOpenings((Opening((5,)), Opening((7, 8))))
"""A refusal opening of one token and one of two, as real models need them."""


def measure(rounds: int) -> list[dict]:
    """Compare with what transformers does by itself, in each precision that this machine multiplies in."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16) if has_bfloat16() else (torch.float32,):
        vlm = large_vocabulary_vlm(dtype)
        vlm.model.generation_config.eos_token_id = None
        # As users load models for inference. PyTorch then multiplies slices of states in another way.
        vlm.model.requires_grad_(False)
        print(vlm.name, file=sys.stderr, flush=True)
        rows += _plain(vlm, max(1, rounds // 2)) + _guards(vlm)
    return rows


@contextmanager
def _as_loaded(vlm: VLM) -> Iterator[None]:
    """Take off what we put on the unembedding, inside the block."""
    hooks = dict(vlm.unembedding._forward_pre_hooks)
    vlm.unembedding._forward_pre_hooks.clear()
    try:
        yield
    finally:
        vlm.unembedding._forward_pre_hooks.update(hooks)


def _plain(vlm: VLM, n: int) -> list[dict]:
    """Return the times of a trace, a pass and an answer, and how many times as long they take as transformers."""
    load = Load(N_PROMPTS, N_PROMPTS)
    prompts, trace = load.prompts(vlm), ours(vlm)
    batch = collate(vlm, prompts)

    def run() -> None:
        with torch.no_grad():
            vlm.model(**batch, **CAREFUL)

    def as_loaded(call: Callable[[], None]) -> None:
        with _as_loaded(vlm):
            call()

    def answer() -> None:
        generate(vlm, batch, None, N_NEW)

    seconds = by_turns(
        {
            "trace": lambda: trace(prompts),
            "forward": run,
            "forward as loaded": lambda: as_loaded(run),
            "answers": answer,
            "answers as loaded": lambda: as_loaded(answer),
        },
        n,
    )
    labels = {"model": vlm.name, "n_prompts": N_PROMPTS, "pictures": load.pictures, "n": n}
    rows = [labels | {"contender": name, "measure": "seconds"} | quartiles(times) for name, times in seconds.items()]
    for name, ours_ in (("forward", "trace"), ("forward", "forward"), ("answers", "answers")):
        ratio = seconds[f"{name} as loaded"] / seconds[ours_]
        measure = {"contender": f"{name} as loaded", "measure": f"times_as_long_as_{ours_}"}
        rows.append(labels | measure | quartiles(ratio))
    return rows


def _guards(vlm: VLM) -> list[dict]:
    """Compare scores of many guards with one guard at a time: refusal score and KL of the first token."""
    prompts = [replace(prompt, pictures=()) for prompt in Load(N_PROMPTS, N_PROMPTS).prompts(vlm)]
    guards = [bench_guard(vlm, i % vlm.n_layers, 1 + i / 8) for i in range(N_CONFIGURATIONS)]
    states, scores = guards[0].read(vlm, [prompt.text for prompt in prompts]), first_token_scores(OPENINGS)

    def score(guards: Sequence, together: bool):
        return run_guards(vlm, prompts, guards, states, scores, together=together)

    def one_by_one() -> None:
        with _as_loaded(vlm):
            score(guards[:N_LOOPED], together=False)

    calls = {"together": lambda: score(guards, together=True), "one at a time": one_by_one}
    seconds = by_turns(calls, 1)
    ratio = seconds["one at a time"] * N_CONFIGURATIONS / N_LOOPED / seconds["together"]
    labels = {"model": vlm.name, "n_prompts": N_PROMPTS, "pictures": "none", "n": 1}
    per_score = 1000 * seconds["together"] / N_CONFIGURATIONS / N_PROMPTS
    loop = f"one at a time ({N_LOOPED} of {N_CONFIGURATIONS} timed)"
    return [
        labels | {"contender": "guards together", "measure": "ms_per_score"} | quartiles(per_score),
        labels | {"contender": loop, "measure": "scores: times as long as together"} | quartiles(ratio),
    ]
