"""Detectors of harmful requests that read a model's states through its own unembedding."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from scipy.integrate import trapezoid

from interp.vlm import LLM, VLM

__all__ = ["first_tokens", "hidden_detect"]


def first_tokens(model: VLM | LLM, words: Sequence[str]) -> list[int]:
    """Return the first token of each word, as it stands at the beginning of a text."""
    return [model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]


@torch.no_grad()
def hidden_detect(
    model: VLM | LLM, states: xr.Dataset, tokens: Sequence[int], layers: Sequence[int]
) -> Float[np.ndarray, " prompt"]:
    """Compute HiddenDetect's score: higher where the states read like a refusal.

    Jiang et al., arXiv:2502.14744, with the layers counted as in its released code: at the last prompt token, the
    cosine between the logits of a layer's state and a vector that is 1 at the refusal tokens, summed over layers by the
    trapezoid rule. The last layer, which that code norms twice, is not normed twice here.

    Args:
        model: its final norm and unembedding are used.
        states: traced prompts, with site `resid_post` and token `last`.
        tokens: refusal tokens; see `first_tokens`.
        layers: decoder blocks in ascending order; in the paper those that differ most between harmful and harmless.

    Raises:
        ValueError: no token, or fewer than two layers.
    """
    if not tokens or len(layers) < 2:
        raise ValueError(f"{len(tokens)} tokens and {len(layers)} layers; expected a token and two layers at least")
    resid = states.resid_post.sel(layer=list(layers), token="last").transpose("prompt", "layer", "d_model")
    norm = next(model.final_norm.parameters())
    ids, scores = torch.tensor(sorted(set(tokens))), []
    for state in torch.from_numpy(resid.values):
        logits = model.unembedding(model.final_norm(state.to(norm.device, model.model.dtype))).float().cpu()
        along = logits[:, ids].sum(-1) / (logits.norm(dim=-1) * len(ids) ** 0.5)
        scores.append(trapezoid(along.double().numpy()))
    return np.array(scores)
