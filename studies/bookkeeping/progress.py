"""Progress of long work: a line for each of its stages, and one per phase with an ETA.

Lines are plain if the output is not a terminal.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from studies.bookkeeping.console import QUIET, VERBOSITY, note, plain_console

PLAIN_EVERY = 10.0
"""Seconds between lines if the output is not a terminal."""
DONE_BEFORE = 0.1
"""A stage that passes in less than this share of the time that others suggest was finished by an earlier run."""
WINDOW = 10
"""Number of latest reports that the ETA is based on: work that an earlier run has finished is skipped in no time."""

Report = Callable[..., None]
"""Called with the number of units done since the last call, and optionally `note=`."""


@contextmanager
def phase(name: str, total: int) -> Iterator[Report]:
    """Show the progress of `total` units of work on stderr; a quiet command shows none."""
    if VERBOSITY.get() == QUIET:
        yield lambda n=1, note="": None
        return
    console = plain_console(stderr=True)
    display = _bar(name, total, console) if console.is_terminal else _lines(name, total)
    with display as report:
        yield report


@contextmanager
def _bar(name: str, total: int, console: Console) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description:<32}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, note="")
        yield lambda n=1, note="": progress.update(task, advance=n, note=note)


@contextmanager
def _lines(name: str, total: int) -> Iterator[Report]:
    lines, ended = _Lines(name, total), threading.Event()
    heart = threading.Thread(target=lines.beat, args=(ended,), daemon=True)
    heart.start()
    try:
        yield lines.report
    finally:
        ended.set()
        heart.join()


class _Lines:
    """Prints a line now and then, also while a unit of work takes long."""

    def __init__(self, name: str, total: int):
        self._name, self._total = name, total
        self._start = self._last = time.monotonic()
        self._done, self._note = 0, ""
        self._recent = deque([(self._start, 0)], maxlen=WINDOW)
        self._lock = threading.Lock()

    def report(self, n: int = 1, note: str = "") -> None:
        with self._lock:
            self._done += n
            self._note, now = note, time.monotonic()
            since, before = self._recent[0]
            self._recent.append((now, self._done))
            if self._done and (now - self._last >= PLAIN_EVERY or self._done >= self._total):
                self._print(now, since, before)

    def beat(self, ended: threading.Event) -> None:
        """Print a line whenever none was printed for a while, until the work has ended."""
        while not ended.wait(PLAIN_EVERY / 4):
            with self._lock:
                if (now := time.monotonic()) - self._last >= PLAIN_EVERY:
                    self._print(now, *self._recent[0])

    def _print(self, now: float, since: float, before: int) -> None:
        self._last = now
        left = "?"
        if self._done > before:
            left = f"{(now - since) / (self._done - before) * max(0, self._total - self._done):.0f}"
        line = f"{self._name:<32} {self._done}/{self._total}  {now - self._start:.0f} s  left {left} s  {self._note}"
        print(line.rstrip(), file=sys.stderr)


class Stages:
    """Announces the stages of a run: which of how many, and about how long all that is left will take.

    Args:
        shares: stages in order, and the part of the whole time that each takes, as measured on an earlier run.
    """

    def __init__(self, shares: Mapping[str, float]):
        self._shares, self._start = dict(shares), time.monotonic()
        self._seconds: dict[str, float] = {}
        self._current: str | None = None

    def start(self, name: str) -> None:
        """End the stage before, and announce this one on stderr."""
        now = time.monotonic()
        if self._current is not None:
            self._seconds[self._current] = now - self._start
        self._current, self._start = name, now
        seconds, number = self.seconds_left(), list(self._shares).index(name) + 1
        left = "" if seconds is None else f"; about {_duration(seconds)} left in all"
        note(f"Stage {number} of {len(self._shares)}: {name}{left}")

    def seconds_left(self) -> float | None:
        """Return an estimate of the seconds until the last stage ends; None while nothing is known.

        Stages that an earlier run finished pass in no time: how fast this machine is, the others say.
        """
        paces = {name: seconds / self._shares[name] for name, seconds in self._seconds.items()}
        slowest = max(paces.values(), default=0)
        measured = [name for name, pace in paces.items() if pace > DONE_BEFORE * slowest]
        if not measured:
            return None
        pace = sum(self._seconds[name] for name in measured) / sum(self._shares[name] for name in measured)
        return pace * sum(share for name, share in self._shares.items() if name not in self._seconds)


def _duration(seconds: float) -> str:
    if seconds < 50:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    minutes = max(1, round(seconds / 60))
    if minutes < 100:
        return f"{minutes} minute{'s' * (minutes > 1)}"
    return f"{seconds / 3600:.0f} hours"
