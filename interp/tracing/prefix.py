"""Prompts about the same picture share everything before their requests, which is run once.

The shared prefix is prefilled, its keys and values are kept, and only the suffixes are run against them. This is exact
only where the prefix does not look ahead; `shares_prefixes` tests that on each model before anything relies on it.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from interp.bare import is_guarded
from interp.errors import NO_NUMBERS, ModelError, first_line, is_out_of_memory
from interp.inputs import Inputs, collate, collate_same_pictures, text_prompt
from interp.precision import precision_of
from interp.tracing.forward import PassSpec, read
from interp.typography import noise_picture
from interp.vlm import LLM, VLM

PREFIX_TOLERANCE = 1e-4
"""Largest difference between shared and full runs, relative to the largest state of the layer, in float32."""
HALF_PREFIX_TOLERANCE, MOST_ROUNDING = 1e-2, 5e-2
"""The same difference in 16-bit precision, and how large it may be if rounding alone explains it."""
ROUNDING = 3.0
"""How many times the difference between prompts run in a batch and one by one rounding alone may explain."""
CACHE_BYTES = 256e6
"""Memory for copies of a prefix's keys and values on a CPU, where more rows than that are slower, not faster."""
CACHE_SHARE = 0.1
"""Share of an accelerator's memory for these copies. All memory counts: what is free differs from run to run."""
MIN_ROWS = 4
"""Rows in a pass, however large the copies are."""
ROOM_STEP = 32
"""Caches have room for the next multiple of this many tokens, so that slightly longer suffixes need no new copies."""


