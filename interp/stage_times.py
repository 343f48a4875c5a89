"""Timing of the stages of a guarded answer, done only while somebody asks for it."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

__all__ = ["STAGES", "stage", "stage_times"]

STAGES = ("transcription", "reference", "gate", "change")
"""Reading a picture, the pass of the reference (or of the unguarded prompt), the gate, and the change of states."""
_TIMES: ContextVar[Counter | None] = ContextVar("stage_times", default=None)


@contextmanager
def stage_times() -> Iterator[Counter]:
    """Yield the seconds of each stage that runs inside the block, by name."""
    token = _TIMES.set(times := Counter())
    try:
        yield times
    finally:
        _TIMES.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the time of the block towards a stage; outside of `stage_times` this does nothing."""
    times = _TIMES.get()
    if times is None:
        yield
        return
    start = _now()
    try:
        yield
    finally:
        times[name] += _now() - start


def _now() -> float:
    """Return the time at which everything that was started has finished, on an accelerator too."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
