"""One pass through a model, and what is read in it. The only file that imports nnsight."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from nnsight import Envoy, NNsight, TransformersModel, save
from torch import Tensor, nn
from transformers import Cache

from interp import families
from interp.bare import is_guarded
from interp.families import ModelError
from interp.inputs import Prompt, collate
from interp.vlm import LLM, VLM

DECODER_SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""In the order in which a block runs."""
VISION_SITES = ("vision_resid_post", "projector_out")
SITES = (*DECODER_SITES, *VISION_SITES)

Remote = bool | str
"""True for NDIF, `local` for a simulation of it here, False for neither."""


@dataclass(frozen=True)
class PassSpec:
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


class _Traceable:
    """A model as nnsight sees it, and its modules by the way that nnsight asks for them."""

    def __init__(self, model: nn.Module, seen_by_nnsight: Envoy):
        self.model = seen_by_nnsight
        self.paths = {module: path for path, module in model.named_modules()}


_TRACEABLE: WeakKeyDictionary[VLM | LLM, dict[Remote, _Traceable]] = WeakKeyDictionary()


def _traceable(model: VLM | LLM, remote: Remote) -> _Traceable:
    """Made once for each model: it walks through every module."""
    made = _TRACEABLE.setdefault(model, {})
    if remote not in made:
        with warnings.catch_warnings():
            # It gives submodules of that name another one; ours are asked for by their own output.
            warnings.filterwarnings("ignore", message=".* has a submodule named 'output'")
            made[remote] = _Traceable(model.model, _on_a_server(model, remote) if remote else NNsight(model.model))
    return made[remote]


def _on_a_server(model: VLM | LLM, remote: Remote) -> Envoy:
    """The model under the name that the server knows it by; without weights here, but for a simulation.

    Raises:
        ModelError: it was made by hand, and has no such name.
    """
    if model.loading is None:
        raise ModelError(f"a server knows no {model.name!r}, made by hand: load it by its name with from_pretrained")
    task = "image-text-to-text" if isinstance(model, VLM) else "text-generation"
    told = {key: model.loading[key] for key in ("revision", "trust_remote_code") if model.loading[key]}
    if remote == "local":
        told |= {"dispatch": True, "dtype": model.model.dtype}
    return TransformersModel(str(model.loading["name_or_path"]), task=task, **told)


def _final(model: VLM | LLM, layer: int, skipped: Collection[int]) -> tuple[nn.Module, str]:
    """Where the state of a layer is final.

    nnsight takes what a block's own code returns; a guard's hook comes behind that. So on a guarded model it is what
    the next block takes in; but not with DeepStack, which adds to image positions in between: there a guard changes
    what the next block takes in, and the state is read before that.
    """
    if not is_guarded(model.model) or (isinstance(model, VLM) and layer in model.deepstack_layers):
        return model.blocks[layer], "output"
    later = [block for i, block in enumerate(model.blocks) if i > layer and i not in skipped]
    return (later[0] if later else families.final_norm(model.model)), "input"


def _places(
    model: VLM | LLM, reading: PassSpec, ran: Sequence[int], skipped: Collection[int]
) -> Iterator[tuple[tuple, nn.Module, str]]:
    """What is read, in the order in which it comes by: its key, its module, and the side of it."""
    if "vision_resid_post" in reading.sites:
        yield from ((("vision_resid_post", i), block, "mean") for i, block in enumerate(model.vision_blocks))
    if "projector_out" in reading.sites:
        yield ("projector_out", 0), model.projector, "mean"
    for layer in ran:
        block = model.blocks[layer]
        if "resid_pre" in reading.sites:
            yield ("resid_pre", layer), block, "input"
        if {"attn_out", "mlp_out"} & set(reading.sites):
            for site, part in zip(("attn_out", "mlp_out"), families.sublayers(block), strict=True):
                if site in reading.sites:
                    yield (site, layer), part, "output"
        yield ("resid_post", layer), *_final(model, layer, skipped)


@torch.no_grad()
def read(
    model: VLM | LLM,
    batch: Mapping[str, Tensor],
    reading: PassSpec,
    cache: Cache | None = None,
    remote: Remote = False,
) -> dict[str, Float[Tensor, "batch ..."]]:
    """One traced pass, which stops after the last thing that is asked for.

    Args:
        model: left as it is.
        batch: what the model takes.
        reading: sites, layers and positions.
        cache: keys and values that the pass continues and fills; none by default.
        remote: True runs it on NDIF, `local` simulates that here.

    Returns:
        In float32 on the CPU: `batch layer token d_model` for the decoder's sites, single positions first, sums after
        them. Vision blocks and projector are read of a batch of one prompt: `1 vision_layer d_vision` and `1 d_model`,
        means over all their tokens.
    """
    traced, skipped = _traceable(model, remote), model.skipped_layers(batch)
    # A block that is passed by leaves the state of the one before it.
    source = {layer: max(i for i in range(layer + 1) if i not in skipped) for layer in reading.layers}
    ran = sorted(set(source.values())) if reading.decoder_sites else []
    places = list(_places(model, reading, ran, skipped))
    keys, route = [key for key, _, _ in places], [(traced.paths[module], side) for _, module, side in places]
    kwargs = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
    if remote:
        kwargs["remote"] = remote
    sees, picks, weights = traced.model, reading.picks, reading.weights
    rows, has_sums = torch.arange(len(picks))[:, None], weights is not None
    # What stands in the block may run on a server that has torch and nnsight, and nothing of ours.
    with sees.trace(**batch, **kwargs) as tracer:
        taken = save([])
        for path, side in route:
            module = sees.get(path)
            state = module.input if side == "input" else module.output
            state = state if isinstance(state, torch.Tensor) else state[0]
            if side == "mean":
                taken.append(state.float().flatten(0, -2).mean(0, keepdim=True))
                continue
            found = state[rows.to(state.device), picks.to(state.device)].float()
            if has_sums:
                shares = weights.to(state.device)
                # Padding may hold anything, even what is no number.
                state = state.float().masked_fill((shares == 0).all(1)[..., None], 0)
                found = torch.cat([found, shares @ state], dim=1)
            taken.append(found)
        tracer.stop()
    seen = dict(zip(keys, taken, strict=True))
    states = {
        site: _stacked([_of_layer(site, layer, at, seen) for layer, at in source.items()])
        for site in reading.decoder_sites
    }
    if "vision_resid_post" in reading.sites:
        blocks = [key for key in keys if key[0] == "vision_resid_post"]
        states["vision_resid_post"] = _stacked([seen[key] for key in blocks])
    if "projector_out" in reading.sites:
        states["projector_out"] = seen["projector_out", 0]
    return {site: values.cpu() for site, values in states.items()}


def _stacked(states: Sequence[Tensor]) -> Tensor:
    """Layers on axis 1; each may lie on a device of its own."""
    return torch.stack([state.to(states[0].device) for state in states], dim=1)


def _of_layer(site: str, layer: int, at: int, seen: Mapping[tuple[str, int], Tensor]) -> Tensor:
    """Of a block that did not run: it added nothing."""
    if layer == at:
        return seen[site, at]
    state = seen["resid_post", at]
    return torch.zeros_like(state) if site in ("attn_out", "mlp_out") else state


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
    states = read(model, batch, PassSpec(("resid_post",), tuple(range(model.n_layers)), picks))["resid_post"]
    return states if isinstance(positions, Tensor) else states[:, :, 0]


def last_resid_post(model: VLM | LLM, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt layer d_model"]:
    """`resid_post` of every layer at the last prompt token, for one batch of prompts."""
    return resid_post(model, collate(model, prompts))
