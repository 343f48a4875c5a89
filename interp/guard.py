"""A fitted guard, put on a model for the time of a `with` block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interp.directions import SafetyDirection
from interp.families import ModelError
from interp.inputs import prompt_texts, text_batch, text_prompt
from interp.projection import RULES, coordinates, set_coordinates, sign_gate, target_coordinates
from interp.reading import last_resid_post
from interp.vlm import LLM, VLM

GATES = ("always", "sign")
POSITIONS = ("last_prefill", "generated", "last", "text", "all")


@dataclass
class _Places:
    """Follows the passes through the model, and knows which positions of the current one are to be changed.

    A pass without a cache that repeats the last one and adds a token is generation: its places are those that a pass
    with a cache would have had, so both give the same logits.
    """

    positions: str
    image_positions: Callable[[Int[Tensor, "batch pos"]], Bool[Tensor, "batch pos"]]
    prompt_length: int | None = None
    seen: Int[Tensor, "batch pos"] | None = None
    mask: Bool[Tensor, "batch pos"] | None = None
    """Of the current pass: True where a state is changed."""

    def begin_pass(self, ids: Int[Tensor, "batch pos"], kwargs: dict) -> bool:
        """Finds the places of a pass; returns whether it begins a new prompt."""
        cache, attention_mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        n_cached = cache.get_seq_length() if cache is not None else 0
        is_new = self.prompt_length is None or (n_cached == 0 and not self._continues(ids))
        if is_new:
            self.prompt_length = n_cached + ids.shape[1]
        self.seen = ids if n_cached == 0 else None
        place = torch.arange(n_cached, n_cached + ids.shape[1], device=ids.device).expand_as(ids)
        is_token = torch.ones_like(ids, dtype=torch.bool)
        if attention_mask is not None:
            is_token = attention_mask[:, n_cached : n_cached + ids.shape[1]].bool()
        in_prompt = place < self.prompt_length
        self.mask = {
            "last_prefill": place == self.prompt_length - 1,
            "generated": ~in_prompt,
            "last": place >= self.prompt_length - 1,
            "text": in_prompt & is_token & ~self.image_positions(ids),
            "all": is_token,
        }[self.positions]
        return is_new

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
        """The model's own states, without a picture, at the last token of each reference in its chat template."""
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
            references: one text for each row of the batch that is about to run, or their states from `read`. By
                default the text of each prompt itself, taken out of its `input_ids` (reference `prompt_text`).

        Raises:
            ValueError: the direction is of another shape than the model.
            ModelError: inside the block, where the text of a prompt can't be taken out of it.
        """
        basis = self.direction.basis
        if (len(basis), basis.shape[-1]) != (vlm.n_layers, vlm.d_model):
            raise ValueError(
                f"the direction has {len(basis)} layers of width {basis.shape[-1]}, {vlm.name!r} has {vlm.n_layers} "
                f"of width {vlm.d_model}; fit a direction on this model"
            )
        if references is not None and not isinstance(references, Tensor):
            references = self.read(vlm, references)
        work = _Work(self, vlm, references)
        hooks = [vlm.model.register_forward_pre_hook(work.begin_pass, with_kwargs=True)]
        try:
            hooks += [work.hook(layer) for layer in self.layers]
            yield
        finally:
            for hook in hooks:
                hook.remove()

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
            reference, mask = reference.to(resid.device)[:, None], mask.to(resid.device)
            if self.gate == "sign":
                mask = mask & sign_gate(reference)
        basis, precise = self.basis(layer).to(resid.device), resid.float()
        target = target_coordinates(self.rule, coordinates(precise, basis), reference, self.strength)
        changed = set_coordinates(precise, basis, target)
        if self.decoy is not None:
            size = (changed - precise).norm(dim=-1, keepdim=True)
            changed = precise + size * self.decoy[layer].to(resid.device)
        return torch.where(mask.to(resid.device)[..., None], changed.to(resid.dtype), resid)


class _Work:
    """A guard at work on a model, from pass to pass."""

    def __init__(self, guard: Guard, vlm: VLM, states: Float[Tensor, "batch layer d_model"] | None):
        self._guard, self._vlm = guard, vlm
        self._places = _Places(guard.positions, vlm.image_positions)
        self._reads_itself = states is None and guard.needs_reference
        self._is_reading = False
        self._references = {}
        if states is not None:
            self._references = {i: coordinates(states[:, i].float(), guard.basis(i)) for i in guard.layers}

    def begin_pass(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Forward pre-hook of the whole model."""
        if self._is_reading:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError("a guarded model needs input_ids to know the places of its tokens; got none")
        if self._places.begin_pass(ids, kwargs) and self._reads_itself:
            self._read(prompt_texts(self._vlm, ids, kwargs.get("attention_mask")))

    @torch.no_grad()
    def _read(self, rows: list[list[int]]) -> None:
        """Runs the prompts without their pictures; the hooks take down the coordinates on the way."""
        batch = text_batch(self._vlm, rows)
        self._is_reading = True
        try:
            self._vlm.model(**batch, use_cache=False)
        finally:
            self._is_reading = False
        silent = [layer for layer in self._guard.layers if layer not in self._references]
        if silent:
            raise ModelError(
                f"layers {silent} of {self._vlm.name!r} don't run without a picture; pass references explicitly: "
                "guard.on(vlm, references=[...])"
            )

    def hook(self, layer: int) -> RemovableHandle:
        """Where the state of a layer is final: what its block puts out.

        With DeepStack, what the next block takes in: features that are added to image positions in between would undo
        part of the change.
        """
        blocks = self._vlm.blocks

        def change_output(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
            if isinstance(output, tuple):
                return self._change(layer, output[0]), *output[1:]
            return self._change(layer, output)

        def change_input(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if args:
                return (self._change(layer, args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": self._change(layer, kwargs["hidden_states"])}

        if layer in self._vlm.deepstack_layers and layer + 1 < len(blocks):
            return blocks[layer + 1].register_forward_pre_hook(change_input, with_kwargs=True)
        return blocks[layer].register_forward_hook(change_output)

    def _change(self, layer: int, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if self._is_reading:
            basis = self._guard.basis(layer).to(resid.device)
            self._references[layer] = coordinates(resid[:, -1].float(), basis)
            return resid
        if self._places.mask is None:
            raise ModelError(
                f"{self._vlm.name!r} generates past its own forward pass, so the places of its tokens are "
                "not known; only its forward pass can be guarded"
            )
        return self._guard.change(resid, layer, self._references.get(layer), self._places.mask)
