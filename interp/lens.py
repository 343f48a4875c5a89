"""The same weights read through TransformerLens: a second opinion on every layer, and what heads and MLPs write."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.batches import in_batches
from interp.errors import ModelError, first_line
from interp.forced import ForcedScore
from interp.inputs import Inputs, Prompt, collate
from interp.labels import labels
from interp.patching import PatchScore
from interp.vlm import LLM, VLM

__all__ = [
    "ATTENDED",
    "Lens",
    "writers",
]

ATTENDED = ("first", "image", "text")
"""Groups of tokens: the first one, on which idle heads rest; the tokens of pictures; all remaining ones."""

LENS_TOLERANCE = 1e-3
"""How far parts may be from their sum, and the last layer from the model's logits: relative, in float32."""
HALF_LENS_TOLERANCE = 5e-2


class NotInTransformerLens(ModelError):
    """Raised when TransformerLens has no bridge to a family of models. Only `Lens` needs a bridge."""


class LensError(ModelError):
    """Raised when the values read through the bridge don't match the model."""


def structural_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model's modules and configs, and share its parameters and buffers.

    Hooks that are on the model at the moment, such as a guard's, are not copied. Those of transformers itself, which
    collect hidden states, are part of the model and stay.
    """
    # `deepcopy` returns whatever its memo already holds: every tensor enters it as its own copy. Quantised layers keep
    # tensors that are neither parameters nor buffers.
    loose = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers(), *loose)}
    copied = copy.deepcopy(model, shared)
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not getattr(hook, "__module__", "").startswith("transformers."):
                    del hooks[key]
    return copied


def _bridge(vlm: VLM | LLM) -> nn.Module:
    """Build the bridge around a structural copy.

    Raises:
        NotInTransformerLens: there is no adapter for this architecture, or it needs a package that is not installed.
    """
    if len(set(getattr(vlm.model, "hf_device_map", {}).values())) > 1:
        raise NotInTransformerLens(f"{vlm.name!r} is spread over devices: not supported by TransformerLens")
    # Imported late: it takes seconds, and only a lens needs it. `boot_transformers` may install packages: avoid it.
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    # The bridge replaces modules and the attention implementation in place.
    model = structural_copy(vlm.model)
    architecture = type(vlm.model).__name__
    try:
        return build_bridge_from_module(model, architecture, hf_config=model.config, model_name=vlm.name)
    except Exception as error:
        # Adapters fail in arbitrary ways on language models that they were not written for.
        raise NotInTransformerLens(
            f"{architecture} is not supported by TransformerLens ({first_line(error)}); tracing, probes, patching and "
            "guards work without it"
        ) from error


class Lens:
    """A model through TransformerLens's bridge, around a structural copy that shares the weights.

    Memory does not double, and the model keeps its modules, attention implementation and logits. The bridge uses eager
    attention, so its numbers differ from the model's by rounding.
    """

    def __init__(self, vlm: VLM | LLM):
        """Build the bridge.

        Raises:
            NotInTransformerLens: TransformerLens does not support the model's family.
        """
        self.vlm = vlm
        self.bridge = _bridge(vlm)

    @torch.no_grad()
    def _last(self, batch: Inputs, names: Sequence[str]) -> tuple[dict[str, Tensor], Float[Tensor, "batch d_vocab"]]:
        """Return the values of the named hooks at the last position, kept as an axis of length 1, and the logits."""
        rest = {name: value for name, value in batch.items() if name != "input_ids"}
        logits, cache = self.bridge.run_with_cache(
            batch["input_ids"], return_cache_object=False, names_filter=list(names), pos_slice=-1, **rest
        )
        return {name: cache[name] for name in names}, logits[:, -1]

    @property
    def _agreement(self) -> float:
        return LENS_TOLERANCE if self.vlm.model.dtype == torch.float32 else HALF_LENS_TOLERANCE

    def resid_post(self, batch: Inputs) -> Float[Tensor, "batch layer d_model"]:
        """Read `blocks.{layer}.hook_out` at the last position, in float32, as `tracing.forward.resid_post` does."""
        return self._resid_post(batch)[0]

    def _resid_post(self, batch: Inputs) -> tuple[Float[Tensor, "batch layer d_model"], Float[Tensor, "batch d_vocab"]]:
        states, logits = self._last(batch, [f"blocks.{layer}.hook_out" for layer in range(self.vlm.n_layers)])
        return torch.stack([state[:, -1] for state in states.values()], dim=1).float().cpu(), logits.float().cpu()

    def logit_lens(self, prompts: Sequence[Prompt], score: PatchScore, batch_size: int = 16) -> xr.DataArray:
        """Score each layer's state at `last`, read through the final norm and the unembedding.

        Source: nostalgebraist, "interpreting GPT: the logit lens" (2020). At the last layer the result is the model's.

        Args:
            prompts: any mixture of modalities.
            score: function from log-probabilities to a number, e.g. the log-odds of refusal openings; a `ForcedScore`
                without forced tokens is one too.
            batch_size: prompts in one forward pass.

        Returns:
            Scores, dimensions `prompt layer`, with the labels of the prompts.

        Raises:
            ValueError: the score looks at the second token, which a layer's state at `last` says nothing about.
            LensError: the last layer's lens differs from the model's output, so there is something between the final
                norm and the logits.
        """
        if isinstance(score, ForcedScore) and score.tokens:
            raise ValueError(
                f"a score that looks behind forced tokens {list(score.tokens)}; a logit lens reads the first token"
            )

        def run(rows: list[int]) -> dict[str, np.ndarray]:
            states, logits = self._resid_post(collate(self.vlm, [prompts[i] for i in rows]))
            read = [self._log_probabilities(states[:, layer]) for layer in range(self.vlm.n_layers)]
            output = logits.log_softmax(-1)
            difference = ((read[-1] - output).abs().max() / output.abs().max()).item()
            if difference > self._agreement:
                raise LensError(
                    f"{self.vlm.name!r}: the logit lens of the last layer differs from the model's own log-"
                    f"probabilities by {difference:.1e}; another operation lies between its final norm and its logits"
                )
            return {"score": torch.stack([score(logprobs) for logprobs in read], dim=1).numpy()}

        scores = in_batches(prompts, batch_size, run)["score"]
        layers = {"layer": np.arange(self.vlm.n_layers)}
        return xr.DataArray(scores, dims=("prompt", "layer"), coords=layers | labels(prompts), name="logit_lens")

    @torch.no_grad()
    def _log_probabilities(self, state: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_vocab"]:
        state = state.to(self.vlm.model.device, self.vlm.model.dtype)
        return self.vlm.unembedding(self.vlm.final_norm(state)).float().log_softmax(-1).cpu()

    def attribution(
        self, prompts: Sequence[Prompt], direction: Float[Tensor, " d_model"], layer: int, batch_size: int = 16
    ) -> xr.Dataset:
        """Attribute the coordinate c = h V^T of `resid_post` at `last` to the heads and MLPs that wrote it.

        Direct attribution: the residual stream is a sum, so its coordinate is the sum of what the embedding, every
        head, every attention bias and every MLP up to this layer wrote along the direction (Elhage et al., "A
        Mathematical Framework for Transformer Circuits", 2021). A norm between a part and the stream (Gemma) is frozen
        at the scale it had in the run, as is usual.

        Args:
            prompts: any mixture of modalities.
            direction: a unit vector, e.g. the first row of a `SafetyDirection` at `layer`.
            layer: layer whose `resid_post` is explained.
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
            raise ValueError(f"layer {layer} does not exist; expected 0 to {self.vlm.n_layers - 1}")

        def run(rows: list[int]) -> dict[str, np.ndarray]:
            return self._attribute([prompts[i] for i in rows], direction, layer)

        written = in_batches(prompts, batch_size, run)
        total = (
            written["heads"].sum((1, 2)) + written["mlp"].sum(1) + written["attn_bias"].sum(1) + written["embedding"]
        )
        error = np.abs(total - written["coordinate"]).max() / np.abs(written["coordinate"]).max()
        if error > self._agreement:
            raise LensError(
                f"{self.vlm.name!r}: the parts that its heads and MLPs write miss the coordinate by {error:.1e} of "
                "it; this family scales what they add, so direct attribution does not hold"
            )
        dims = ("prompt", "layer", "head")
        return xr.Dataset(
            {name: (dims[: values.ndim], values) for name, values in written.items()},
            coords={"layer": np.arange(layer + 1), "head": np.arange(written["heads"].shape[2])} | labels(prompts),
            attrs={"error": float(error), "explained_layer": layer},
        )

    def _attribute(self, prompts: list[Prompt], direction: Tensor, layer: int) -> dict[str, np.ndarray]:
        names = ["blocks.0.hook_in", f"blocks.{layer}.hook_out"]
        for block in range(layer + 1):
            names += [f"blocks.{block}.{part}" for part in ("attn.o.hook_in", "attn.hook_out", "mlp.hook_out")]
            names += [name for part in ("ln1", "ln2") if (name := _after_norm(block, part)) in self.bridge.hook_dict]
        last, _ = self._last(collate(self.vlm, prompts), names)
        values = {name: state[:, -1].flatten(1).float() for name, state in last.items()}
        along = direction.float().to(values["blocks.0.hook_in"].device)
        parts = {"heads": [], "attn_bias": [], "mlp": []}
        for block in range(layer + 1):
            heads, bias = self._heads(block, values[f"blocks.{block}.attn.o.hook_in"])
            raw = values[f"blocks.{block}.attn.hook_out"]
            added = values.get(_after_norm(block, "ln1"), raw)
            # The factor, per dimension, that the norm after the attention applied in this run; 1 where there is none.
            gain = torch.where(raw == 0, 0.0, added / raw)
            parts["heads"].append(einsum(heads, gain, along, "batch head d, batch d, d -> batch head"))
            parts["attn_bias"].append((bias * gain) @ along)
            parts["mlp"].append(values.get(_after_norm(block, "ln2"), values[f"blocks.{block}.mlp.hook_out"]) @ along)
        written = {name: torch.stack(by_block, dim=1) for name, by_block in parts.items()}
        written["embedding"] = values["blocks.0.hook_in"] @ along
        written["coordinate"] = values[f"blocks.{layer}.hook_out"] @ along
        return {name: amounts.double().cpu().numpy() for name, amounts in written.items()}

    @torch.no_grad()
    def _heads(self, block: int, mixed: Float[Tensor, "batch d_mixed"]) -> tuple[Tensor, Tensor]:
        """Return what each head alone adds through the output projection (`batch head d_model`), and its bias."""
        project = self.bridge.blocks[block].attn.o.original_component
        n_heads = self.vlm.model.config.get_text_config().num_attention_heads
        mixed = rearrange(mixed, "batch (head d_head) -> batch head d_head", head=n_heads).to(self.vlm.model.dtype)
        # The input of the projection with all heads but one set to zero, one row per head.
        alone = einsum(mixed, torch.eye(n_heads).to(mixed), "batch head d_head, head only -> batch head only d_head")
        bias = project(torch.zeros_like(alone[:1, 0].flatten(1)))
        return (project(alone.flatten(2)) - bias).float(), bias[0].float()

    def attention(self, prompts: Sequence[Prompt], batch_size: int = 16) -> xr.DataArray:
        """Measure where every head attends from `last`: the first token, the pictures, or the rest of the text.

        Returns:
            Shares of attention, dimensions `prompt layer head attended`; those of a head sum to 1.
        """
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(self.vlm.n_layers)]

        def run(rows: list[int]) -> dict[str, np.ndarray]:
            batch = collate(self.vlm, [prompts[i] for i in rows])
            values, _ = self._last(batch, names)
            pattern = torch.stack([values[name][:, :, -1] for name in names], dim=1).float()
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
    """Return the hook after the norm that some families have between a part and the residual stream."""
    return f"blocks.{block}.{part}_post.hook_out"


def writers(attribution: xr.Dataset, n: int = 5) -> list[tuple[int, int]]:
    """Return the safety-writing heads: those whose contribution differs most between harmful and harmless prompts.

    Args:
        attribution: result of `Lens.attribution`, with prompts of both classes.
        n: number of heads.

    Returns:
        Pairs `(layer, head)`, the strongest first.

    Raises:
        ValueError: all prompts are of one class.
    """
    harmful = attribution.harmful.values
    if harmful.all() or not harmful.any():
        raise ValueError(f"safety-writing heads need prompts of both classes; got {harmful.sum()} of {len(harmful)}")
    gap = attribution["heads"].values[harmful].mean(0) - attribution["heads"].values[~harmful].mean(0)
    strongest = np.argsort(-gap, axis=None)[:n]
    return [tuple(int(i) for i in np.unravel_index(place, gap.shape)) for place in strongest]
