"""`make bench`: the cost of tracing and guarding, compared with what a user would write instead.

Contenders take turns in one run. `make bench` takes half an hour on two cores;
`python -m tests.speed --rounds 1 --only guard` runs a part of it.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from transformers import StoppingCriteria

from interp import VLM, collate, run_guards
from interp.inputs import text_batch
from interp.tracing.forward import PassSpec, read
from tests.speed import contenders, probing
from tests.speed.contenders import CAREFUL, Contender, OneByOne, eager, ours, plain, raw_hooks, transformer_lens
from tests.speed.model import Load, bench_guard, bench_vlm, built_in_vlm, generate

OURS = "trace"
WHOLE = "trace in full"
AGREEMENT = 1e-4
"""Largest difference between states, relative to the largest state: times of other results can't be compared."""
N_PROMPTS_IN_MEMORY = (200, 2000)


def by_turns(calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True) -> dict[str, np.ndarray]:
    """Return the seconds of each call. They take turns, so a noisy moment hits all of them; one round warms up."""
    seconds = {name: [] for name in calls}
    for round_ in range(rounds + warm_up):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if round_ >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def quartiles(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"value": middle, "q25": low, "q75": high}


def contest(vlm: VLM, load: Load, others: Mapping[str, Contender], rounds: int) -> list[dict]:
    """Return rows with the times of our trace and of its contenders, and their ratio round by round.

    Args:
        vlm: the model.
        load: the prompts.
        others: contenders by name.
        rounds: repetitions.
    """
    prompts, states = load.prompts(vlm), {}
    one_by_one = next((other for other in others.values() if isinstance(other, OneByOne)), None)
    on_disk = []

    def call(name: str, contender: Contender) -> Callable[[], object]:
        def run():
            states[name] = contender(prompts)
            if contender is one_by_one:
                on_disk.append(one_by_one.on_disk)

        return run

    calls = {name: call(name, contender) for name, contender in ({OURS: ours(vlm)} | dict(others)).items()}
    seconds = by_turns(calls, rounds)
    for name, theirs in states.items():
        difference = ((theirs - states[OURS]).abs().max() / states[OURS].abs().max()).item()
        assert difference < AGREEMENT, f"{name} has other states: {difference:.1e}"
    labels = {"model": vlm.name, "n_prompts": load.n_prompts, "pictures": load.pictures, "n": rounds}
    rows = []
    for name, values in seconds.items():
        values = values - np.array(on_disk[1:]) if one_by_one and others.get(name) is one_by_one else values
        row = labels | {"contender": name}
        rows.append(row | {"measure": "seconds"} | quartiles(values))
        rows.append(row | {"measure": "prompts_per_s"} | quartiles(load.n_prompts / values))
        rows.append(row | {"measure": "times_as_long_as_trace"} | quartiles(values / seconds[OURS]))
    if on_disk:
        rows.append(
            labels | {"contender": "one by one", "measure": "seconds_in_sqlite"} | quartiles(np.array(on_disk[1:]))
        )
    return rows


