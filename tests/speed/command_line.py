"""The command line's response time to `--help` and to invalid arguments."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from typer.main import get_command

from studies.cli.app import app
from tests.speed.timing import by_turns, quartiles

MISTYPED = {
    "repro": ("--scale", "huge"),
    "trace": ("--out", "store", "--modality", "blnk"),
    "sweep": ("--rules", "ablat"),
    "probe": ("--sites", "resid"),
    "store": ("nowhere",),
    "report": ("nowhere",),
}
"""Arguments that are wrong, by verb."""
BLANK = "python"
"""An interpreter that does nothing: the least that any command takes."""


def measure(rounds: int) -> list[dict]:
    """Measure the seconds until each verb's help is shown, and until wrong arguments are answered."""
    # The script `vlm-guard` does the same, but may belong to another checkout.
    command = [sys.executable, "-m", "studies.cli"]
    calls = {BLANK: _call([sys.executable, "-c", ""], 0), "--help": _call([*command, "--help"], 0)}
    for verb in sorted(get_command(app).commands):
        calls[f"{verb} --help"] = _call([*command, verb, "--help"], 0)
    for verb, arguments in MISTYPED.items():
        calls[f"{verb} {' '.join(arguments)}"] = _call([*command, verb, *arguments], 2)
    seconds = by_turns(calls, rounds)
    labels = {"model": "none", "pictures": "none", "n": rounds}
    rows = [labels | {"contender": name, "measure": "seconds"} | quartiles(values) for name, values in seconds.items()]
    slowest = np.max([values for name, values in seconds.items() if name != BLANK], axis=0)
    rows.append(
        labels | {"contender": "slowest of the above", "measure": "seconds_until_answered"} | quartiles(slowest)
    )
    return rows


def _call(command: Sequence[str], code: int) -> Callable[[], None]:
    """Return a call that runs a command, which has to end with this exit code."""
    return partial(_run, command, code)


def _run(command: Sequence[str], code: int) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, f"{' '.join(command)} ended with {done.returncode}: {done.stderr}"
