"""Prompts about the same picture share all that stands before their requests: it is run once.

Prefill the shared prefix, keep its keys and values, and run only the suffixes against them. Right only where the prefix
does not look ahead; `shares_prefixes` tries that on each model before anything relies on it.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from interp.bare import is_guarded
from interp.families import first_line, is_out_of_memory
from interp.inputs import collate, collate_alike, text_prompt
from interp.tracing.forward import PassSpec, read
from interp.typography import noise_picture
from interp.vlm import VLM

Inputs = Mapping[str, Tensor]

AGREEMENT = 1e-4
"""Largest difference between shared and full runs, relative to the largest state of the layer, in float32."""
HALF_AGREEMENT = 2e-2
CACHE_BYTES = 256e6
"""Of the copies of a prefix's keys and values, on a CPU. More rows than that are slower there, not faster."""
CACHE_SHARE = 0.1
"""The same on an accelerator, of all its memory: what happens to be free would change with every run."""
FEWEST_ROWS = 4
"""In a pass, whatever the copies take."""
ROOM = 32
"""Tokens. Suffixes have room for the next multiple of it, so that somewhat longer ones need no new copies."""


@dataclass(frozen=True)
class CutPrompts:
    """Single prompts about the same picture, cut behind it."""

    prefix: Inputs
    """One row: what all of them begin with, with the picture."""
    suffixes: tuple[Int[Tensor, " _"], ...]

    @property
    def n_prefix(self) -> int:
        return self.prefix["input_ids"].shape[1]

    @classmethod
    def of(cls, vlm: VLM, first: Inputs, rows: Sequence[Int[Tensor, " _"]]) -> "CutPrompts | None":
        """Cut behind the last token of the picture, so that it does not depend on which prompts come together.

        None where a family's pictures take no place in the sequence, or the prompts differ before that.

        Args:
            vlm: says which tokens stand for pictures.
            first: prompt, as a batch of one.
            rows: token ids of every prompt, all with the same pictures, without padding.
        """
        places = vlm.image_positions(rows[0][None])[0].nonzero()
        if not len(places):
            return None
        n_prefix, n_tokens = int(places.max()) + 1, len(rows[0])
        if not all(len(row) > n_prefix and torch.equal(row[:n_prefix], rows[0][:n_prefix]) for row in rows):
            return None
        cut = {name: value[:, :n_prefix] if value.shape == (1, n_tokens) else value for name, value in first.items()}
        return cls(cut, tuple(row[n_prefix:] for row in rows))

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Some of the suffixes, padded on the right. No mask: padding comes after every token that is read."""
        chosen = [self.suffixes[row] for row in rows]
        longest = max(map(len, chosen))
        ids = torch.stack([pad(row, (0, longest - len(row))) for row in chosen])
        return {"input_ids": ids.to(self.prefix["input_ids"].device)}


class PreallocatedLayer(DynamicLayer):
    """Keys and values, with room behind them that every pass writes over: what it wrote is kept by moving `n_kept`."""

    def __init__(self, layer: DynamicLayer, n_rows: int, n_room: int):
        super().__init__()
        self.n_kept = layer.keys.shape[-2]
        self.keys, self.values = (_with_room(states, n_rows, n_room) for states in (layer.keys, layer.values))
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Float[Tensor, "batch head pos d_head"], Float[Tensor, "batch head pos d_head"]]:
        n_rows, end = len(key_states), self.n_kept + key_states.shape[-2]
        self.keys[:n_rows, :, self.n_kept : end] = key_states
        self.values[:n_rows, :, self.n_kept : end] = value_states
        return self.keys[:n_rows, :, :end], self.values[:n_rows, :, :end]

    def get_seq_length(self) -> int:
        return self.n_kept

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.n_kept + query_length, 0


def _with_room(states: Float[Tensor, "row head pos d_head"], n_rows: int, n_room: int) -> Tensor:
    _, n_heads, n_filled, d_head = states.shape
    roomy = states.new_empty(n_rows, n_heads, n_filled + n_room, d_head)
    roomy[:, :, :n_filled] = states
    return roomy


def preallocated_cache(filled: DynamicCache, n_rows: int, n_room: int) -> Cache:
    """A cache of one row, or of as many, for batches of up to `n_rows` and up to `n_room` tokens more."""
    return Cache(layers=[PreallocatedLayer(layer, n_rows, n_room) for layer in filled.layers])


def cache_room(device: torch.device) -> float:
    """Bytes that copies of keys and values may take."""
    if device.type == "cuda":
        return CACHE_SHARE * torch.cuda.get_device_properties(device).total_memory
    return CACHE_BYTES


@dataclass
class Prefix:
    """A prefix that has been run: its keys and values, and what was read in it."""

    states: dict[str, Tensor]
    """Sums over its tokens (`1 layer sum d_model`), and means over its pictures."""
    _filled: DynamicCache
    _mrope: dict[nn.Module, Tensor]
    _roomy: Cache | None = None
    _n_rows: int = 0
    _n_room: int = 0

    @classmethod
    def run(cls, vlm: VLM, shared: CutPrompts, reading: PassSpec) -> "Prefix":
        """One pass through what all prompts begin with.

        Args:
            vlm: left as it is.
            shared: the cut prompts.
            reading: of the prefix's single row; the pass stops after the last layer in it.
        """
        # Without a config: caches of sliding windows would throw the beginning of a long prefix away.
        filled = DynamicCache()
        states = read(vlm, shared.prefix, reading, filled)
        return cls(states, filled, {module: module.rope_deltas for module in _with_mrope(vlm)})

    def read_suffixes(
        self, vlm: VLM, shared: CutPrompts, readings: Callable[[Sequence[int], int], PassSpec]
    ) -> dict[str, Float[Tensor, "prompt layer token d_model"]]:
        """The suffixes, as many in a pass as there is room for copies of the prefix's keys and values.

        Args:
            vlm: the model that the prefix was run on.
            shared: prompts with this prefix.
            readings: from rows and the length that they are padded to, to what is read of them, counted from the cut.
        """
        n_rows, longest = self.most_rows(len(shared.suffixes)), max(map(len, shared.suffixes))
        self._make_room(n_rows, longest)
        self.set_positions()
        found = []
        for start in range(0, len(shared.suffixes), n_rows):
            rows = range(start, min(start + n_rows, len(shared.suffixes)))
            batch = shared.batch(rows)
            found.append(read(vlm, batch, readings(rows, batch["input_ids"].shape[1]), self._roomy))
        return {site: torch.cat([states[site] for states in found]) for site in found[0]}

    def set_positions(self) -> None:
        """Where the prefix ended, for families that remember it. Other prompts may have run since."""
        for module, deltas in self._mrope.items():
            module.rope_deltas = deltas

    def copies(self, n_rows: int, n_room: int) -> Cache:
        """A cache of its own, for `n_rows` suffixes of up to `n_room` tokens."""
        return preallocated_cache(self._filled, n_rows, n_room)

    def most_rows(self, n: int) -> int:
        """Of `n` rows, how many there is room for in one pass."""
        copied = sum(states.nbytes for layer in self._filled.layers for states in (layer.keys, layer.values))
        return min(n, max(FEWEST_ROWS, int(cache_room(self._filled.layers[0].keys.device) / copied)))

    def _make_room(self, n_rows: int, n_room: int) -> None:
        """Copies are made again only where those that are there do not suffice."""
        if n_rows > self._n_rows or n_room > self._n_room:
            for layer in self._roomy.layers if self._roomy else ():
                # The last trace holds on to the cache that it was given: two such caches would be there for a while.
                layer.keys = layer.values = None
            self._n_rows, self._n_room = max(n_rows, self._n_rows), max(-(-n_room // ROOM) * ROOM, self._n_room)
            self._roomy = self.copies(self._n_rows, self._n_room)


@dataclass(frozen=True)
class LastPrefix:
    """The last prefix that was run, in case that the next batch begins with it too."""

    key: str
    """The same for prompts that begin alike."""
    ids: Int[Tensor, "1 pos"]
    prefix: Prefix

    def serves(self, key: str, shared: CutPrompts) -> bool:
        """Whether these prompts begin with it. Where the texts differ before the picture, the ids do."""
        return self.key == key and torch.equal(self.ids, shared.prefix["input_ids"])


def _with_mrope(vlm: VLM) -> list[nn.Module]:
    """Modules that remember where the last prompt ended, since pictures take fewer positions than tokens."""
    return [module for module in vlm.model.modules() if getattr(module, "rope_deltas", None) is not None]


class SharingDisabled(UserWarning):
    """Prefixes can't be shared on this model; says why."""