def tracing(rounds: int) -> list[dict]:
    """Compare our trace with all contenders, on the bench model."""
    vlm, rows = bench_vlm(), []
    careful, careless = {"careful forward": plain(vlm, **CAREFUL)}, {"careless forward": plain(vlm)}
    fast = careful | careless | {"raw hooks": raw_hooks(vlm)}
    slow = {"one by one": OneByOne(vlm), "TransformerLens": transformer_lens(vlm)}
    eagerly = {"eager forward": plain(eager(vlm), **CAREFUL)}
    whole = {WHOLE: ours(vlm, share_prefix=False, batch_size=contenders.BATCH_SIZE)}
    for load, others in (
        (Load(16, 1), fast | slow | eagerly | whole),
        (Load(16, 16), fast | slow | eagerly | whole),
        (Load(128, 1), fast | slow),
        (Load(128, 8), careful),
        (Load(128, 128), careful | whole),
    ):
        print(f"{load.n_prompts} prompts, pictures {load.pictures}", file=sys.stderr, flush=True)
        rows += contest(vlm, load, others, rounds if load.n_prompts < 128 else max(1, rounds // 2))
    return rows


def built_in(rounds: int) -> list[dict]:
    """Compare our trace with two contenders on the built-in model, whose pictures are small."""
    vlm, rows = built_in_vlm(), []
    for load in (Load(128, 1), Load(128, 128)):
        rows += contest(vlm, load, {"careful forward": plain(vlm, **CAREFUL), "raw hooks": raw_hooks(vlm)}, 2 * rounds)
    return rows


def nnsight(rounds: int) -> list[dict]:
    """Measure the overhead of nnsight: a pass over a few tokens, read through it and through hooks."""
    vlm = bench_vlm()
    batch = text_batch(vlm, [[5, 6, 7]])
    end, n = torch.full((1, 1), -1), vlm.n_layers

    def through_nnsight(layers: Sequence[int]) -> Callable[[], object]:
        return lambda: read(vlm, batch, PassSpec(("resid_post",), tuple(layers), end))

    def hooked() -> None:
        # Without the unembedding, before which a trace stops.
        with torch.no_grad(), contenders.hooked(vlm.blocks):
            vlm.model.base_model(**batch, use_cache=False)

    seconds = by_turns(
        {"one": through_nnsight([n - 1]), "all": through_nnsight(range(n)), "hooks": hooked}, 40 * rounds
    )
    labels = {"model": vlm.name, "n_prompts": 1, "pictures": "none", "contender": "nnsight", "n": 40 * rounds}
    per_read = (seconds["all"] - seconds["one"]) / (n - 1)
    return [
        labels | {"measure": "ms_per_trace"} | quartiles(1000 * (seconds["all"] - seconds["hooks"] - n * per_read)),
        labels | {"measure": "ms_per_layer_read"} | quartiles(1000 * per_read),
    ]


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
    peaks = [[_peak("generation", mode) for mode in ("unguarded", "guarded")] for _ in range(N_PEAKS)]
    memory = np.array([guarded / plain for plain, guarded in peaks])
    return [
        labels | {"measure": "first_token_times_as_long"} | quartiles(first),
        labels | {"measure": "each_further_token_times_as_long"} | quartiles(more),
        labels | {"n": N_PEAKS, "measure": "memory_times_as_much"} | quartiles(memory),
    ]


N_PEAKS = 5
N_GUARDED, N_MORE = 16, 16
N_CONFIGURATIONS, N_LOOPED, N_SHARED = 32, 4, 64


def rows(rounds: int) -> list[dict]:
    """Compare many guards run together on the same prompts with one guard at a time, as a user would write it."""
    vlm = bench_vlm()
    prompts = Load(N_SHARED, 1).prompts(vlm)
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


def probes(rounds: int) -> list[dict]:
    """Compare nested choices of the penalty for linear probes, over the sites and layers of a study."""
    rows, n = [], max(1, rounds // 2)
    for width, scaled in product(probing.WIDTHS, (True, False)):
        print(f"probes, width {width}, {'scaled' if scaled else 'centred'}", file=sys.stderr, flush=True)
        places = [probing.states(width, seed) for seed in range(probing.N_TIMED)]
        fits = {}

        def run(name: str, fit: Callable, places=places, scaled=scaled, fits=fits) -> None:
            fits[name] = [fit(states, scaled) for states in places]

        calls = {"ours": partial(run, "ours", probing.ours), "plain": partial(run, "plain", probing.plain)}
        seconds = by_turns(calls, n, warm_up=False)
        for (our_weights, our_penalties), (weights, penalties) in zip(fits["ours"], fits["plain"], strict=True):
            difference = (np.abs(our_weights - weights).max(1) / np.abs(weights).max(1)).max()
            assert np.allclose(our_penalties, penalties), f"penalties {our_penalties} and {penalties}"
            assert difference < probing.AGREEMENT, f"weights differ by {difference:.1e}"
        n_places = probing.N_LAYERS * probing.N_MODALITIES
        labels = {"model": f"{width} dimensions, {'scaled' if scaled else 'centred'}", "n_prompts": len(places[0])}
        labels |= {
            "pictures": "none",
            "contender": f"scikit-learn ({probing.N_TIMED} of {n_places} places timed)",
            "n": n,
        }
        rows.append(
            labels | {"measure": "probes: times as long as ours"} | quartiles(seconds["plain"] / seconds["ours"])
        )
        labels |= {"contender": "probes", "measure": "seconds"}
        rows.append(labels | quartiles(seconds["ours"] * n_places / probing.N_TIMED))
    return rows


def _parts(prompts: Sequence) -> list[Sequence]:
    return [prompts[i : i + contenders.BATCH_SIZE] for i in range(0, len(prompts), contenders.BATCH_SIZE)]


def memory(rounds: int) -> list[dict]:
    """Measure the peak memory of traces into stores, each in a process of its own."""
    rows = []
    for model, pictures in (("bench", "one shared"), ("built-in", "all different")):
        peaks = []
        for n in N_PROMPTS_IN_MEMORY:
            peaks.append(_peak(model, str(n)))
            rows.append({"model": model, "n_prompts": n, "measure": "peak_mb", "value": peaks[-1]})
        rows.append({"model": model, "measure": "growth_mb", "value": peaks[-1] - peaks[0]})
        for row in rows[-3:]:
            row |= {"pictures": pictures, "contender": OURS, "n": 1}
    return rows


def _peak(*arguments: str) -> float:
    """Return the peak memory of a process of its own, in megabytes."""
    command = [sys.executable, "-m", "tests.speed.memory", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


PARTS = {part.__name__: part for part in (tracing, built_in, nnsight, guard, rows, probes, memory)}


def machine() -> dict[str, str | int | float]:
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "transformers", "nnsight", "transformer-lens")}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="repetitions; half as many for 128 prompts")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part to run; repeatable")
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="folder for the table")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    columns = ["model", "n_prompts", "pictures", "contender", "measure", "value", "q25", "q75", "n"]
    for name in options.only or PARTS:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        rows += PARTS[name](options.rounds)
        table = pd.DataFrame(rows).reindex(columns=columns).astype({"n_prompts": "Int64"})
        table.to_csv(options.out / "bench.csv", index=False, float_format="%.4g")
    ratios = table[~table.measure.isin(["seconds", "prompts_per_s"])]
    print(ratios.to_string(index=False, float_format="%.3g", na_rep=""))


if __name__ == "__main__":
    main()
