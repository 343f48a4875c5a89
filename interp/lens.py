"""The same weights seen through TransformerLens: a second opinion on every layer, and what heads and MLPs write."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.batches import in_batches
from interp.families import ModelError, first_line
from interp.inputs import Prompt, collate
from interp.labels import labels
from interp.patching import PatchScore
from interp.vlm import VLM

ATTENDED = ("first", "image", "text")
"""The first token, on which idle heads rest; the tokens of pictures; all the others."""

Inputs = Mapping[str, Tensor]

AGREEMENT = 1e-3
"""How far parts may be from their sum, and the last layer from the model's logits: relative, in float32."""
HALF_AGREEMENT = 5e-2


class NotInTransformerLens(ModelError):
    """TransformerLens has no bridge to this family. Only `Lens` needs one."""


class LensError(ModelError):
    """What is seen through the bridge is not what the model does."""


def structural_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Modules and configs of its own, the very parameters and buffers of the original.

    Hooks that the model has at the moment, a guard's for instance, stay behind; those of transformers itself, which
    collect hidden states, belong to it.
    """
    # Quantised layers keep tensors that are neither parameters nor buffers.
    loose = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers(), *loose)}
    copied = copy.deepcopy(model, shared)
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not getattr(hook, "__module__", "").startswith("transformers."):
                    del hooks[key]
    return copied


def _bridge(vlm: VLM) -> nn.Module:
    """Raises:
    NotInTransformerLens: there is no adapter for this architecture, or it wants what is not installed.
    """
    if len(set(getattr(vlm.model, "hf_device_map", {}).values())) > 1:
        raise NotInTransformerLens(f"{vlm.name!r} is spread over devices: not supported by TransformerLens")
    # Imported late: it takes seconds, and only a lens needs it. Never its `boot_transformers`, which installs packages.
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    # The bridge replaces modules and the attention implementation in place.
    model = structural_copy(vlm.model)
    architecture = type(vlm.model).__name__
    try:
        return build_bridge_from_module(model, architecture, hf_config=model.config, model_name=vlm.name)
    except Exception as error:
        # Its adapters fail in any way on language models that they were not written for.
        raise NotInTransformerLens(
            f"{architecture} is not supported by TransformerLens ({first_line(error)}); tracing, probes, patching and "
            "guards work without it"
        ) from error


class Lens:
    """A model through TransformerLens's bridge, around a structural copy that shares the weights.

    Memory does not double, and the model itself is left as it is: modules, attention implementation, logits.
    The bridge attends eagerly, so its numbers differ from the model's by rounding.
    """

    def __init__(self, vlm: VLM):
        """Builds the bridge.

        Raises:
            NotInTransformerLens: the bridge does not know the family.
        """
        self.vlm = vlm
        self.bridge = _bridge(vlm)

    @torch.no_grad()
    def _last(self, batch: Inputs, names: Sequence[str]) -> tuple[dict[str, Tensor], Float[Tensor, "batch d_vocab"]]:
        """What the named hooks see at the last position, on a position axis of length 1; and the logits there."""
        rest = {name: value for name, value in batch.items() if name != "input_ids"}
        logits, cache = self.bridge.run_with_cache(
            batch["input_ids"], return_cache_object=False, names_filter=list(names), pos_slice=-1, **rest
        )
        return {name: cache[name] for name in names}, logits[:, -1]

    @property
    def _agreement(self) -> float:
        return AGREEMENT if self.vlm.model.dtype == torch.float32 else HALF_AGREEMENT

    def resid_post(self, batch: Inputs) -> Float[Tensor, "batch layer d_model"]:
        """`blocks.{layer}.hook_out` at the last position, in float32: what `interp.tracing.forward.resid_post` reads."""
        return self._resid_post(batch)[0]

    def _resid_post(self, batch: Inputs) -> tuple[Float[Tensor, "batch layer d_model"], Float[Tensor, "batch d_vocab"]]:
        found, logits = self._last(batch, [f"blocks.{layer}.hook_out" for layer in range(self.vlm.n_layers)])
        return torch.stack([state[:, -1] for state in found.values()], dim=1).float().cpu(), logits.float().cpu()

    def logit_lens(self, prompts: Sequence[Prompt], score: PatchScore, batch_size: int = 16) -> xr.DataArray:
        """What each layer's state at `last` would say, read through the final norm and the unembedding.

        Source: nostalgebraist, "interpreting GPT: the logit lens" (2020). At the last layer it is the model itself.

        Args:
            prompts: any mixture of modalities.
            score: from log-probabilities to a number, e.g. the log-odds of refusal openings.
            batch_size: prompts in one forward pass.

        Returns:
            Dimensions `prompt layer`, with the labels of the prompts.

        Raises:
            LensError: the last layer, read so, is not what the model says: something stands between norm and logits.
        """

        def run(rows: list[int]) -> dict[str, np.ndarray]:
            states, logits = self._resid_post(collate(self.vlm, [prompts[i] for i in rows]))
            read = [self._log_probabilities(states[:, layer]) for layer in range(self.vlm.n_layers)]
            says = logits.log_softmax(-1)
            difference = ((read[-1] - says).abs().max() / says.abs().max()).item()
            if difference > self._agreement:
                raise LensError(
                    f"{self.vlm.name!r}: the logit lens of the last layer differs from the model's own log-"
                    f"probabilities by {difference:.1e}; something stands between its final norm and its logits"
                )
            return {"score": torch.stack([score(logprobs) for logprobs in read], dim=1).numpy()}

        found = in_batches(prompts, batch_size, run)["score"]
        layers = {"layer": np.arange(self.vlm.n_layers)}
        return xr.DataArray(found, dims=("prompt", "layer"), coords=layers | labels(prompts), name="logit_lens")

    @torch.no_grad()
    def _log_probabilities(self, state: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_vocab"]:
        state = state.to(self.vlm.model.device, self.vlm.model.dtype)
        return self.vlm.unembedding(self.vlm.final_norm(state)).float().log_softmax(-1).cpu()

    def attribution(
        self, prompts: Sequence[Prompt], direction: Float[Tensor, " d_model"], layer: int, batch_size: int = 16
    ) -> xr.Dataset:
        """Which heads and MLPs write the coordinate c = h V^T of `resid_post` at `last`.

        Direct attribution: the residual stream is a sum, so its coordinate is the sum of what the embedding, every
        head, every attention's bias and every MLP up to this layer wrote along the direction (Elhage et al., "A
        Mathematical Framework for Transformer Circuits", 2021). A norm between a part and the stream (Gemma) is taken
        at the scale that it had, as is usual.

        Args:
            prompts: any mixture of modalities.
            direction: a unit vector, e.g. the first row of a `SafetyDirection` at `layer`.
            layer: whose `resid_post` is explained.
            batch_size: prompts in one forward pass.

        Returns:
            `heads` (`prompt layer head`), `mlp` and `attn_bias` (`prompt layer`), `embedding` and `coordinate`
            (`prompt`), in the units of the residual stream. The attribute `error` is the largest difference of their
            sum from the coordinate, relative to the largest coordinate.

        Raises:
            ValueError: no such layer.
            LensError: the parts don't sum to the coordinate: the family scales what its parts add.
        """
        if not 0 <= layer < self.vlm.n_layers:
            raise ValueError(f"layer {layer}; expected one from 0 to {self.vlm.n_layers - 1}")
        attribute = lambda rows: self._attribute([prompts[i] for i in rows], direction, layer)  # noqa: E731
        found = in_batches(prompts, batch_size, attribute)
        parts = found["heads"].sum((1, 2)) + found["mlp"].sum(1) + found["attn_bias"].sum(1) + found["embedding"]
        error = np.abs(parts - found["coordinate"]).max() / np.abs(found["coordinate"]).max()
        if error > self._agreement:
            raise LensError(
                f"{self.vlm.name!r}: what its heads and MLPs write sums to the coordinate only within {error:.1e} of "
                "it; this family scales what they add, and direct attribution does not hold"
            )
        dims = ("prompt", "layer", "head")
        return xr.Dataset(
            {name: (dims[: values.ndim], values) for name, values in found.items()},
            coords={"layer": np.arange(layer + 1), "head": np.arange(found["heads"].shape[2])} | labels(prompts),
            attrs={"error": float(error), "explained_layer": layer},
        )

    def _attribute(self, prompts: list[Prompt], direction: Tensor, layer: int) -> dict[str, np.ndarray]:
        names = ["blocks.0.hook_in", f"blocks.{layer}.hook_out"]
        for block in range(layer + 1):
            names += [f"blocks.{block}.{part}" for part in ("attn.o.hook_in", "attn.hook_out", "mlp.hook_out")]
            names += [name for part in ("ln1", "ln2") if (name := _after_norm(block, part)) in self.bridge.hook_dict]
        last, _ = self._last(collate(self.vlm, prompts), names)
        seen = {name: state[:, -1].flatten(1).float() for name, state in last.items()}
        along = direction.float().to(seen["blocks.0.hook_in"].device)
        parts = {"heads": [], "attn_bias": [], "mlp": []}
        for block in range(layer + 1):
            heads, bias = self._heads(block, seen[f"blocks.{block}.attn.o.hook_in"])
            raw = seen[f"blocks.{block}.attn.hook_out"]
            added = seen.get(_after_norm(block, "ln1"), raw)
            gain = torch.where(raw == 0, 0.0, added / raw)
            parts["heads"].append(einsum(heads, gain, along, "batch head d, batch d, d -> batch head"))
            parts["attn_bias"].append((bias * gain) @ along)
            parts["mlp"].append(seen.get(_after_norm(block, "ln2"), seen[f"blocks.{block}.mlp.hook_out"]) @ along)
        found = {name: torch.stack(values, dim=1) for name, values in parts.items()}
        found["embedding"] = seen["blocks.0.hook_in"] @ along
        found["coordinate"] = seen[f"blocks.{layer}.hook_out"] @ along
        return {name: values.double().cpu().numpy() for name, values in found.items()}

    @torch.no_grad()
    def _heads(self, block: int, mixed: Float[Tensor, "batch d_mixed"]) -> tuple[Tensor, Tensor]:
        """What each head alone adds through the output projection, `batch head d_model`; and the projection's bias."""
        project = self.bridge.blocks[block].attn.o.original_component
        n_heads = self.vlm.model.config.get_text_config().num_attention_heads
        mixed = rearrange(mixed, "batch (head d_head) -> batch head d_head", head=n_heads).to(self.vlm.model.dtype)
        alone = einsum(mixed, torch.eye(n_heads).to(mixed), "batch head d_head, head one -> batch head one d_head")
        bias = project(torch.zeros_like(alone[:1, 0].flatten(1)))
        return (project(alone.flatten(2)) - bias).float(), bias[0].float()

    def attention(self, prompts: Sequence[Prompt], batch_size: int = 16) -> xr.DataArray:
        """Where every head looks from `last`: to the first token, to the pictures, or to the rest of the text.

        Returns:
            Shares of the attention, dimensions `prompt layer head attended`; each head's sum to 1.
        """
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(self.vlm.n_layers)]

        def run(rows: list[int]) -> dict[str, np.ndarray]:
            batch = collate(self.vlm, [prompts[i] for i in rows])
            seen, _ = self._last(batch, names)
            pattern = torch.stack([seen[name][:, :, -1] for name in names], dim=1).float()
            is_token = batch["attention_mask"].bool()
            first = is_token & (is_token.cumsum(1) == 1)
            image = self.vlm.image_positions(batch["input_ids"]) & ~first
            roles = torch.stack([first, image, ~first & ~image], dim=1).float().to(pattern.device)
            shares = einsum(pattern, roles, "batch layer head pos, batch role pos -> batch layer head role")
            return {"share": shares.cpu().numpy()}

        shares = in_batches(prompts, batch_size, run)["share"]
        coords = {"layer": np.arange(shares.shape[1]), "head": np.arange(shares.shape[2]), "attended": list(ATTENDED)}
        dims = ("prompt", "layer", "head", "attended")
        return xr.DataArray(shares, dims=dims, coords=coords | labels(prompts), name="attention")


def _after_norm(block: int, part: str) -> str:
    """The hook behind the norm that some families have between a part and the residual stream."""
    return f"blocks.{block}.{part}_post.hook_out"


def writers(attribution: xr.Dataset, n: int = 5) -> list[tuple[int, int]]:
    """The heads that write safety: whose contribution differs most between harmful and harmless prompts.

    Args:
        attribution: of `Lens.attribution`, with prompts of both classes.
        n: how many.

    Returns:
        `(layer, head)`, the strongest first.

    Raises:
        ValueError: all prompts are of one class.
    """
    harmful = attribution.harmful.values
    if harmful.all() or not harmful.any():
        raise ValueError(f"safety-writing heads need prompts of both classes; got {harmful.sum()} of {len(harmful)}")
    gap = attribution["heads"].values[harmful].mean(0) - attribution["heads"].values[~harmful].mean(0)
    strongest = np.argsort(-gap, axis=None)[:n]
    return [tuple(int(i) for i in np.unravel_index(place, gap.shape)) for place in strongest]
