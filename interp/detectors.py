"""Detectors of harmful requests that read the model: a score per prompt, higher where it looks more harmful.

Detectors that are fitted on states and labels alone are in `probes.detectors`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from scipy.integrate import trapezoid
from torch import Tensor

from interp.batches import batches, in_halves
from interp.forced import log_probabilities
from interp.guard import Guard
from interp.inputs import collate, text_prompt
from interp.projection import coordinates
from interp.prompt_text import decode
from interp.token_positions import instruction_positions
from interp.vlm import LLM, VLM

__all__ = [
    "first_tokens",
    "gate_scores",
    "hidden_detect",
    "most_aware_layers",
    "perplexity_of_texts",
    "refusal_cosines",
]


def first_tokens(model: VLM | LLM, words: Sequence[str]) -> list[int]:
    """Return the first token of each word, as it stands at the beginning of a text."""
    return [model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]


@torch.no_grad()
def refusal_cosines(model: VLM | LLM, states: xr.Dataset, tokens: Sequence[int]) -> Float[np.ndarray, "prompt layer"]:
    """Compute how much each layer's state reads like a refusal: what HiddenDetect adds up over layers.

    It is the cosine between the logits of the state at the last prompt token, read through the final norm and the
    unembedding, and a vector that is 1 at the refusal tokens (Jiang et al., arXiv:2502.14744, equation 3).

    Args:
        model: its final norm and unembedding are used.
        states: traced prompts, with site `resid_post` and token `last`.
        tokens: refusal tokens; see `first_tokens`.

    Raises:
        ValueError: there is no token.
    """
    if not tokens:
        raise ValueError("no refusal token; expected at least one, see `first_tokens`")
    resid = states.resid_post.sel(token="last").transpose("prompt", "layer", "d_model")
    norm = next(model.final_norm.parameters())
    ids, cosines = torch.tensor(sorted(set(tokens))), []
    for state in torch.from_numpy(resid.values):
        logits = model.unembedding(model.final_norm(state.to(norm.device, model.model.dtype))).float().cpu()
        cosines.append(logits[:, ids].sum(-1) / (logits.norm(dim=-1) * len(ids) ** 0.5))
    return torch.stack(cosines).double().numpy()


def hidden_detect(
    model: VLM | LLM, states: xr.Dataset, tokens: Sequence[int], layers: Sequence[int]
) -> Float[np.ndarray, " prompt"]:
    """Compute HiddenDetect's score: higher where the states read like a refusal.

    Jiang et al., arXiv:2502.14744, with the layers counted as in its released code: `refusal_cosines`, summed over
    layers by the trapezoid rule. The last layer, which that code norms twice, is not normed twice here.

    Args:
        model: its final norm and unembedding are used.
        states: traced prompts, with site `resid_post` and token `last`.
        tokens: refusal tokens; see `first_tokens`.
        layers: decoder blocks in ascending order; in the paper those of `most_aware_layers`.

    Raises:
        ValueError: no token, or fewer than two layers.
    """
    if not tokens or len(layers) < 2:
        raise ValueError(f"{len(tokens)} tokens and {len(layers)} layers; expected a token and two layers at least")
    return trapezoid(refusal_cosines(model, states.sel(layer=list(layers)), tokens))


def most_aware_layers(
    cosines: Float[np.ndarray, "prompt layer"], is_harmful: Bool[np.ndarray, " prompt"]
) -> tuple[int, int]:
    """Return the first and the last of HiddenDetect's most safety-aware layers, by position.

    These are the layers at which the mean cosine of harmful prompts exceeds that of harmless ones by more than at the
    last layer, as in its released code; of fewer than two such layers, all are taken.

    Args:
        cosines: see `refusal_cosines`.
        is_harmful: labels of a few prompts that are not tested.

    Raises:
        ValueError: a class is missing.
    """
    if is_harmful.all() or not is_harmful.any():
        raise ValueError(f"layers are chosen on both classes; got {is_harmful.sum()} harmful of {len(is_harmful)}")
    gap = cosines[is_harmful].mean(0) - cosines[~is_harmful].mean(0)
    aware = np.flatnonzero(gap > gap[-1])
    return (int(aware[0]), int(aware[-1])) if len(aware) > 1 else (0, len(gap) - 1)


def gate_scores(guard: Guard, states: Float[Tensor, "prompt layer d_model"]) -> Float[np.ndarray, " prompt"]:
    """Return what a guard's gate compares with its border: the gate is open where this is above 0.

    Args:
        guard: its gate is read at its first layer; `sign`, which is open if it opens at any, at all of its layers.
        states: those of the reference texts.

    Raises:
        ValueError: the gate is `always`, which compares nothing.
    """
    if guard.gate == "always":
        raise ValueError("the gate `always` decides nothing; expected sign, threshold or probe")
    if guard.gate == "probe":
        return guard.probe.margins(states[:, guard.layers[0]].double()).numpy()
    layers = guard.layers if guard.gate == "sign" else guard.layers[:1]
    border = guard.threshold if guard.gate == "threshold" else 0.0
    own = [coordinates(states[:, layer].double(), guard.basis(layer).double())[:, 0] for layer in layers]
    return torch.stack(own).amax(0).numpy() - border


@torch.no_grad()
def perplexity_of_texts(model: VLM | LLM, texts: Sequence[str], batch_size: int = 16) -> Float[np.ndarray, " text"]:
    """Compute how unlikely the model finds each text as a user's turn: mean negative log-likelihood, nats per token.

    The perplexity filter of Alon & Kamfonas (arXiv:2308.14132), whose score is the exponential of this, with the model
    itself in place of GPT-2. It counts the tokens of the text, after all of the chat template that comes before.

    Args:
        model: reads the texts without a picture.
        texts: one token at least each.
        batch_size: texts in a batch.

    Raises:
        ModelError: the tokenizer changes a text, so that it can't be located in its prompt.
    """
    prompts, found = [text_prompt(text) for text in texts], {}

    def score(rows: list[int]) -> Float[Tensor, " row"]:
        own = [prompts[i] for i in rows]
        batch = collate(model, own)
        ids, mask = batch["input_ids"].cpu(), batch["attention_mask"].cpu().bool()
        last = instruction_positions(model, own, ids)
        first = [
            _first_position(model, prompt.text, row, int(end)) for prompt, row, end in zip(own, ids, last, strict=True)
        ]
        place = torch.arange(ids.shape[1])
        is_text = mask & (place <= last[:, None]) & (place >= torch.tensor(first)[:, None])
        # The first token of all is predicted by none.
        is_text[:, 0] = False
        logits = model.model(**batch, use_cache=False).logits
        nats = [
            -log_probabilities(row[:-1][chosen[1:]]).gather(-1, tokens[1:][chosen[1:], None]).mean()
            for row, tokens, chosen in zip(logits.cpu(), ids, is_text, strict=True)
        ]
        return torch.stack(nats)

    for rows, values in in_halves(batches(prompts, batch_size), score):
        found |= dict(zip(rows, values.tolist(), strict=True))
    return np.array([found[i] for i in range(len(texts))])


def _first_position(model: VLM | LLM, text: str, ids: Int[Tensor, " pos"], last: int) -> int:
    """Return the position at which a text begins that ends at `last`: going back, the first that reads all of it."""
    n_characters = len(text.strip())
    places = range(last, -1, -1)
    return next((first for first in places if len(decode(model, ids[first : last + 1]).strip()) >= n_characters), 0)
