"""Traces of processes that are really killed, at random moments, can be resumed."""

import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pytest

N_PROMPTS, BATCH_SIZE = 60, 4
_CONTEXT = multiprocessing.get_context("forkserver")
# Forked with the libraries loaded, so that the kills hit the trace and not the imports.
_CONTEXT.set_forkserver_preload(["tests.interp.tracing_process"])


def run(folder: Path, out: Path) -> multiprocessing.Process:
    """Start a process that traces into a store."""
    from tests.interp.tracing_process import main

    process = _CONTEXT.Process(target=main, args=(str(folder), str(out), N_PROMPTS, BATCH_SIZE))
    process.start()
    return process


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(tiny_folder, tmp_path_factory):
    """The files of a store that was written without interruption, and the seconds that took."""
    out = tmp_path_factory.mktemp("kills") / "whole"
    # The first process also starts the server that the others are forked from.
    run(tiny_folder, out.with_name("first")).join()
    start = time.monotonic()
    process = run(tiny_folder, out)
    process.join()
    assert process.exitcode == 0
    return files(out), time.monotonic() - start


def kill_and_resume(folder: Path, out: Path, seconds: float, rng: np.random.Generator) -> tuple[int, bool]:
    """Kill a process, let another one finish; return the number of batches done before, and whether the kill hit."""
    process = run(folder, out)
    time.sleep(rng.uniform(0, seconds))
    process.kill()
    process.join()
    n_done = len(list((out / "done").glob("*"))) if (out / "done").exists() else 0
    was_killed = process.exitcode == -signal.SIGKILL
    process = run(folder, out)
    process.join()
    assert process.exitcode == 0
    return n_done, was_killed


@pytest.mark.parametrize("n_kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_and_resumed_trace_equals_an_uninterrupted_one(n_kills, tiny_folder, uninterrupted, tmp_path):
    expected, seconds = uninterrupted
    rng, n_killed, done = np.random.default_rng(n_kills), 0, []
    while n_killed < n_kills:
        out = tmp_path / str(len(done))
        n_done, was_killed = kill_and_resume(tiny_folder, out, seconds, rng)
        done.append(n_done)
        n_killed += was_killed
        assert files(out) == expected
        assert len(done) < 4 * n_kills, "most processes finish before they are killed"
    assert min(done) < N_PROMPTS / BATCH_SIZE


def test_repeated_kills_lose_no_finished_batch(tiny_folder, uninterrupted, tmp_path):
    expected, seconds = uninterrupted
    rng, done = np.random.default_rng(0), [0]
    for _ in range(3):
        process = run(tiny_folder, tmp_path / "store")
        time.sleep(rng.uniform(seconds / 2, seconds))
        process.kill()
        process.join()
        done.append(len(list((tmp_path / "store" / "done").glob("*"))))
    assert done == sorted(done)
    run(tiny_folder, tmp_path / "store").join()
    assert files(tmp_path / "store") == expected
