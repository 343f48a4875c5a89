"""Kills, full disks and second writers: nothing is lost, doubled or left behind."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.attacks.verbs import VERBS, contents, finish, log_of, prepare, start

CHEAP = ("trace",)
"""Verbs that are tried in the default run."""
N_KILLS = 25
"""Kills of each verb in the slow run."""
each_verb = pytest.mark.parametrize(
    "verb", [verb if verb in CHEAP else pytest.param(verb, marks=pytest.mark.slow) for verb in VERBS]
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(place):
    """Return for each verb, once it was run, what it writes and the seconds that it takes."""
    found = {}

    def run(verb):
        if verb not in found:
            out, began = place / f"whole {verb}", time.monotonic()
            finish(verb, place, out)
            found[verb] = contents(out), time.monotonic() - began
        return found[verb]

    return run


def nearly_same(out: Path, expected: dict) -> None:
    """Check tables and logs but for the last digits of their numbers, which depend on how prompts fall into batches."""
    found = contents(out)
    assert set(found) == set(expected)
    for name, content in expected.items():
        if name.endswith((".csv", ".jsonl")):
            words, numbers = apart(found[name])
            expected_words, expected_numbers = apart(content)
            assert words == expected_words, name
            np.testing.assert_allclose(numbers, expected_numbers, rtol=1e-3, atol=1e-4, err_msg=name)


def apart(content: bytes | list[str]) -> tuple[list[str], list[float]]:
    """Return what stands between the numbers with fractions of a file, and the numbers."""
    text = content.decode() if isinstance(content, bytes) else "\n".join(content)
    number = r"-?\d+\.\d+(?:e-?\d+)?"
    return re.split(number, text), [float(found) for found in re.findall(number, text)]


@each_verb
@pytest.mark.parametrize("n_kills", [2, pytest.param(N_KILLS, marks=pytest.mark.slow)])
def test_a_killed_verb_ends_like_an_uninterrupted_one(verb, n_kills, place, uninterrupted):
    expected, seconds = uninterrupted(verb)
    rng, n_killed, n_runs = np.random.default_rng(n_kills), 0, 0
    while n_killed < n_kills:
        out = place / f"killed {verb} {n_kills} {n_runs}"
        # Some are killed several times before they end.
        for _ in range(rng.integers(1, 4)):
            process = start(verb, place, out)
            time.sleep(rng.uniform(0, seconds))
            process.kill()
            process.join()
            n_killed += process.exitcode == -signal.SIGKILL
        finish(verb, place, out)
        nearly_same(out, expected)
        shutil.rmtree(out)
        n_runs += 1
        assert n_runs < 4 * n_kills, "most processes end before they are killed"


@each_verb
def test_of_two_writers_one_waits_or_is_refused(verb, place, uninterrupted):
    expected, _ = uninterrupted(verb)
    out = place / f"crowded {verb}"
    processes = [start(verb, place, out) for _ in range(2)]
    for process in processes:
        process.join()
    log = log_of(place, out).read_text()
    assert 0 in [process.exitcode for process in processes], log
    assert all(process.exitcode == 0 or "another process" in log for process in processes), log
    nearly_same(out, expected)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a changeable size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(kilobytes, options="remount,"):
        command = ["mount", "-t", "tmpfs", "-o", f"{options}size={kilobytes}k", "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True).returncode == 0

    if shutil.which("mount") is None or not resize(8, options=""):
        pytest.skip("this machine does not let a test mount a file system")
    yield folder, resize
    subprocess.run(["umount", str(folder)], check=True)


@each_verb
def test_a_full_disk_is_one_message_and_the_verb_can_be_resumed(verb, place, uninterrupted, small_disk):
    expected, _ = uninterrupted(verb)
    folder, resize = small_disk
    out, kilobytes, n_failed = folder / f"full {verb}", 8, 0
    while True:
        process = start(verb, place, out)
        process.join()
        if process.exitcode == 0:
            break
        n_failed += 1
        log = log_of(place, out).read_text()
        assert process.exitcode == 2 and "Traceback" not in log, log
        kilobytes = int(kilobytes * 1.5)
        assert resize(kilobytes)
    assert n_failed > 2
    nearly_same(out, expected)
