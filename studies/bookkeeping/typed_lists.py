"""Lists as they are typed: `a,b` and `0,5,8-12`."""

from interp import TraceError


def words(text: str) -> tuple[str, ...]:
    """From `a,b`."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(layers: str) -> list[int]:
    """From `0,5,8-12`.

    Raises:
        TraceError: no numbers.
    """
    found = []
    for part in words(layers):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or part == first)):
            raise TraceError(f"layers {layers!r}; expected numbers and ranges, as 0,5,8-12")
        found += range(int(first), int(last or first) + 1)
    return found
