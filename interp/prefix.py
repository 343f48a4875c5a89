"""Prompts about the same picture share all that stands before their requests: it is run once.

Prefill the shared prefix, keep its keys and values, and run only the suffixes against them. Right only where the prefix
does not look ahead, which is proved on each model before it is used: `why_not`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from interp.vlm import VLM

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shared:
    """Single prompts, cut where they begin to differ."""

    prefix: Inputs
    """One row: what all of them begin with, with the picture."""
    suffixes: tuple[Int[Tensor, " pos"], ...]

    @property
    def n_prefix(self) -> int:
        return self.prefix["input_ids"].shape[1]

    @classmethod
    def of(cls, vlm: VLM, singles: Sequence[Inputs]) -> "Shared | None":
        """None where they don't share their pictures' whole place, or one of them is the beginning of the others.

        Args:
            vlm: says which tokens stand for pictures.
            singles: prompts with the same pictures, as batches of one without padding.
        """
        rows = [single["input_ids"][0] for single in singles]
        shortest = min(map(len, rows))
        first = rows[0][:shortest]
        differs = torch.stack([row[:shortest] != first for row in rows]).any(0)
        n_prefix = min(int(differs.int().argmax()) if differs.any() else shortest, shortest - 1)
        if any(vlm.image_positions(row[None])[0, n_prefix:].any() for row in rows):
            return None
        n_tokens = len(rows[0])
        cut = {
            name: value[:, :n_prefix] if value.shape[:2] == (1, n_tokens) and value.dim() == 2 else value
            for name, value in singles[0].items()
        }
        return cls(cut, tuple(row[n_prefix:] for row in rows))

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Some of the suffixes, padded on the right: what is padding comes after every token that is read."""
        chosen = [self.suffixes[row] for row in rows]
        longest = max(map(len, chosen))
        ids = torch.stack([pad(row, (0, longest - len(row))) for row in chosen])
        lengths = torch.tensor([len(row) for row in chosen], device=ids.device)
        is_token = torch.arange(longest, device=ids.device) < lengths[:, None]
        mask = pad(is_token, (self.n_prefix, 0), value=True)
        return {"input_ids": ids, "attention_mask": mask.long()}


class _PrefixLayer(DynamicLayer):
    """Keys and values of a prefix, with room behind them that every batch of suffixes writes over."""

    def __init__(self, layer: DynamicLayer, n_rows: int, n_room: int):
        super().__init__()
        self.n_prefix = layer.keys.shape[-2]
        self.keys, self.values = (_with_room(states, n_rows, n_room) for states in (layer.keys, layer.values))
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Float[Tensor, "batch head pos d_head"], Float[Tensor, "batch head pos d_head"]]:
        n_rows, end = len(key_states), self.n_prefix + key_states.shape[-2]
        self.keys[:n_rows, :, self.n_prefix : end] = key_states
        self.values[:n_rows, :, self.n_prefix : end] = value_states
        return self.keys[:n_rows, :, :end], self.values[:n_rows, :, :end]

    def get_seq_length(self) -> int:
        return self.n_prefix

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.n_prefix + query_length, 0


def _with_room(states: Float[Tensor, "1 head pos d_head"], n_rows: int, n_room: int) -> Tensor:
    _, n_heads, n_prefix, d_head = states.shape
    roomy = states.new_empty(n_rows, n_heads, n_prefix + n_room, d_head)
    roomy[:, :, :n_prefix] = states
    return roomy


def roomy_cache(filled: DynamicCache, n_rows: int, n_room: int) -> Cache:
    """A prefix's cache for batches of up to `n_rows` suffixes of up to `n_room` tokens."""
    return Cache(layers=[_PrefixLayer(layer, n_rows, n_room) for layer in filled.layers])
