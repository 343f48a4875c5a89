"""Token positions at which a guard changes states, followed from pass to pass."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import ModelError


@dataclass
class PositionTracker:
    """Follows the passes through a model and knows which positions of the current pass change.

    A pass without a cache that repeats the previous one and adds a token is generation. Its positions are those that a
    pass with a cache would have had, so both give the same logits.
    """

    positions: str
    image_positions: Callable[[Int[Tensor, "batch pos"]], Bool[Tensor, "batch pos"]]
    prompt_length: int | None = None
    previous_ids: Int[Tensor, "batch pos"] | None = None
    """Token ids of the previous pass, if it ran without a cache."""
    mask: Bool[Tensor, "batch pos"] | None = None
    """Positions of the current pass whose state changes."""

    def begin_pass(self, ids: Int[Tensor, "batch pos"], kwargs: dict) -> bool:
        """Set the mask of a pass and return whether the pass begins a new prompt.

        Raises:
            ModelError: the positions of this pass can't be located.
        """
        cache, attention_mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        n_cached = int(cache.get_seq_length()) if cache is not None else 0
        if n_cached and (ids.shape[1] > 1 or self.prompt_length is None):
            raise ModelError(
                f"a pass of {ids.shape[1]} tokens after {n_cached} cached ones: a guard can't locate token positions "
                "in cached chats, chunked prefill or assisted decoding; pass whole prompts"
            )
        if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2):
            raise ModelError(
                "a prepared attention mask, as static caches make; a guard needs a mask of shape (batch, pos)"
            )
        is_new = self.prompt_length is None or (n_cached == 0 and not self._continues(ids))
        if is_new:
            self.prompt_length = ids.shape[1]
        self.previous_ids = ids if n_cached == 0 else None
        self.mask = self._mask_of_pass(ids, attention_mask, n_cached)
        return is_new

    def _mask_of_pass(
        self, ids: Int[Tensor, "batch pos"], attention_mask: Tensor | None, n_cached: int
    ) -> Bool[Tensor, "batch pos"]:
        """Return the mask of a pass, on the CPU if it follows from lengths alone: reading it then needs no wait."""
        # A pass without a cache runs earlier positions again, so they change again.
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
        """Return whether a pass without a cache repeats the previous one with one more token: generation.

        Only the prompts are compared, because beam search reorders generated tokens between the beams of a prompt.
        """
        previous = self.previous_ids
        if previous is None or len(ids) != len(previous) or ids.shape[1] != previous.shape[1] + 1:
            return False
        return torch.equal(ids[:, : self.prompt_length], previous[:, : self.prompt_length])
