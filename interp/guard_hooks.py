"""A guard at work: it follows the passes through a model, reads what its guard needs, and changes what it says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interp.bare import _BARE, bare
from interp.families import ModelError, sublayers
from interp.inputs import text_batch
from interp.projection import coordinates, delta_norm
from interp.prompt_text import prompt_texts
from interp.vlm import VLM

if TYPE_CHECKING:
    from interp.guard import Guard


@dataclass
class PositionTracker:
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
        n_cached = int(cache.get_seq_length()) if cache is not None else 0
        if n_cached and (ids.shape[1] > 1 or self.prompt_length is None):
            raise ModelError(
                f"a pass of {ids.shape[1]} tokens behind {n_cached} cached ones: a guard can't tell the places of a "
                "chat that keeps its cache, of a prefill in chunks or of assisted decoding; give it whole prompts"
            )
        if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2):
            raise ModelError("a prepared attention mask, as static caches make; a guard needs the plain one of tokens")
        is_new = self.prompt_length is None or (n_cached == 0 and not self._continues(ids))
        if is_new:
            self.prompt_length = ids.shape[1]
        self.seen = ids if n_cached == 0 else None
        self.mask = self._places(ids, attention_mask, n_cached)
        return is_new

    def _places(
        self, ids: Int[Tensor, "batch pos"], attention_mask: Tensor | None, n_cached: int
    ) -> Bool[Tensor, "batch pos"]:
        """On the CPU where the places follow from lengths alone: what they are is then known without a wait."""
        place = torch.arange(n_cached, n_cached + ids.shape[1]).expand(ids.shape)
        if self.positions == "last_prefill":
            return place == self.prompt_length - 1
        if self.positions == "generated":
            return place >= self.prompt_length
        if self.positions == "last":
            return place >= self.prompt_length - 1
        is_token = torch.ones_like(ids, dtype=torch.bool)
        if attention_mask is not None:
            is_token = attention_mask[:, n_cached : n_cached + ids.shape[1]].bool()
        if self.positions == "all":
            return is_token
        return (place < self.prompt_length).to(ids.device) & is_token & ~self.image_positions(ids)

    def _continues(self, ids: Int[Tensor, "batch pos"]) -> bool:
        """Whether this pass without a cache is the last one again with a token more: generation, not a new prompt.

        What was generated may have changed places: beams do, within their prompt.
        """
        if self.seen is None or len(ids) != len(self.seen) or ids.shape[1] != self.seen.shape[1] + 1:
            return False
        return torch.equal(ids[:, : self.prompt_length], self.seen[:, : self.prompt_length])


class GuardHooks:
    """A guard at work on a model, from pass to pass."""

    def __init__(
        self,
        guard: "Guard",
        vlm: VLM,
        states: Float[Tensor, "batch layer d_model"] | None,
        told: list[dict] | None,
    ):
        self._guard, self._vlm = guard, vlm
        self._places = PositionTracker(guard.positions, vlm.image_positions)
        self._reads_itself = states is None and guard.needs_reference
        self._taking: dict[int, Tensor] | None = None
        """Last states by layer, while a bare pass is run for them."""
        self._unguarded: dict[int, Tensor] = {}
        self._given = {} if states is None else {i: states[:, i] for i in guard.layers}
        self._references: dict[int, Tensor] = {}
        self._open: dict[int, Tensor] = {}
        """Each row's gate, by layer."""
        self._told = told
        """Where `Guard.explain` wants to be told of each change."""

    def begin_pass(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Forward pre-hook of the whole model."""
        if module in _BARE:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError("a guarded model needs input_ids to know the places of its tokens; got none")
        if not self._places.begin_pass(ids, kwargs):
            return
        if self._guard.frozen_shift:
            whole = {name: value for name, value in kwargs.items() if name not in ("past_key_values", "use_cache")}
            self._unguarded = self._read(lambda: module(*args, **whole, use_cache=False))
        if self._reads_itself:
            # The prompts without their pictures.
            batch = text_batch(self._vlm, prompt_texts(self._vlm, ids, kwargs.get("attention_mask")))
            self._references = self._read(lambda: module(**batch, use_cache=False))
        else:
            self._references = {layer: _repeated(states, ids) for layer, states in self._given.items()}
        if self._references and self._guard.gate != "always":
            self._open = {layer: self._guard.opens_at(layer, self._references) for layer in self._guard.layers}

    @torch.no_grad()
    def _read(self, run: Callable[[], object]) -> dict[int, Float[Tensor, "batch d_model"]]:
        """Last states of a bare pass, which the hooks take down on the way."""
        self._taking, taken = {}, {}
        try:
            with bare(self._vlm.model):
                run()
        finally:
            self._taking, taken = None, self._taking
        silent = [layer for layer in self._guard.layers if layer not in taken]
        if silent:
            raise ModelError(
                f"layers {silent} of {self._vlm.name!r} don't run without a picture; pass references explicitly: "
                "guard.on(vlm, references=[...])"
            )
        return taken

    def hooks(self, layer: int) -> list[RemovableHandle]:
        """Where the state of a layer is final: what its block puts out. Or where it is written: in all of its parts.

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

        if self._guard.all_writes:
            parts = [part.register_forward_hook(change_output, prepend=True) for part in sublayers(blocks[layer])]
            taken_in = blocks[layer].register_forward_pre_hook(change_input, with_kwargs=True, prepend=True)
            return [taken_in, *parts]
        if layer in self._vlm.deepstack_layers and layer + 1 < len(blocks):
            return [blocks[layer + 1].register_forward_pre_hook(change_input, with_kwargs=True, prepend=True)]
        # In front of other hooks: whoever looks at the block, transformers' own `hidden_states` too, sees the change.
        return [blocks[layer].register_forward_hook(change_output, prepend=True)]

    def _change(self, layer: int, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if self._taking is not None:
            self._taking[layer] = resid[:, -1]
        if self._vlm.model in _BARE:
            return resid
        mask = self._places.mask
        if mask is None:
            raise ModelError(
                f"{self._vlm.name!r} generates past its own forward pass, so the places of its tokens are "
                "not known; only its forward pass can be guarded"
            )
        reference = self._references.get(layer)
        is_open = self._open.get(layer)
        changed = self._guard.change(resid, layer, reference, mask, is_open, self._unguarded.get(layer))
        if self._told is not None:
            self._tell(layer, resid[:1, -1].float(), changed[:1, -1].float(), reference, is_open)
        return changed

    def _tell(
        self, layer: int, before: Tensor, after: Tensor, reference: Tensor | None, is_open: Tensor | None
    ) -> None:
        basis = self._guard.basis(layer).to(before.device)
        first = lambda states: coordinates(states.to(before.device).float(), basis)[0, 0].item()  # noqa: E731
        self._told.append(
            {
                "layer": layer,
                "coordinate": first(before),
                "reference_coordinate": float("nan") if reference is None else first(reference[:1]),
                "gate": True if is_open is None else bool(is_open[0]),
                "after": first(after),
                "delta_norm": delta_norm(after, before).item(),
            }
        )


def _repeated(states: Float[Tensor, "reference d_model"], ids: Int[Tensor, "batch pos"]) -> Tensor:
    """References for the rows of a batch, in which `generate` may have repeated each prompt.

    Raises:
        ValueError: other rows than references.
    """
    n, times = len(states), len(ids) // max(1, len(states))
    if n == len(ids):
        return states
    if n and times * n == len(ids) and torch.equal(ids, ids[::times].repeat_interleave(times, dim=0)):
        return states.repeat_interleave(times, dim=0)
    raise ValueError(f"{n} references for a batch of {len(ids)} rows; expected one each")
