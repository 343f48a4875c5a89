"""Attention of the last prompt token to the tokens of a picture, and attention rollout."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BatchFeature, PreTrainedModel

from interp.errors import ModelError
from interp.families import decoder_blocks
from interp.lens import structural_copy
from interp.vlm import VLM

READ = ("attention", "rollout")
"""Measures of what is read, whatever it changes."""


def eager_copy(vlm: VLM) -> PreTrainedModel:
    """Return a copy that shares the weights and computes its attention weights, which fused kernels do not.

    Raises:
        ModelError: the family has no such attention.
    """
    # Of a copy, since the implementation is a setting of the whole model.
    copied = structural_copy(vlm.model)
    try:
        copied.set_attn_implementation("eager")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"attention of {vlm.name!r} can't be read ({error}); leave out {' and '.join(READ)}") from None
    return copied


@torch.no_grad()
def attention_to(
    vlm: VLM, eager: PreTrainedModel, batch: BatchFeature, image: Int[Tensor, " token"]
) -> dict[str, Float[np.ndarray, "layer token"]]:
    """Return the last token's attention to image tokens and its rollout, for every layer.

    Args:
        vlm: the model, for its name.
        eager: its `eager_copy`.
        batch: a prompt as a batch of one.
        image: positions of the image tokens.

    Raises:
        ModelError: a layer has no attention weights, as layers with linear attention.
    """
    n, image = batch["input_ids"].shape[1], image.cpu()
    attended, rolled = [], []
    total = torch.eye(n)

    def read(module: nn.Module, args: tuple, output: tuple | Tensor) -> None:
        nonlocal total
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(weights, Tensor) or weights.shape[-2:] != (n, n):
            raise ModelError(
                f"{type(module).__name__} of {vlm.name!r} has no attention weights; leave out {' and '.join(READ)}"
            )
        # Summed up layer by layer: the weights of all layers and heads together would take gigabytes.
        mean = weights[0].float().mean(0).cpu()
        # Rollout: half of each state is what attention brings, half stays where it was, layer upon layer.
        total = (mean + torch.eye(n)) / 2 @ total
        attended.append(mean[-1, image])
        rolled.append(total[-1, image])

    with hooked((_attention_module(block), read) for block in decoder_blocks(eager)):
        eager(**batch, use_cache=False)
    return {"attention": torch.stack(attended).numpy(), "rollout": torch.stack(rolled).numpy()}


def _attention_module(block: nn.Module) -> nn.Module:
    parts = dict(block.named_children())
    # Names differ by family (self_attn, attention); norms before attention carry its name as well.
    found = [part for name, part in parts.items() if ("attn" in name or "attention" in name) and "norm" not in name]
    if not found:
        raise ModelError(f"{type(block).__name__} has no attention among its parts {', '.join(parts)}")
    return found[0]


@contextmanager
def hooked(pairs: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Register forward hooks on modules while the context is open."""
    handles = [module.register_forward_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
