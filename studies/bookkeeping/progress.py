"""One line of progress per phase of long work, with an ETA; plain lines if the output is not a terminal."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY = 10.0
"""Seconds between lines if the output is not a terminal."""
WINDOW = 10
"""Number of latest reports that the ETA is based on: work that an earlier run has finished is skipped in no time."""

Report = Callable[..., None]
"""Called with the number of units done since the last call, and optionally `note=`."""


@contextmanager
def phase(name: str, total: int) -> Iterator[Report]:
    """Show the progress of `total` units of work on stderr."""
    console = Console(stderr=True)
    display = _bar(name, total, console) if console.is_terminal else _lines(name, total)
    with display as report:
        yield report


@contextmanager
def _bar(name: str, total: int, console: Console) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, note="")
        yield lambda n=1, note="": progress.update(task, advance=n, note=note)


@contextmanager
def _lines(name: str, total: int) -> Iterator[Report]:
    start = last = time.monotonic()
    done, recent = 0, deque([(start, 0)], maxlen=WINDOW)

    def report(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        (since, before), _ = recent[0], recent.append((now, done))
        if done and (now - last >= PLAIN_EVERY or done >= total):
            last = now
            eta = (now - since) / max(1, done - before) * max(0, total - done)
            print(f"{name:<32} {done}/{total}  {now - start:.0f} s  left {eta:.0f} s  {note}".rstrip(), file=sys.stderr)

    yield report
