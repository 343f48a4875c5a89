"""Suggests the name that was meant in place of one that does not exist."""

from collections.abc import Iterable
from difflib import get_close_matches

CLOSE = 0.6
"""Least similarity, from 0 to 1, of a name that is suggested."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest of some names, or nothing if none is near. Case doesn't matter."""
    by_letters = {_letters(own): own for own in names if own}
    close = get_close_matches(_letters(name), list(by_letters), 1, CLOSE)
    return f"; did you mean {by_letters[close[0]]!r}?" if close else ""


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
