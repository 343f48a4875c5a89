"""Limits on the time and memory of code that comes with a checkpoint, such as its chat template."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

STATM = Path("/proc/self/statm")
_LOCK = threading.Lock()


class TooMuchError(RuntimeError):
    """Code took more time or memory than it may."""


@contextmanager
def limited(seconds: float, megabytes: int) -> Iterator[None]:
    """Stop what runs in the block when it takes too long, or too much memory.

    The time limit needs the main thread of a system with timers, the memory limit needs Linux; elsewhere there is none.

    Args:
        seconds: time that the block may take.
        megabytes: address space that the process may add meanwhile.

    Raises:
        TooMuchError: it took more.
    """
    with _time_limit(seconds), _memory_limit(megabytes):
        yield


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number, frame):
        raise TooMuchError(f"it took more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory_limit(megabytes: int) -> Iterator[None]:
    if resource is None or not STATM.exists():
        yield
        return
    # One thread at a time: another one would take the lowered limit for the one to go back to.
    with _LOCK:
        yield from _limited_memory(megabytes)


def _limited_memory(megabytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    allowed = [used + megabytes * 2**20, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(allowed), hard))
    try:
        yield
    except MemoryError:
        raise TooMuchError(f"it took more than {megabytes} MB") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
