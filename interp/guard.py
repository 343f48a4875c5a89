"""A fitted guard, put on a model for the time of a `with` block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.directions import SafetyDirection
from interp.inputs import text_prompt
from interp.projection import RULES, coordinates, set_coordinates, sign_gate, target_coordinates
from interp.trace import last_resid_post
from interp.vlm import LLM, VLM

GATES = ("always", "sign")
POSITIONS = ("last_prefill", "all")


@dataclass
class _Places:
    """Follows the passes through the model, and knows which positions of the current one are to be changed."""

    positions: str
    prompt_length: int = 0
    seen: Int[Tensor, "batch pos"] | None = None
    mask: Bool[Tensor, "batch pos"] | None = None
    """Of the current pass: True where a state is changed."""

    def begin_pass(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        """Forward pre-hook of the whole model."""
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        cache, attention_mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        n_cached = cache.get_seq_length() if cache is not None else 0
        if n_cached == 0 and not self._continues(ids):
            self.prompt_length = ids.shape[1]
        self.seen = ids if n_cached == 0 else None
        place = torch.arange(n_cached, n_cached + ids.shape[1], device=ids.device).expand_as(ids)
        if self.positions == "last_prefill":
            self.mask = place == self.prompt_length - 1
        else:
            self.mask = torch.ones_like(ids, dtype=torch.bool)
            if attention_mask is not None:
                self.mask = attention_mask[:, -ids.shape[1] :].bool()

    def _continues(self, ids: Int[Tensor, "batch pos"]) -> bool:
        """Whether this pass without a cache is the last one again with a token more: generation, not a new prompt."""
        return self.seen is not None and ids.shape[1] == self.seen.shape[1] + 1 and torch.equal(ids[:, :-1], self.seen)


@dataclass(frozen=True)
class Guard:
    """Direction, layers, rule, gate, positions and strength: what is changed, where and when."""

    direction: SafetyDirection
    layers: tuple[int, ...]
    """Decoder blocks whose output is changed, counted from 0."""
    rule: str = "substitute"
    gate: str = "sign"
    positions: str = "last_prefill"
    strength: float = 1.0
    direction_layer: int | None = None
    """Where the direction was fitted; by default the layer that it is applied at."""
    decoy: Float[Tensor, "layer d_model"] | None = None
    """Control: unit vectors. The change keeps its size in every prompt, and goes along these instead."""

    def __post_init__(self):
        n_layers = len(self.direction.basis)
        for name, value, known in (
            ("rule", self.rule, RULES),
            ("gate", self.gate, GATES),
            ("positions", self.positions, POSITIONS),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} does not exist; expected one of {', '.join(known)}")
        if not self.layers or not all(0 <= layer < n_layers for layer in self.layers):
            raise ValueError(f"layers {self.layers}; expected at least one, each from 0 to {n_layers - 1}")

    def basis(self, layer: int) -> Float[Tensor, "rank d_model"]:
        return self.direction.basis[layer if self.direction_layer is None else self.direction_layer]

    @property
    def needs_reference(self) -> bool:
        return self.rule == "substitute" or self.gate == "sign"

    def read(self, model: VLM | LLM, references: Sequence[str]) -> Float[Tensor, "batch layer d_model"]:
        """The aligned LLM's states at the last token of each reference, in the text modality's chat template."""
        return last_resid_post(model, [text_prompt(text) for text in references])

    @contextmanager
    def on(
        self,
        vlm: VLM,
        references: Sequence[str] | Float[Tensor, "batch layer d_model"] | None = None,
    ) -> Iterator[None]:
        """Guards every forward pass and `generate` of `vlm.model` inside the block; leaves nothing behind.

        Args:
            vlm: the model.
            references: one text for each row of the batch that is about to run, or their states from `read`.

        Raises:
            ValueError: the direction is of another shape than the model, or references are needed and missing.
        """
        basis = self.direction.basis
        if (len(basis), basis.shape[-1]) != (vlm.n_layers, vlm.d_model):
            raise ValueError(
                f"the direction has {len(basis)} layers of width {basis.shape[-1]}, {vlm.name!r} has {vlm.n_layers} "
                f"of width {vlm.d_model}; fit a direction on this model"
            )
        if references is None and self.needs_reference:
            raise ValueError(
                f"rule {self.rule!r} with gate {self.gate!r} needs references: one text for each row of the batch"
            )
        if references is not None and not isinstance(references, Tensor):
            references = self.read(vlm, references)
        places = _Places(self.positions)
        hooks = [vlm.model.register_forward_pre_hook(places.begin_pass, with_kwargs=True)]
        try:
            for layer in self.layers:
                state = None if references is None else references[:, layer]
                hooks.append(vlm.blocks[layer].register_forward_hook(self._hook(layer, state, places)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, layer: int, reference: Float[Tensor, "batch d_model"] | None, places: _Places):
        if reference is not None:
            reference = coordinates(reference.float(), self.basis(layer))

        def change(module: torch.nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
            resid = output[0] if isinstance(output, tuple) else output
            resid = self.change(resid, layer, reference, places.mask)
            return (resid, *output[1:]) if isinstance(output, tuple) else resid

        return change

    def change(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        layer: int,
        reference: Float[Tensor, "reference rank"] | None,
        mask: Bool[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """The states with the formula applied where the mask and the gate say so, in float32."""
        if reference is not None:
            if len(reference) != len(resid):
                raise ValueError(f"{len(reference)} references for a batch of {len(resid)} rows; expected one each")
            reference = reference.to(resid.device)[:, None]
            if self.gate == "sign":
                mask = mask & sign_gate(reference)
        basis, precise = self.basis(layer).to(resid.device), resid.float()
        target = target_coordinates(self.rule, coordinates(precise, basis), reference, self.strength)
        changed = set_coordinates(precise, basis, target)
        if self.decoy is not None:
            size = (changed - precise).norm(dim=-1, keepdim=True)
            changed = precise + size * self.decoy[layer].to(resid.device)
        return torch.where(mask.to(resid.device)[..., None], changed.to(resid.dtype), resid)
