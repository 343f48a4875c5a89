"""Reading a model as it answers: without dropout, and without the second forward pass of gradient checkpointing."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn off training mode inside the block; every module gets its own mode back.

    Args:
        model: may be in training, as a whole or in parts.
    """
    # Not `model.train()` afterwards: parts may be frozen in evaluation mode.
    in_training = [module for module in model.modules() if module.training]
    for module in in_training:
        module.training = False
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
