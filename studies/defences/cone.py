"""Vectors of a refusal cone, from a file."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from interp import LLM, VLM
from studies.experiment.config import ConfigError

NAME = "basis"
"""Name of the tensor, if the file holds several."""


def read_cone(path: str | Path) -> Tensor:
    """Read the vectors of a cone: `rank d_model`, or `layer rank d_model`.

    Raises:
        ConfigError: the file can't be read as safetensors, or holds no such tensor.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cone {str(path)!r} can't be read ({error}); expected a file of safetensors") from None
    vectors = tensors.get(NAME, next(iter(tensors.values())) if len(tensors) == 1 else None)
    if vectors is None or vectors.dim() not in (2, 3) or not vectors.is_floating_point():
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
        raise ConfigError(
            f"cone {str(path)!r} holds {shapes}; expected one tensor, or one called {NAME!r}, of shape "
            "(rank, d_model) or (layer, rank, d_model)"
        )
    return vectors.to(torch.float32)


def check_cone(cone: Tensor, vlm: VLM | LLM) -> None:
    """Check that vectors are those of a model, before it is run.

    Raises:
        ConfigError: they have another width or number of layers, are not finite, or depend on each other.
    """
    expected = (vlm.n_layers, vlm.d_model)
    if cone.shape[-1] != vlm.d_model or (cone.dim() == 3 and len(cone) != vlm.n_layers):
        raise ConfigError(
            f"a cone of shape {tuple(cone.shape)} for {vlm.name!r}, which has {expected[0]} layers of width "
            f"{expected[1]}; expected vectors that were found on this model"
        )
    if not cone.isfinite().all() or (torch.linalg.matrix_rank(cone.double()) < cone.shape[-2]).any():
        raise ConfigError(f"the {cone.shape[-2]} vectors of the cone depend on each other, or are not finite")
