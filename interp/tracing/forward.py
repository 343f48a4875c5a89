"""One pass through a model, and the states that are read in it. The only file that imports nnsight."""

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
from interp.errors import ModelError
from interp.inputs import Inputs, Prompt, collate
from interp.residual_stream import residual_stream
from interp.vlm import LLM, VLM

DECODER_SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""Sites of a decoder block, in the order in which the block computes them."""
VISION_SITES = ("vision_resid_post", "projector_out")
SITES = (*DECODER_SITES, *VISION_SITES)

Remote = bool | str
"""True for NDIF, `local` for a simulation of it on this machine, False for neither."""


@dataclass(frozen=True)
class PassSpec:
    """Sites, layers and positions to read in one pass; states are reduced on the device."""

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    picks: Int[Tensor, "batch pick"]
    """Single positions of each row."""
    weights: Float[Tensor, "batch sum pos"] | None = None
    """Weights of sums over the positions of each row."""

    @property
    def decoder_sites(self) -> tuple[str, ...]:
        """The sites of the decoder, in the order in which a block computes them."""
        return tuple(site for site in DECODER_SITES if site in self.sites)


class _Traceable:
    """A model wrapped by nnsight, and the paths by which nnsight finds its modules."""

    def __init__(self, model: nn.Module, wrapped: Envoy):
        self.model = wrapped
        self.paths = {module: path for path, module in model.named_modules()}


class _LocalModel(NNsight):
    """A model on this machine. nnsight moves inputs to the weights, but those that are offloaded are on no device."""

    @property
    def device(self) -> torch.device | None:
        """The device that inputs are moved to; None leaves them where they are."""
        device = super().device
        return None if device is not None and device.type == "meta" else device


_TRACEABLE: WeakKeyDictionary[VLM | LLM, dict[Remote, _Traceable]] = WeakKeyDictionary()


def _traceable(model: VLM | LLM, remote: Remote) -> _Traceable:
    """Return the wrapped model, built once per model: nnsight walks through all modules."""
    cached = _TRACEABLE.setdefault(model, {})
    if remote not in cached:
        with warnings.catch_warnings():
            # nnsight renames submodules called 'output'; none of them is read by name here.
            warnings.filterwarnings("ignore", message=".* has a submodule named 'output'")
            cached[remote] = _Traceable(
                model.model, _remote_model(model, remote) if remote else _LocalModel(model.model)
            )
    return cached[remote]


def _remote_model(model: VLM | LLM, remote: Remote) -> Envoy:
    """Return the model as the server knows it, without weights here unless the server is simulated.

    Raises:
        ModelError: the model was built by hand, so that the server has no name for it.
    """
    if model.loading is None:
        raise ModelError(f"a server can't load {model.name!r}, which was built by hand: load it with from_pretrained")
    task = "image-text-to-text" if isinstance(model, VLM) else "text-generation"
    kwargs = {key: model.loading[key] for key in ("revision", "trust_remote_code") if model.loading[key]}
    if remote == "local":
        kwargs |= {"dispatch": True, "dtype": model.model.dtype}
    return TransformersModel(str(model.loading["name_or_path"]), task=task, **kwargs)


def _final_state(model: VLM | LLM, layer: int, skipped: Collection[int]) -> tuple[nn.Module, str]:
    """Return the module, and the side of it, at which the state after a layer is final.

    nnsight records what a block's own code returns, before the hook of a guard changes it. So on a guarded model the
    state is read as the input of the next block. With DeepStack, image positions are added to in between: there a guard
    changes the next block's input, and the state before that is read.
    """
    if not is_guarded(model.model) or layer in residual_stream(model).added_after:
        return model.blocks[layer], "output"
    later = [block for i, block in enumerate(model.blocks) if i > layer and i not in skipped]
    return (later[0] if later else families.final_norm(model.model)), "input"


def _sources(
    model: VLM | LLM, spec: PassSpec, layers: Sequence[int], skipped: Collection[int]
) -> Iterator[tuple[tuple[str, int], nn.Module, str]]:
    """Yield what to read in the order in which the model runs: (site, layer), module, and the side of the module."""
    if "vision_resid_post" in spec.sites:
        yield from ((("vision_resid_post", i), block, "mean") for i, block in enumerate(model.vision_blocks))
    if "projector_out" in spec.sites:
        yield ("projector_out", 0), model.projector, "mean"
    for layer in layers:
        block = model.blocks[layer]
        if "resid_pre" in spec.sites:
            yield ("resid_pre", layer), block, "input"
        if {"attn_out", "mlp_out"} & set(spec.sites):
            for site, part in zip(("attn_out", "mlp_out"), families.sublayers(block), strict=True):
                if site in spec.sites:
                    yield (site, layer), part, "output"
        # Always read: it also is the state of skipped layers that follow.
        yield ("resid_post", layer), *_final_state(model, layer, skipped)


@torch.no_grad()
def read(
    model: VLM | LLM,
    batch: Inputs,
    spec: PassSpec,
    cache: Cache | None = None,
    remote: Remote = False,
) -> dict[str, Float[Tensor, "batch ..."]]:
    """Run one traced pass, which stops after the last state that is read.

    Args:
        model: left unchanged.
        batch: the model's inputs.
        spec: sites, layers and positions.
        cache: keys and values that the pass continues and fills; none by default.
        remote: True runs the pass on NDIF, `local` simulates that on this machine.

    Returns:
        States by site, in float32 on the CPU: `batch layer token d_model` for decoder sites, single positions first,
        then sums. Vision sites require a batch of one prompt and are means over all tokens of the pictures:
        `1 vision_layer d_vision` and `1 d_model`.
    """
    traceable, skipped = _traceable(model, remote), model.skipped_layers(batch)
    # A block that is skipped leaves the state of the last block before it that runs.
    last_run = {layer: max(i for i in range(layer + 1) if i not in skipped) for layer in spec.layers}
    layers = sorted(set(last_run.values())) if spec.decoder_sites else []
    sources = list(_sources(model, spec, layers, skipped))
    keys, paths = [key for key, _, _ in sources], [(traceable.paths[module], side) for _, module, side in sources]
    kwargs = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
    if remote:
        kwargs["remote"] = remote
    traced, picks, weights = traceable.model, spec.picks, spec.weights
    n_rows = len(picks)
    rows, has_sums = torch.arange(len(picks))[:, None], weights is not None
    # The body may run on a server that has torch and nnsight but none of this project's code.
    with traced.trace(**batch, **kwargs) as tracer:
        states = save([])
        for path, side in paths:
            module = traced.get(path)
            state = module.input if side == "input" else module.output
            state = state if isinstance(state, torch.Tensor) else state[0]
            if side == "mean":
                states.append(state.float().flatten(0, -2).mean(0, keepdim=True))
                continue
            if state.dim() == 2:
                # Mixtures of experts put out the tokens of all prompts in one row.
                state = state.view(n_rows, -1, state.shape[-1])
            selected = state[rows.to(state.device), picks.to(state.device)].float()
            if has_sums:
                shares = weights.to(state.device)
                # Padding may hold anything, NaN included: a weight of 0 would not remove it.
                state = state.float().masked_fill((shares == 0).all(1)[..., None], 0)
                selected = torch.cat([selected, shares @ state], dim=1)
            states.append(selected)
        tracer.stop()
    wrong = next((state for (site, _), state in zip(keys, states, strict=True) if _is_no_state(site, state)), None)
    if wrong is not None:
        raise ModelError(
            f"the blocks of {model.name!r} pass on states of {wrong.dim()} dimensions; expected (batch, pos, d_model)"
        )
    return _by_site(spec, dict(zip(keys, states, strict=True)), last_run)


def _is_no_state(site: str, state: Tensor) -> bool:
    """Return whether what was read of a decoder site is not one state per prompt and position."""
    return site in DECODER_SITES and state.dim() != 3


def _by_site(
    spec: PassSpec, states: Mapping[tuple[str, int], Tensor], last_run: Mapping[int, int]
) -> dict[str, Float[Tensor, "batch ..."]]:
    """Stack the states of each site's layers.

    Args:
        spec: what was read.
        states: by site and layer that ran.
        last_run: the layer itself or, if it was skipped, the last layer before it that ran.
    """
    by_site = {
        site: _stacked([_state_of(site, layer, source, states) for layer, source in last_run.items()])
        for site in spec.decoder_sites
    }
    if "vision_resid_post" in spec.sites:
        blocks = [state for (site, _), state in states.items() if site == "vision_resid_post"]
        by_site["vision_resid_post"] = _stacked(blocks)
    if "projector_out" in spec.sites:
        by_site["projector_out"] = states["projector_out", 0]
    return {site: values.cpu() for site, values in by_site.items()}


def _stacked(states: Sequence[Tensor]) -> Tensor:
    """Stack layers on axis 1; they may be on different devices."""
    return torch.stack([state.to(states[0].device) for state in states], dim=1)


def _state_of(site: str, layer: int, source: int, states: Mapping[tuple[str, int], Tensor]) -> Tensor:
    """Return the state at a site of a layer; a layer that was skipped added nothing to its source."""
    if layer == source:
        return states[site, source]
    state = states["resid_post", source]
    return torch.zeros_like(state) if site in ("attn_out", "mlp_out") else state


def resid_post(
    model: VLM | LLM, batch: Inputs, positions: Int[Tensor, "batch read"] | int = -1
) -> Float[Tensor, "batch layer ..."]:
    """Return `resid_post` of every layer for one batch, in float32 on the CPU.

    The state of the last layer is the block's output, before the final norm; Hugging Face's own
    `hidden_states[-1]` comes after it.

    Args:
        model: left unchanged.
        batch: the model's inputs, left-padded.
        positions: one position for all rows, or several for each row; by default the last.

    Returns:
        `batch layer d_model` for one position, `batch layer read d_model` for several.
    """
    picks = positions if isinstance(positions, Tensor) else torch.full((len(batch["input_ids"]), 1), positions)
    states = read(model, batch, PassSpec(("resid_post",), tuple(range(model.n_layers)), picks))["resid_post"]
    return states if isinstance(positions, Tensor) else states[:, :, 0]


def last_resid_post(model: VLM | LLM, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt layer d_model"]:
    """Return `resid_post` of every layer at the last prompt token, for one batch of prompts."""
    return resid_post(model, collate(model, prompts))