@dataclass(frozen=True)
class CutPrompts:
    """Single prompts about the same picture, cut after it."""

    prefix: Inputs
    """Inputs of one row: what all prompts begin with, picture included."""
    suffixes: tuple[Int[Tensor, " _"], ...]
    """Token ids of each prompt after the cut."""

    @property
    def n_prefix(self) -> int:
        """Number of tokens before the cut."""
        return self.prefix["input_ids"].shape[1]

    @classmethod
    def of(cls, vlm: VLM, first: Inputs, rows: Sequence[Int[Tensor, " _"]]) -> "CutPrompts | None":
        """Cut prompts after the last token of the picture, wherever else they may agree.

        The cut does not depend on which prompts are in the batch. Returns None if the family's pictures are not part of
        the token sequence, or if the prompts differ before the cut.

        Args:
            vlm: finds the tokens of the picture.
            first: the first prompt as a batch of one.
            rows: token ids of every prompt, all with the same pictures, without padding.
        """
        image_positions = vlm.picture_mark_positions(rows[0][None])[0].nonzero()
        if not len(image_positions):
            return None
        n_prefix, n_tokens = int(image_positions.max()) + 1, len(rows[0])
        if not all(len(row) > n_prefix and torch.equal(row[:n_prefix], rows[0][:n_prefix]) for row in rows):
            return None
        # Inputs with one entry per token are cut; pixels and the like stay whole.
        cut = {name: value[:, :n_prefix] if value.shape == (1, n_tokens) else value for name, value in first.items()}
        return cls(cut, tuple(row[n_prefix:] for row in rows))

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return some of the suffixes, padded on the right. No mask: padding comes after every token that is read."""
        suffixes = [self.suffixes[row] for row in rows]
        longest = max(map(len, suffixes))
        ids = torch.stack([pad(suffix, (0, longest - len(suffix))) for suffix in suffixes])
        return {"input_ids": ids.to(self.prefix["input_ids"].device)}


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer, with free room after them.

    Every pass writes into that room from `n_kept` on. What a pass wrote is kept by increasing `n_kept`, and overwritten
    by the next pass otherwise.
    """

    def __init__(self, layer: DynamicLayer, n_rows: int, n_room: int):
        super().__init__()
        self.n_kept = layer.keys.shape[-2]
        self.keys, self.values = (_with_room(states, n_rows, n_room) for states in (layer.keys, layer.values))
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Float[Tensor, "batch head pos d_head"], Float[Tensor, "batch head pos d_head"]]:
        """Write the keys and values of a pass, and return all that the pass attends to."""
        n_rows, end = len(key_states), self.n_kept + key_states.shape[-2]
        self.keys[:n_rows, :, self.n_kept : end] = key_states
        self.values[:n_rows, :, self.n_kept : end] = value_states
        return self.keys[:n_rows, :, :end], self.values[:n_rows, :, :end]

    def get_seq_length(self) -> int:
        """Return the number of tokens that are kept."""
        return self.n_kept

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that a pass attends to, and the position of the first one."""
        return self.n_kept + query_length, 0


def _with_room(states: Float[Tensor, "row head pos d_head"], n_rows: int, n_room: int) -> Tensor:
    _, n_heads, n_filled, d_head = states.shape
    enlarged = states.new_empty(n_rows, n_heads, n_filled + n_room, d_head)
    enlarged[:, :, :n_filled] = states
    return enlarged


def preallocated_cache(filled: DynamicCache, n_rows: int, n_room: int) -> Cache:
    """Copy a cache, of one row or of `n_rows`, for batches of up to `n_rows` with up to `n_room` further tokens."""
    return Cache(layers=[PreallocatedLayer(layer, n_rows, n_room) for layer in filled.layers])


def cache_room(device: torch.device) -> float:
    """Return how many bytes copies of keys and values may take."""
    if device.type == "cuda":
        return CACHE_SHARE * torch.cuda.get_device_properties(device).total_memory
    return CACHE_BYTES


@dataclass
class Prefix:
    """A prefix that has been run: its keys and values, and the states read in it."""

    states: dict[str, Tensor]
    """Sums over its tokens (`1 layer sum d_model`), and means over its pictures."""
    _filled: DynamicCache
    """Keys and values of the prefix, one row."""
    _rope_deltas: dict[nn.Module, Tensor]
    """Position at which the prefix ended, by module that remembers it."""
    _copies: Cache | None = None
    """The prefix repeated for the rows of a batch, with room for their suffixes."""
    _n_rows: int = 0
    _n_room: int = 0

    @classmethod
    def run(cls, vlm: VLM, cut: CutPrompts, spec: PassSpec) -> "Prefix":
        """Run what all prompts begin with in one pass.

        Args:
            vlm: left unchanged.
            cut: the cut prompts.
            spec: what to read in the prefix's single row; the pass stops after the last layer read.
        """
        # Without a config: caches of sliding windows would drop the beginning of a long prefix.
        filled = DynamicCache()
        states = read(vlm, cut.prefix, spec, filled)
        return cls(states, filled, {module: module.rope_deltas for module in _modules_with_rope_deltas(vlm)})

    def read_suffixes(
        self, vlm: VLM, cut: CutPrompts, spec_of: Callable[[Sequence[int], int], PassSpec]
    ) -> dict[str, Float[Tensor, "prompt layer token d_model"]]:
        """Run the suffixes, as many in a pass as there is room for copies of the prefix's keys and values.

        Args:
            vlm: the model that the prefix was run on.
            cut: prompts with this prefix.
            spec_of: called with the rows of a pass and their padded length; returns what to read, counted from the cut.
        """
        n_rows, longest = self.max_rows(len(cut.suffixes)), max(map(len, cut.suffixes))
        self._make_room(n_rows, longest)
        self.restore_positions()
        parts = []
        for start in range(0, len(cut.suffixes), n_rows):
            rows = range(start, min(start + n_rows, len(cut.suffixes)))
            batch = cut.batch(rows)
            parts.append(read(vlm, batch, spec_of(rows, batch["input_ids"].shape[1]), self._copies))
        return {site: torch.cat([states[site] for states in parts]) for site in parts[0]}

    def restore_positions(self) -> None:
        """Set the position at which the prefix ended, for families that remember it: other prompts may have run."""
        for module, deltas in self._rope_deltas.items():
            module.rope_deltas = deltas

    def copies(self, n_rows: int, n_room: int) -> Cache:
        """Return a new cache with the prefix, for `n_rows` suffixes of up to `n_room` tokens."""
        return preallocated_cache(self._filled, n_rows, n_room)

    def max_rows(self, n: int) -> int:
        """Return how many of `n` rows there is room for in one pass."""
        bytes_per_row = sum(states.nbytes for layer in self._filled.layers for states in (layer.keys, layer.values))
        return min(n, max(MIN_ROWS, int(cache_room(self._filled.layers[0].keys.device) / bytes_per_row)))

    def _make_room(self, n_rows: int, n_room: int) -> None:
        """Make new copies of the prefix if the present ones are too few or too short."""
        if n_rows > self._n_rows or n_room > self._n_room:
            for layer in self._copies.layers if self._copies else ():
                # The last trace still refers to its cache; without this both caches would be in memory for a while.
                layer.keys = layer.values = None
            n_room = -(-n_room // ROOM_STEP) * ROOM_STEP
            self._n_rows, self._n_room = max(n_rows, self._n_rows), max(n_room, self._n_room)
            self._copies = self.copies(self._n_rows, self._n_room)


@dataclass(frozen=True)
class LastPrefix:
    """The last prefix that was run, kept in case the next batch begins with it too."""

    key: str
    """Equal for prompts that begin alike."""
    ids: Int[Tensor, "1 pos"]
    prefix: Prefix

    def serves(self, key: str, cut: CutPrompts) -> bool:
        """Return whether these prompts begin with it. Texts before the picture can differ; then the ids do."""
        return self.key == key and torch.equal(self.ids, cut.prefix["input_ids"])


def _modules_with_rope_deltas(vlm: VLM) -> list[nn.Module]:
    """Return modules that remember where the last prompt ended, since pictures take fewer positions than tokens."""
    return [module for module in vlm.model.modules() if getattr(module, "rope_deltas", None) is not None]


class SharingDisabled(UserWarning):
    """Prefixes can't be shared on this model, for the reason given."""