_SHARING: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def shares_prefixes(vlm: VLM) -> bool:
    """Whether suffixes run against a shared prefix see what whole prompts see: tried on two, once for each model.

    That is the case where no token of the prefix attends to one behind it. A warning says so where it is not. On a
    guarded model they don't: to the guard the end of the prefix would be the end of a prompt.
    """
    if is_guarded(vlm.model):
        return False
    if vlm.model not in _SHARING:
        reason = _why_not(vlm)
        _SHARING[vlm.model] = reason is None
        if reason:
            warnings.warn(
                f"{vlm.name!r} runs every prompt in full; prompts about the same picture can't share it: {reason}",
                SharingDisabled,
                stacklevel=2,
            )
    return _SHARING[vlm.model]


PROBE_TEXTS = ("Why is the sky blue?", "Tell me, please, what the capital of that country is called today.")


def _why_not(vlm: VLM) -> str | None:
    """None where shared and full runs agree; else what is in the way."""
    if not vlm.family.pictures_in_sequence:
        return "its pictures take no place in the sequence"
    picture = noise_picture(vlm.picture_size, 0)
    prompts = [replace(text_prompt(text), pictures=(picture,)) for text in PROBE_TEXTS]
    layers = tuple(range(vlm.n_layers))
    last = lambda places: PassSpec(("resid_post",), layers, torch.tensor(places)[:, None])  # noqa: E731
    try:
        shared = CutPrompts.of(vlm, *collate_alike(vlm, prompts))
        if shared is None:
            return "it shows the same picture differently beside other texts"
        prefix = Prefix.run(vlm, shared, PassSpec(("resid_post",), layers, torch.zeros(1, 0, dtype=torch.long)))
        ends = [len(suffix) - 1 for suffix in shared.suffixes]
        ours = prefix.read_suffixes(vlm, shared, lambda rows, n: last([ends[i] for i in rows]))["resid_post"]
    except (ValueError, RuntimeError, AttributeError, TypeError, KeyError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        return f"its code takes no such prefix ({type(error).__name__}: {first_line(error)})"
    whole = torch.cat([read(vlm, collate(vlm, [prompt]), last([-1]))["resid_post"] for prompt in prompts])
    scale = whole.abs().amax((0, 2, 3))
    difference = ((ours - whole).abs().amax((0, 2, 3)) / scale).max().item()
    limit = AGREEMENT if vlm.model.dtype == torch.float32 else HALF_AGREEMENT
    return None if difference <= limit else f"its prefix looks ahead (states differ by {difference:.1e}, relative)"
