"""`make bench`: the cost of tracing and guarding, compared with what a user would write instead.

Contenders take turns in one run. `make bench` takes half an hour on two cores;
`python -m tests.speed --rounds 1 --only guard` runs a part of it.
"""

import argparse
import json
import platform
import sys
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

from interp import VLM
from interp.inputs import text_batch
from interp.tracing.forward import PassSpec, read
from tests.speed import attacking, command_line, contenders, estimates, large_vocabulary, probing, seven_b
from tests.speed.contenders import CAREFUL, Contender, OneByOne, eager, ours, plain, raw_hooks, transformer_lens
from tests.speed.guarding import guard, rows
from tests.speed.matching import matching
from tests.speed.model import Load, bench_vlm, built_in_vlm
from tests.speed.timing import by_turns, peak, quartiles

OURS = "trace"
WHOLE = "trace in full"
AGREEMENT = 1e-4
"""Largest difference between states, relative to the largest state: times of other results can't be compared."""
N_PROMPTS_IN_MEMORY = (200, 2000)


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


def memory(rounds: int) -> list[dict]:
    """Measure the peak memory of traces into stores, each in a process of its own."""
    rows = []
    for model, pictures in (("bench", "one shared"), ("built-in", "all different")):
        peaks = []
        for n in N_PROMPTS_IN_MEMORY:
            peaks.append(peak(model, str(n)))
            rows.append({"model": model, "n_prompts": n, "measure": "peak_mb", "value": peaks[-1]})
        rows.append({"model": model, "measure": "growth_mb", "value": peaks[-1] - peaks[0]})
        for row in rows[-3:]:
            row |= {"pictures": pictures, "contender": OURS, "n": 1}
    return rows


PARTS = {part.__name__: part for part in (tracing, built_in, nnsight, guard, rows, matching, probes, memory)}
PARTS["large_vocabulary"] = large_vocabulary.measure
PARTS["command_line"] = command_line.measure
PARTS["estimates"] = estimates.measure
PARTS["picture_attack"] = attacking.measure
LARGE = "seven_b"
"""The part that has to be asked for: it needs 20 GB of memory, or a GPU."""


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
    parser.add_argument("--only", choices=(*PARTS, LARGE), action="append", help="a part to run; repeatable")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the 7B shape runs")
    parser.add_argument("--blocks", type=int, help="decoder blocks of the 7B shape; by default all 32")
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="folder for the table")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    columns = ["model", "n_prompts", "pictures", "contender", "measure", "value", "q25", "q75", "n"]
    for name in options.only or PARTS:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        if name == LARGE:
            rows += seven_b.measure(options.rounds, options.device, blocks=options.blocks)
        else:
            rows += PARTS[name](options.rounds)
        table = pd.DataFrame(rows).reindex(columns=columns).astype({"n_prompts": "Int64"})
        table.to_csv(options.out / "bench.csv", index=False, float_format="%.4g")
    ratios = table[~table.measure.isin(["seconds", "prompts_per_s"])]
    print(ratios.to_string(index=False, float_format="%.3g", na_rep=""))


if __name__ == "__main__":
    main()
