"""The one door through which JSON from files comes in."""

import json

__all__ = [
    "parse_json",
]


def parse_json(text: str | bytes) -> object:
    """Return what JSON says.

    Raises:
        ValueError: it is not JSON, nested too deeply, holds a number of thousands of digits, or names an entry twice,
            where other readers would take the first or the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    named = dict(pairs)
    if len(named) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"names {twice!r} twice")
    return named
