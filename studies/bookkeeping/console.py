"""The console that results and warnings are printed on."""

from rich.console import Console


def plain_console(stderr: bool = False) -> Console:
    """Return a console that prints what it is given.

    Names of folders, models and requests may hold brackets, which rich would take for markup, and raise errors.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
