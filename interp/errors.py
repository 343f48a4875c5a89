"""Errors about models, and how error messages are shortened."""

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = [
    "ModelError",
    "NO_NUMBERS",
    "first_line",
    "if_it_fits",
    "is_out_of_memory",
]

T = TypeVar("T")

NO_NUMBERS = "its weights are damaged, or its numbers are too large for their precision; load it again, or in float32"
"""Cause and advice in messages about states that are not finite."""


class ModelError(ValueError):
    """Raised when a model can't be loaded or lacks what is needed of it."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out, on the host or on a GPU."""
    words = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)
    )


def if_it_fits(run: Callable[[], T], n_prompts: int, model: str = "") -> T | None:
    """Return the result of a pass, or None if memory ran out, so that fewer prompts can be tried.

    The caller tries again outside the handler, where the error no longer keeps the tensors of the failed pass alive.

    Args:
        run: the pass; its result is not None.
        n_prompts: prompts in the pass.
        model: name of the model, for the error.

    Raises:
        ModelError: a single prompt does not fit.
    """
    try:
        return run()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if n_prompts == 1:
            beside = f" together with {model!r}" if model else ""
            raise ModelError(f"one prompt does not fit into memory{beside}: {first_line(error)}") from error
        return None
