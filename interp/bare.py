"""Whether a model is guarded, and how to run it as if it were not."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

_BARE: WeakSet[nn.Module] = WeakSet()
"""Models that are run bare just now: every guard lets such a pass go by."""
_GUARDED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Models with guards on them just now, and how many."""


@contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """The model as if no guard were on it, for the time of the block."""
    is_outermost = model not in _BARE
    _BARE.add(model)
    try:
        yield
    finally:
        if is_outermost:
            _BARE.discard(model)


def is_guarded(model: nn.Module) -> bool:
    """Whether a guard is on the model: then a prompt must not be cut in two, for its places are counted by passes."""
    return _GUARDED.get(model, 0) > 0


@contextmanager
def marked_as_guarded(model: nn.Module) -> Iterator[None]:
    """For the time of the block."""
    _GUARDED[model] = _GUARDED.get(model, 0) + 1
    try:
        yield
    finally:
        _GUARDED[model] -= 1
