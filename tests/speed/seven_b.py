"""LLaVA-1.5-7B's shape with random weights, in bfloat16: what everything costs against the arithmetic of this machine.

`make bench DEVICE=cuda` runs it on a GPU. On a CPU it takes 20 GB and long: `python -m tests.speed --only seven_b`;
with `--blocks 8`, which has all else of the shape, 6 GB and a quarter of the time.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from interp import VLM, Guard, SafetyDirection, collate, random_basis, run_guards
from studies.presets.preset import read_preset
from studies.presets.random_weights import random_model
from tests.speed.contenders import CAREFUL, ours, plain
from tests.speed.memory import peak_mb
from tests.speed.model import Load, generate

N_PROMPTS, N_PICTURES, N_GUARDS, N_NEW = 16, 4, 8, 4
TOLERANCE = 3e-2
"""Largest difference between states of two ways to compute them in bfloat16, relative to the largest state."""
MATRIX = 4096
"""Size of the matrix product that the arithmetic of a machine is measured with."""


def measure(rounds: int, device: str = "cpu", vlm: VLM | None = None, blocks: int | None = None) -> list[dict]:
    """Return the costs of a trace, a guard, many guards and answers, and the memory at each step.

    Args:
        rounds: repetitions of what takes seconds; what takes minutes on a CPU is run once there.
        device: `cpu` or `cuda`.
        vlm: another model, for tests; by default the 7B shape.
        blocks: decoder blocks of the shape; by default all 32.
    """
    began = time.perf_counter()
    vlm = vlm or random_model(read_preset("llava-1.5-7b"), device, blocks)
    vlm.model.generation_config.eos_token_id = None
    bench = _Bench(vlm, device, rounds if device == "cuda" else 1)
    bench.note("seconds to build", time.perf_counter() - began)
    bench.note("weights, GB", sum(p.numel() * p.element_size() for p in vlm.model.parameters()) / 1e9)
    bench.memory("after building")
    for step in (bench.traces, bench.generation, bench.many_guards):
        print(f"{vlm.name}: {step.__name__}", file=sys.stderr, flush=True)
        step()
        bench.memory(f"after {step.__name__}")
    return bench.rows


class _Bench:
    def __init__(self, vlm: VLM, device: str, rounds: int):
        self.vlm, self.device, self.rounds = vlm, device, rounds
        self.labels = {"model": f"{vlm.name}, {device}", "n": rounds}
        self.rows: list[dict] = []
        self.rate = _matrix_rate(device, vlm.model.dtype)
        self.note("arithmetic, TFLOP/s", self.rate / 1e12)

    def note(self, measure: str, value: float, **labels) -> None:
        self.rows.append(self.labels | labels | {"measure": measure, "value": value})

    def memory(self, when: str) -> None:
        """Note the most memory so far: of the GPU, or of this process."""
        gigabytes = torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else peak_mb() * 2**20 / 1e9
        self.note("peak memory, GB", gigabytes, contender=when)

    def seconds(self, call: Callable[[], object]) -> list[float]:
        """Time a call, which has run once before where that takes seconds."""
        times = []
        for round_ in range(self.rounds + (self.device == "cuda")):
            began = self._now()
            call()
            if round_ >= (self.device == "cuda"):
                times.append(self._now() - began)
        return times

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def traces(self) -> None:
        """Compare shared and plain traces with the careful forward pass, with one picture and with several."""
        for n_pictures in (1, N_PICTURES):
            self._traces_of(Load(N_PROMPTS, n_pictures))

    def _traces_of(self, load: Load) -> None:
        prompts, states, times = load.prompts(self.vlm), {}, {}
        whole = ours(self.vlm, share_prefix=False, batch_size=N_PROMPTS)
        contenders = {"careful forward": plain(self.vlm, **CAREFUL), "plain trace": whole, "trace": ours(self.vlm)}
        for contender in contenders.values():
            # The first pass pays for pages and packed weights, whoever runs it.
            contender(prompts[:1])
        for name, contender in contenders.items():
            times[name] = self.seconds(partial(_keep, states, name, contender, prompts))
        careful = states["careful forward"]
        for name, values in times.items():
            difference = ((states[name] - careful).abs().max() / careful.abs().max()).item()
            assert difference < TOLERANCE, f"{name} has other states: {difference:.1e}"
            about = {"contender": name, "n_prompts": N_PROMPTS, "pictures": load.pictures}
            self.note("seconds", min(values), **about)
            self.note("prompts/s", N_PROMPTS / min(values), **about)
            self.note("times as long as careful forward", min(values) / min(times["careful forward"]), **about)
        # Prompts are padded to the longest one.
        n_tokens = N_PROMPTS * collate(self.vlm, prompts)["input_ids"].shape[1]
        self.note(
            "times as long as the arithmetic",
            min(times["careful forward"]) / self._floor(n_tokens),
            contender="careful forward",
            pictures=load.pictures,
        )

    def _floor(self, n_tokens: int) -> float:
        """Return the seconds of two operations a parameter and token, at the rate of a matrix product."""
        n_parameters = sum(p.numel() for block in self.vlm.blocks for p in block.parameters())
        return 2 * n_parameters * n_tokens / self.rate

    def generation(self) -> None:
        """Compare guarded answers with unguarded ones, and with a hook that does the same by hand."""
        batch = collate(self.vlm, Load(1, 1).prompts(self.vlm))
        guard = _ablating(self.vlm)
        times = {
            name: {n: min(self.seconds(partial(generate, self.vlm, batch, g, n))) for n in (1, 1 + N_NEW)}
            for name, g in (("unguarded", None), ("guard", guard))
        }
        for name, by_length in times.items():
            self.note("first token, seconds", by_length[1], contender=name)
            self.note("each further token, seconds", (by_length[1 + N_NEW] - by_length[1]) / N_NEW, contender=name)
        self.note("first token: times as long", times["guard"][1] / times["unguarded"][1], contender="guard")
        ours_ = generate(self.vlm, batch, guard, 1 + N_NEW)
        with _by_hand(self.vlm, guard):
            theirs = generate(self.vlm, batch, None, 1 + N_NEW)
        assert torch.equal(ours_, theirs), "the guard answers differently from a hook that does the same"

    def many_guards(self) -> None:
        """Compare guards on one prefill with one guard after the other."""
        prompts = Load(1, 1).prompts(self.vlm)
        guards = [_ablating(self.vlm, i % self.vlm.n_layers) for i in range(N_GUARDS)]
        tokens = {}
        for name, together in (("rows", True), ("one at a time", False)):
            run = partial(run_guards, self.vlm, prompts, guards, max_new_tokens=N_NEW, together=together)
            seconds = self.seconds(partial(_keep, tokens, name, lambda run=run: run().tokens))
            self.note("seconds", min(seconds), contender=f"{N_GUARDS} guards, {name}")
        alike = (tokens["rows"] == tokens["one at a time"]).all(-1).float().mean().item()
        self.note("share of answers alike", alike, contender=f"{N_GUARDS} guards, rows")


def _keep(results: dict, name: str, call: Callable, *args) -> None:
    """Call something, and keep what it returns."""
    results[name] = call(*args)


def _matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Return operations a second of a matrix product in this precision, the best of several."""
    first, second = (torch.randn(MATRIX, MATRIX, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        first @ second
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * MATRIX**3 / best


def _ablating(vlm: VLM, layer: int | None = None) -> Guard:
    basis = random_basis(torch.zeros(vlm.n_layers, 1, vlm.d_model), 0)
    layer = vlm.n_layers // 2 if layer is None else layer
    return Guard(SafetyDirection(basis, "random"), (layer,), "ablate", gate="always")


@contextmanager
def _by_hand(vlm: VLM, guard: Guard) -> Iterator[None]:
    """Take the guard's direction out of the last prompt token, as a user would write it."""
    (layer,) = guard.layers
    direction = guard.direction.basis[layer, 0].to(vlm.device)

    def ablate(module, args, output):
        states = output if isinstance(output, Tensor) else output[0]
        if states.shape[1] > 1:
            last = states[:, -1].float()
            states[:, -1] = (last - (last @ direction)[:, None] * direction).to(states.dtype)

    handle = vlm.blocks[layer].register_forward_hook(ablate)
    try:
        yield
    finally:
        handle.remove()
