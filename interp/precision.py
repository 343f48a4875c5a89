"""The precision in which a model computes, which decides how near two of its results have to be."""

import torch
from torch import nn
from transformers import PreTrainedModel

ROUNDING = {"float32": 1e-5, "16 bits": 2e-2, "quantised": 1e-1}
"""Difference between results of the same sum in another order, relative to the largest value."""
PLAIN = (torch.Tensor, nn.Parameter)


def precision_of(model: PreTrainedModel) -> str:
    """Return a key of `ROUNDING`.

    Quantised layers round activations by what else is in the batch, so their results depend on it far more than those
    of 16 bits do.
    """
    if is_quantised(model):
        return "quantised"
    return "float32" if model.dtype == torch.float32 else "16 bits"


def is_quantised(model: PreTrainedModel) -> bool:
    """Return whether weights are kept in fewer bits than they compute in, by whatever library."""
    if getattr(model, "quantization_method", None) or getattr(model.config, "quantization_config", None):
        return True
    # torchao replaces weights by tensors of its own classes, bitsandbytes by parameters of its own.
    return any(
        type(weight) not in PLAIN or not (weight.is_floating_point() or weight.is_complex())
        for weight in model.parameters()
    )
