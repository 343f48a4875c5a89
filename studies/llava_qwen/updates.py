"""Low-rank updates of an LLM (LoRA, arXiv:2106.09685): W + B A, on queries, values and outputs of its attention."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

PROJECTIONS = ("q_proj", "v_proj", "o_proj")


class LowRank(nn.Module):
    """An update of one weight; nothing at first, since B is 0."""

    def __init__(self, weight: Float[Tensor, "out in"], rank: int):
        super().__init__()
        n_out, n_in = weight.shape
        self.down = nn.Parameter(torch.randn(rank, n_in) / rank)
        self.up = nn.Parameter(torch.zeros(n_out, rank))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return weight + (self.up @ self.down).to(weight.dtype)


def updated_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the layers with updates of an LLM, or of a VLM's LLM, by names without dots such as `3_q_proj`."""
    inner = model.model
    blocks = (inner.language_model if hasattr(inner, "language_model") else inner).layers
    return {
        f"{layer}_{name}": getattr(block.self_attn, name) for layer, block in enumerate(blocks) for name in PROJECTIONS
    }


@contextmanager
def updates_on(model: PreTrainedModel, rank: int) -> Iterator[nn.ModuleDict]:
    """Put new updates on the LLM, and take them off at the end: its own weights stay as they are."""
    layers = updated_layers(model)
    updates = nn.ModuleDict({name: LowRank(layer.weight, rank) for name, layer in layers.items()})
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", updates[name])
    try:
        yield updates
    finally:
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


@torch.no_grad()
def add_updates(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Add saved updates to the weights, in float32.

    Args:
        model: an LLM or a VLM, changed in place.
        tensors: state of the updates, by name, as `updates_on` yields them; none change nothing.
    """
    for name, layer in updated_layers(model).items() if tensors else ():
        down, up = (tensors[f"{name}.{part}"].float() for part in ("down", "up"))
        layer.weight.copy_(layer.weight.float() + up @ down)
