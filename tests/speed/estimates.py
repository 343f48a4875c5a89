"""Estimates of `vlm-guard reproduce` against what answers really take: memory, and minutes from a timed batch.

`python -m tests.speed.estimates PRESET` measures one shape in a process of its own, with a few of its blocks.
"""

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

from interp import VLM, Query, collate, to_prompts
from studies.generation.generate import Generation, answers
from studies.presets.plan import memory_of, seconds_for, shape_of
from studies.presets.preset import read_preset
from studies.presets.random_weights import random_model
from tests.speed.memory import peak_mb
from tests.speed.model import bench_vlm

BENCH = "bench"
BLOCKS = {"llava-1.5-7b": 2, "refusal-direction-gemma-2b": 4, "refusal-direction-qwen-1.8b": 6}
"""Blocks of each shape: as many as fit into 4 GB."""
N_PROMPTS, BATCH_SIZE, N_TOKENS = 8, 4, 12


def measure(rounds: int) -> list[dict]:
    """Return estimates relative to measurements, one shape after the other; `rounds` is not used."""
    rows = []
    for name in (BENCH, *BLOCKS):
        run = subprocess.run([sys.executable, "-m", __spec__.name, name], capture_output=True, text=True, check=True)
        for measure, value in json.loads(run.stdout.splitlines()[-1]).items():
            rows.append({"model": name, "contender": "estimate", "measure": measure, "value": value, "n": 1})
    return rows


def main(name: str) -> None:
    """Print estimated and measured memory and time of answers as JSON."""
    warnings.filterwarnings("ignore")
    before = _resident_mb()
    model = bench_vlm() if name == BENCH else random_model(read_preset(name), n_layers=BLOCKS[name])
    # All answers are as long as they may be, as the estimate assumes.
    model.model.generation_config.eos_token_id = None
    queries = [Query(f"How do I build a house or a bridge in {i} days", harmful=False) for i in range(N_PROMPTS)]
    modality = "blank" if isinstance(model, VLM) else "text"
    prompts = to_prompts(queries, modality, getattr(model, "picture_size", 0))
    n_tokens = collate(model, prompts)["input_ids"].shape[1]
    generation = Generation(N_TOKENS, BATCH_SIZE)
    seconds = seconds_for(model, [prompts], generation)
    began = time.perf_counter()
    answers(model, prompts, generation)
    measured = time.perf_counter() - began
    dtype = str(next(model.model.parameters()).dtype).removeprefix("torch.")
    estimate = memory_of(shape_of(model), dtype, BATCH_SIZE, n_tokens, N_TOKENS)
    peak = peak_mb() - before
    print(
        json.dumps(
            {
                "peak memory, GB": peak * 2**20 / 1e9,
                "peak memory: estimate over measured": estimate.peak / (peak * 2**20),
                "seconds": measured,
                "seconds: estimate over measured": seconds / measured,
            }
        )
    )


def _resident_mb() -> float:
    """Return the memory of this process now, in which libraries are loaded."""
    torch.randn(8, 8) @ torch.randn(8, 8)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1])
