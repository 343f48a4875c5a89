"""Prompts -> activations of every layer. The only file that imports nnsight."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from nnsight import NNsight, save
from torch import Tensor

from interp.inputs import Prompt, collate
from interp.vlm import LLM, VLM


def _module_path(model: torch.nn.Module, module: torch.nn.Module) -> str:
    return next(path for path, candidate in model.named_modules() if candidate is module)


def last_resid_post(model: VLM | LLM, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt layer d_model"]:
    """`resid_post` of every layer at the last prompt token, for one batch of prompts.

    The last layer's state is the block's output, before the final norm (Hugging Face's own
    `hidden_states[-1]` comes after it).
    """
    batch = collate(model, prompts)
    traced = NNsight(model.model)
    blocks = traced.get(_module_path(model.model, model.blocks))
    with torch.no_grad():
        with traced.trace(**batch, use_cache=False) as tracer:
            resid = save([])
            for block in blocks:
                resid.append(block.output[:, -1])
            tracer.stop()
    return torch.stack(resid, dim=1).float().cpu()


def trace(
    model: VLM | LLM,
    prompts: Sequence[Prompt],
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda n_prompts: None,
) -> xr.Dataset:
    """`resid_post` of every layer at token `last`.

    Args:
        model: traced as it is; its weights and outputs are left alone.
        prompts: any mixture of modalities; batches are formed within each.
        batch_size: prompts in one forward pass.
        advance: called with the number of prompts done after each batch.

    Returns:
        Variable `resid_post` with dimensions `prompt layer token d_model` in float32, and coordinates for what
        is known of each prompt: `text harmful category pair modality`.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].picture is not None)
    states: dict[int, np.ndarray] = {}
    for pictured in (False, True):
        chosen = [i for i in order if (prompts[i].picture is not None) == pictured]
        for start in range(0, len(chosen), batch_size):
            rows = chosen[start : start + batch_size]
            resid = last_resid_post(model, [prompts[i] for i in rows]).numpy()
            states.update(zip(rows, resid, strict=True))
            advance(len(rows))
    resid = np.stack([states[i] for i in range(len(prompts))])
    return as_dataset(resid[:, :, None], prompts)


def as_dataset(resid: Float[np.ndarray, "prompt layer token d_model"], prompts: Sequence[Prompt]) -> xr.Dataset:
    """The states with the labels that everything downstream selects by."""
    known = {
        "text": [p.query.text for p in prompts],
        "harmful": [p.query.harmful for p in prompts],
        "category": [p.query.category for p in prompts],
        "pair": [p.query.pair or "" for p in prompts],
        "modality": [p.modality for p in prompts],
    }
    return xr.Dataset(
        {"resid_post": (("prompt", "layer", "token", "d_model"), resid)},
        coords={"layer": np.arange(resid.shape[1]), "token": np.array(["last"], dtype=object)}
        | {
            name: ("prompt", np.array(values, dtype=object if name != "harmful" else bool))
            for name, values in known.items()
        },
    )
