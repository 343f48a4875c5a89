"""A limit on the time of code that comes with a checkpoint, such as its chat template."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TooSlowError(RuntimeError):
    """Code did not end in time."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stop what runs in the block when it takes too long.

    That needs the main thread of a system with timers; elsewhere there is no limit.

    Raises:
        TooSlowError: it did.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number, frame):
        raise TooSlowError(f"it took more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)
        signal.signal(signal.SIGALRM, before)
