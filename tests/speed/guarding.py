"""Costs of guards: one guard during generation, and many guards on the same prompts."""

import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from transformers import StoppingCriteria

from interp import VLM, collate, run_guards
from tests.speed import contenders
from tests.speed.model import Load, bench_guard, bench_vlm, generate
from tests.speed.timing import by_turns, peak, quartiles

N_PEAKS = 5
N_GUARDED, N_MORE = 16, 16
N_CONFIGURATIONS, N_LOOPED, N_SHARED = 32, 4, 64


class Clock(StoppingCriteria):
    """Records the time of each token; never stops generation."""

    def __init__(self):
        self.times = [time.perf_counter()]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def guard(rounds: int) -> list[dict]:
    """Measure what a guard adds to generation: it reads the prompts' own text first, then changes one layer."""
    vlm, seconds = bench_vlm(), {False: [], True: []}
    batch, bench = collate(vlm, Load(N_GUARDED, 1).prompts(vlm)), bench_guard(vlm)
    n = 4 * rounds
    for _ in range(n + 1):
        for is_guarded, times in seconds.items():
            clock = Clock()
            generate(vlm, batch, bench if is_guarded else None, 1 + N_MORE, stopping_criteria=[clock])
            passes = np.diff(clock.times)
            times.append((passes[0], np.median(passes[1:])))
    # The first round warms up.
    first, more = (np.array(seconds[True])[1:] / np.array(seconds[False])[1:]).T
    labels = {"model": vlm.name, "n_prompts": N_GUARDED, "pictures": "one shared", "contender": "guard", "n": n}
    peaks = [[peak("generation", mode) for mode in ("unguarded", "guarded")] for _ in range(N_PEAKS)]
    memory = np.array([guarded / plain for plain, guarded in peaks])
    return [
        labels | {"measure": "first_token_times_as_long"} | quartiles(first),
        labels | {"measure": "each_further_token_times_as_long"} | quartiles(more),
        labels | {"n": N_PEAKS, "measure": "memory_times_as_much"} | quartiles(memory),
    ]


def rows(rounds: int) -> list[dict]:
    """Compare many guards run together on the same prompts with one guard at a time, as a user would write it."""
    return rows_on(bench_vlm(), Load(N_SHARED, 1), rounds)


def rows_on(vlm: VLM, load: Load, rounds: int) -> list[dict]:
    """Compare guards run together with one guard at a time on a model.

    Args:
        vlm: the model.
        load: the prompts.
        rounds: repetitions.
    """
    prompts = load.prompts(vlm)
    guards = [bench_guard(vlm, i % vlm.n_layers, 1 + i / 8) for i in range(N_CONFIGURATIONS)]
    states = torch.cat([guards[0].read(vlm, [prompt.text for prompt in part]) for part in _parts(prompts)])
    batches = [collate(vlm, part) for part in _parts(prompts)]

    def loop(n_new: int) -> torch.Tensor:
        """Run some of the guards on every batch; the pictures are processed once."""
        answers = []
        for guard in guards[:N_LOOPED]:
            for i, batch in enumerate(batches):
                with guard.on(vlm, states[i * contenders.BATCH_SIZE :][: contenders.BATCH_SIZE]):
                    answers.append(generate(vlm, batch, None, n_new)[:, -n_new:])
        return torch.cat(answers).reshape(N_LOOPED, len(prompts), n_new)

    # The random model could end an answer anywhere.
    vlm.model.generation_config.eos_token_id = None
    labels = {"model": vlm.name, "n_prompts": N_SHARED, "pictures": "one shared"}
    labels["contender"] = f"loop ({N_LOOPED} of {N_CONFIGURATIONS} timed)"
    n, rows = max(1, rounds // 2), []
    for name, n_new in (("scores", 1), (f"{N_MORE} tokens", N_MORE)):
        print(f"{N_CONFIGURATIONS} configurations, {name}", file=sys.stderr, flush=True)
        tokens = {}

        def looped(n_new=n_new, tokens=tokens) -> None:
            tokens["loop"] = loop(n_new)

        def together(n_new=n_new, tokens=tokens) -> None:
            tokens["rows"] = run_guards(vlm, prompts, guards, states, max_new_tokens=n_new, together=True).tokens

        seconds = by_turns({"rows": together, "loop": looped}, n)
        all_seconds = seconds["loop"] * N_CONFIGURATIONS / N_LOOPED
        ratio = {"n": n, "measure": f"{name}: times as long as rows"}
        rows.append(labels | ratio | quartiles(all_seconds / seconds["rows"]))
        alike = (tokens["loop"] == tokens["rows"][:N_LOOPED]).all(-1).float().mean().item()
        agreement = {"n": N_LOOPED * N_SHARED, "measure": f"{name}: share of answers alike", "value": alike}
        rows.append(labels | agreement)
    return rows


def _parts(prompts: Sequence) -> list[Sequence]:
    return [prompts[i : i + contenders.BATCH_SIZE] for i in range(0, len(prompts), contenders.BATCH_SIZE)]
