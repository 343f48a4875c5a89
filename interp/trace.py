"""Prompts -> activations of every layer. The only file that imports nnsight."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from nnsight import NNsight, save
from torch import Tensor

from interp.inputs import Prompt, collate, in_batches, labels
from interp.vlm import LLM, VLM


def _module_path(model: torch.nn.Module, module: torch.nn.Module) -> str:
    return next(path for path, candidate in model.named_modules() if candidate is module)


def resid_post(
    model: VLM | LLM, batch: Mapping[str, Tensor], positions: Int[Tensor, "batch read"] | int = -1
) -> Float[Tensor, "batch layer ..."]:
    """`resid_post` of every layer for one batch, in float32 on the CPU.

    The last layer's state is the block's output, before the final norm (Hugging Face's own
    `hidden_states[-1]` comes after it).

    Args:
        model: traced as it is.
        batch: what the model takes, left-padded.
        positions: one for all rows, or several for each row; by default the last.

    Returns:
        `batch layer d_model` for one position, `batch layer read d_model` for several.
    """
    with warnings.catch_warnings():
        # It gives submodules of that name another one; ours are asked for by their own output.
        warnings.filterwarnings("ignore", message=".* has a submodule named 'output'")
        traced = NNsight(model.model)
    blocks = traced.get(_module_path(model.model, model.blocks))
    if isinstance(positions, Tensor):
        rows = torch.arange(len(positions))[:, None]
        select = lambda state: state[rows.to(state.device), positions.to(state.device)]  # noqa: E731
    else:
        select = lambda state: state[:, positions]  # noqa: E731
    skipped = model.skipped_layers(batch)
    with torch.no_grad():
        with traced.trace(**batch, use_cache=False) as tracer:
            resid = save([])
            for layer, block in enumerate(blocks):
                # A block that is passed by leaves the state of the one before it.
                resid.append(resid[-1] if layer in skipped else select(block.output))
            tracer.stop()
    return torch.stack([state.cpu() for state in resid], dim=1).float()


def last_resid_post(model: VLM | LLM, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt layer d_model"]:
    """`resid_post` of every layer at the last prompt token, for one batch of prompts."""
    return resid_post(model, collate(model, prompts))


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
    run = lambda rows: {"resid": last_resid_post(model, [prompts[i] for i in rows]).numpy()}  # noqa: E731
    resid = in_batches(prompts, batch_size, run, advance)["resid"]
    return as_dataset(resid[:, :, None], prompts)


def as_dataset(resid: Float[np.ndarray, "prompt layer token d_model"], prompts: Sequence[Prompt]) -> xr.Dataset:
    """The states with the labels that everything downstream selects by."""
    places = {"layer": np.arange(resid.shape[1]), "token": np.array(["last"], dtype=object)}
    return xr.Dataset({"resid_post": (("prompt", "layer", "token", "d_model"), resid)}, coords=places | labels(prompts))
