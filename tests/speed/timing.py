"""Timing by turns, and memory in processes of their own."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np


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


def peak(*arguments: str) -> float:
    """Return the peak memory of a process of its own, in megabytes."""
    command = [sys.executable, "-m", "tests.speed.memory", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])
