"""The consoles that results and notes are printed on, and how much is said on them."""

from contextvars import ContextVar

from rich.console import Console

QUIET, NORMAL, VERBOSE = -1, 0, 1
VERBOSITY = ContextVar("verbosity", default=NORMAL)
"""How much a command says besides its result: nothing, progress and notes, or also what the libraries below say."""


def plain_console(stderr: bool = False) -> Console:
    """Return a console that prints what it is given: results, or notes on stderr, which quiet commands leave out.

    Names of folders, models and requests may hold brackets, which rich would take for markup, and raise errors.
    """
    is_quiet = stderr and VERBOSITY.get() == QUIET
    return Console(stderr=stderr, quiet=is_quiet, markup=False, emoji=False, highlight=False)


def note(text: str) -> None:
    """Print a line about the run, not its result, on stderr."""
    plain_console(stderr=True).print(text, soft_wrap=True)