_SHARING: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def shares_prefixes(vlm: VLM | LLM) -> bool:
    """Return whether suffixes run against a shared prefix give the states of whole prompts.

    That holds if no token of the prefix attends to a later one. It is tested on two prompts, once per model, with a
    warning where it fails. It is False on a guarded model, where a guard would take the end of the prefix for the end
    of the prompt.
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
"""Requests of different lengths that `shares_prefixes` tests a model with."""


def _why_not(vlm: VLM | LLM) -> str | None:
    """Return the reason why prefixes can't be shared; None if shared and full runs agree."""
    if not vlm.family.pictures_in_sequence:
        return "its pictures are not part of the token sequence"
    if isinstance(vlm, LLM):
        return _why_not_of_text(vlm)
    picture = noise_picture(vlm.picture_size, 0)
    prompts = [replace(text_prompt(text), pictures=(picture,)) for text in PROBE_TEXTS]
    layers = tuple(range(vlm.n_layers))

    def spec_at(positions: Sequence[int]) -> PassSpec:
        return PassSpec(("resid_post",), layers, torch.tensor(positions)[:, None])

    try:
        cut = CutPrompts.of(vlm, *collate_same_pictures(vlm, prompts))
        if cut is None:
            return "it encodes the same picture differently with different texts"
        prefix = Prefix.run(vlm, cut, PassSpec(("resid_post",), layers, torch.zeros(1, 0, dtype=torch.long)))
        ends = [len(suffix) - 1 for suffix in cut.suffixes]
        shared = prefix.read_suffixes(vlm, cut, lambda rows, n: spec_at([ends[i] for i in rows]))["resid_post"]
    except (ValueError, RuntimeError, AttributeError, TypeError, KeyError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        return f"its code accepts no such prefix ({type(error).__name__}: {first_line(error)})"
    whole = torch.cat([read(vlm, collate(vlm, [prompt]), spec_at([-1]))["resid_post"] for prompt in prompts])
    if not (shared.isfinite().all() and whole.isfinite().all()):
        raise ModelError(f"{vlm.name!r} has states that are no finite numbers: {NO_NUMBERS}")
    difference, tolerance = _difference(shared, whole), PREFIX_TOLERANCE
    if difference > tolerance and precision_of(vlm.model) != "float32":
        together = read(vlm, collate(vlm, prompts), spec_at([-1] * len(prompts)))["resid_post"]
        explained = min(ROUNDING * _difference(together, whole), MOST_ROUNDING)
        tolerance = max(HALF_PREFIX_TOLERANCE, explained)
    return None if difference <= tolerance else f"its prefix looks ahead (relative difference {difference:.1e})"


def _difference(
    ours: Float[Tensor, "prompt layer token d_model"], theirs: Float[Tensor, "prompt layer token d_model"]
) -> float:
    """Return the largest difference, of each layer relative to its largest state: states grow with depth."""
    scale = theirs.abs().amax((0, 2, 3))
    return ((ours - theirs).abs().amax((0, 2, 3)) / scale).max().item()


def _why_not_of_text(llm: LLM) -> str | None:
    """Compare the states of half a prompt with those of the same tokens within the whole prompt."""
    whole = collate(llm, [text_prompt(PROBE_TEXTS[1])])
    end, layers = whole["input_ids"].shape[1] // 2, tuple(range(llm.n_layers))
    half = {name: tensor[:, : end + 1] for name, tensor in whole.items()}
    shared, own = (
        read(llm, batch, PassSpec(("resid_post",), layers, torch.tensor([[end]])))["resid_post"]
        for batch in (half, whole)
    )
    difference = _difference(shared, own)
    tolerance = PREFIX_TOLERANCE if precision_of(llm.model) == "float32" else HALF_PREFIX_TOLERANCE
    return None if difference <= tolerance else f"its tokens look ahead (relative difference {difference:.1e})"
