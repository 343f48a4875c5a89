"""Errors about models, and how error messages are shortened."""

import torch

__all__ = [
    "ModelError",
    "NO_NUMBERS",
    "first_line",
    "is_out_of_memory",
]

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
