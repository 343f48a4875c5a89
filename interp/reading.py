"""One pass through a model, and what is read in it. The only file that imports nnsight."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from einops import einsum
from jaxtyping import Float, Int
from nnsight import NNsight, save
from torch import Tensor, nn
from transformers import Cache
from transformers.utils import ModelOutput

from interp import families
from interp.inputs import Prompt, collate
from interp.vlm import LLM, VLM

DECODER_SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""In the order in which a block runs."""
VISION_SITES = ("vision_resid_post", "projector_out")
SITES = (*DECODER_SITES, *VISION_SITES)


@dataclass(frozen=True)
class Reading:
    """What is taken out of one pass, and reduced on the device."""

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    picks: Int[Tensor, "batch pick"]
    """Single positions of each row."""
    weights: Float[Tensor, "batch sum pos"] | None = None
    """Sums over positions, with these weights."""

    @property
    def decoder_sites(self) -> tuple[str, ...]:
        return tuple(site for site in DECODER_SITES if site in self.sites)

    def take(self, state: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch token d_model"]:
        """Picks, then sums, in float32."""
        rows = torch.arange(len(self.picks), device=state.device)[:, None]
        taken = state[rows, self.picks.to(state.device)].float()
        if self.weights is None:
            return taken
        weights = self.weights.to(state.device)
        # Padding may hold anything, even what is no number.
        state = state.float().masked_fill((weights == 0).all(1)[..., None], 0)
        return torch.cat([taken, einsum(state, weights, "batch pos d, batch sum pos -> batch sum d")], dim=1)


class _Traceable:
    """A model as nnsight sees it, and its modules by the way that nnsight asks for them."""

    def __init__(self, model: nn.Module):
        with warnings.catch_warnings():
            # It gives submodules of that name another one; ours are asked for by their own output.
            warnings.filterwarnings("ignore", message=".* has a submodule named 'output'")
            self.model = NNsight(model)
        self._paths = {module: path for path, module in model.named_modules()}

    def __getitem__(self, module: nn.Module):
        return self.model.get(self._paths[module])


_TRACEABLE: WeakKeyDictionary[VLM | LLM, _Traceable] = WeakKeyDictionary()


def _traceable(model: VLM | LLM) -> _Traceable:
    """Made once for each model: it walks through every module."""
    if model not in _TRACEABLE:
        _TRACEABLE[model] = _Traceable(model.model)
    return _TRACEABLE[model]


@torch.no_grad()
def read(
    model: VLM | LLM, batch: Mapping[str, Tensor], reading: Reading, cache: Cache | None = None
) -> dict[str, Float[Tensor, "batch ..."]]:
    """One traced pass, which stops after the last thing that is asked for.

    Args:
        model: left as it is.
        batch: what the model takes.
        reading: sites, layers and positions.
        cache: keys and values that the pass continues and fills; none by default.

    Returns:
        In float32 on the CPU: `batch layer token d_model` for the decoder's sites. Vision blocks and projector are read
        of a batch of one prompt: `1 vision_layer d_vision` and `1 d_model`, means over all their tokens.
    """
    traced, skipped = _traceable(model), model.skipped_layers(batch)
    # A block that is passed by leaves the state of the one before it.
    source = {layer: max(i for i in range(layer + 1) if i not in skipped) for layer in reading.layers}
    ran = sorted(set(source.values())) if reading.decoder_sites else []
    wants_parts = bool({"attn_out", "mlp_out"} & set(reading.sites))
    parts = {layer: families.sublayers(model.blocks[layer]) if wants_parts else () for layer in ran}
    vision = model.vision_blocks if "vision_resid_post" in reading.sites else ()
    kwargs = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
    with traced.model.trace(**batch, **kwargs) as tracer:
        seen, pictures = save({layer: {} for layer in ran}), save({site: [] for site in VISION_SITES})
        for block in vision:
            pictures["vision_resid_post"].append(_mean(traced[block].output))
        if "projector_out" in reading.sites:
            pictures["projector_out"].append(_mean(traced[model.projector].output))
        for layer in ran:
            block = traced[model.blocks[layer]]
            if "resid_pre" in reading.sites:
                seen[layer]["resid_pre"] = reading.take(block.input)
            for site, part in zip(("attn_out", "mlp_out"), parts[layer], strict=False):
                if site in reading.sites:
                    seen[layer][site] = reading.take(_hidden(traced[part].output))
            seen[layer]["resid_post"] = reading.take(_hidden(block.output))
        tracer.stop()
    states = {
        site: torch.stack([_of_layer(site, layer, seen[at], layer == at) for layer, at in source.items()], dim=1)
        for site in reading.decoder_sites
    }
    means = {site: torch.stack(taken, dim=1) for site, taken in pictures.items() if taken}
    if "projector_out" in means:
        means["projector_out"] = means["projector_out"][:, 0]
    return {site: values.cpu() for site, values in (states | means).items()}


def _of_layer(site: str, layer: int, seen: Mapping[str, Tensor], has_run: bool) -> Tensor:
    """Of a block that did not run: it added nothing."""
    if has_run:
        return seen[site]
    return torch.zeros_like(seen["resid_post"]) if site in ("attn_out", "mlp_out") else seen["resid_post"]


def _hidden(output: Tensor | tuple | ModelOutput) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _mean(output: Tensor | tuple | ModelOutput) -> Float[Tensor, "1 d"]:
    return _hidden(output).float().flatten(0, -2).mean(0, keepdim=True)


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
    picks = positions if isinstance(positions, Tensor) else torch.full((len(batch["input_ids"]), 1), positions)
    states = read(model, batch, Reading(("resid_post",), tuple(range(model.n_layers)), picks))["resid_post"]
    return states if isinstance(positions, Tensor) else states[:, :, 0]


def last_resid_post(model: VLM | LLM, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt layer d_model"]:
    """`resid_post` of every layer at the last prompt token, for one batch of prompts."""
    return resid_post(model, collate(model, prompts))
