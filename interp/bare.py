"""Registers which models are guarded, and which run bare for the moment, as if no guard were on them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary, WeakSet

from torch import nn


class _Bare(threading.local):
    """Models in a bare pass of this thread: every guard ignores it, and none of those of other threads."""

    def __init__(self):
        self.models: WeakSet[nn.Module] = WeakSet()


_BARE = _Bare()
_GUARDED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Models with guards on them, and the number of guards."""


@contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """Run the model as if no guard were on it, inside the block."""
    is_outermost = model not in _BARE.models
    _BARE.models.add(model)
    try:
        yield
    finally:
        if is_outermost:
            _BARE.models.discard(model)


def is_bare(model: nn.Module) -> bool:
    """Return whether the model is inside a `bare` block."""
    return model in _BARE.models


def is_guarded(model: nn.Module) -> bool:
    """Return whether a guard is on the model.

    The prompts of a guarded model must not be cut in two, because its guards count token positions by passes.
    """
    return _GUARDED.get(model, 0) > 0


@contextmanager
def marked_as_guarded(model: nn.Module) -> Iterator[None]:
    """Count one more guard on the model, inside the block."""
    _GUARDED[model] = _GUARDED.get(model, 0) + 1
    try:
        yield
    finally:
        _GUARDED[model] -= 1
