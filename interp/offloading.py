"""Weights that are not in memory: kept elsewhere by accelerate, or on a server."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel


def is_on_server(model: PreTrainedModel) -> bool:
    """Return whether the weights are not on this machine, so that the model can't be run here."""
    return model.device.type == "meta" and not offloaded_weights(model)


def offloaded_weights(model: nn.Module) -> dict[str, Callable[[], torch.Tensor]]:
    """Return what reads each weight that accelerate keeps elsewhere, by its name in the model's state."""
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for prefix, module in model.named_modules():
        hooks = getattr(getattr(module, "_hf_hook", None), "hooks", None) or (getattr(module, "_hf_hook", None),)
        for hook in hooks:
            weights = getattr(hook, "weights_map", None)
            for name in module.state_dict() if weights is not None else ():
                full = f"{prefix}.{name}" if prefix else name
                if full not in found:
                    found[full] = partial(weights.__getitem__, name)
    return found
