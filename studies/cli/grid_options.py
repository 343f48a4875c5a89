"""The axes of a sweep's grid, as they are typed on the command line."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from studies.cli.options import numbers, words
from studies.guards.sweep_grid import Grid, GridError

OWN = "own"
"""Typed for directions of the layer at which they are applied."""


def grid_from_options(typed: Mapping[str, str], base: Grid) -> Grid:
    """Read the axes of a grid, such as `substitute,ablate` for rules.

    Args:
        typed: text of each axis by name.
        base: grid with the values of all other axes.

    Raises:
        GridError: a number is invalid; or see `Grid`.
    """
    axes = {}
    for axis, text in typed.items():
        try:
            axes[axis] = PARSERS.get(axis, words)(text)
        except ValueError as error:
            raise GridError(f"{axis} {text!r}: {error}") from error
    return replace(base, **axes)


def _layer_words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _direction_layers(text: str) -> tuple[int | None, ...]:
    return tuple(layer for word in words(text) for layer in ([None] if word == OWN else numbers(word)))


def _ranks(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in words(text))


def _strengths(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in words(text))


PARSERS: dict[str, Callable[[str], tuple]] = {
    "layers": _layer_words,
    "direction_layers": _direction_layers,
    "ranks": _ranks,
    "strengths": _strengths,
}
"""Readers of the axes that are not lists of words."""
