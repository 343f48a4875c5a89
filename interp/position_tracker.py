"""Token positions at which a guard changes states, followed from pass to pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakSet

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import Cache

from interp.errors import ModelError

LENGTHS = "guard.on(vlm, references, prompt_lengths=[...])"
"""How to say where prompts end."""


@dataclass
class PositionTracker:
    """Follows the passes through a model and knows which positions of the current pass change.

    By default a prompt ends where its first pass ends. A pass without a cache that repeats the previous one and adds a
    token is generation. Its positions are those that a pass with a cache would have had, so both give the same logits.
    """

    positions: str
    placeholder_positions: Callable[[Int[Tensor, "batch pos"]], Bool[Tensor, "batch pos"]]
    prompt_lengths: Sequence[int] | None = None
    """Tokens of each row's prompt, padding not counted, where passes don't end with the prompt."""
    ends: Int[Tensor, " batch"] | None = None
    """Place of each row's last prompt token, padding counted; None before the first pass."""
    previous_ids: Int[Tensor, "batch pos"] | None = None
    """Token ids of the previous pass, if it ran without a cache."""
    mask: Bool[Tensor, "batch pos"] | None = None
    """Positions of the current pass whose state changes; None between passes."""
    prompt_mask: Bool[Tensor, "batch pos"] | None = None
    """Positions of the prompts in their first pass, padding left out."""
    has_whole_prompts: bool = False
    """True if the first pass held all prompts, from their beginning up to their ends."""
    n_reached: int = 0
    """Places up to which passes have got since the prompt began."""
    cache: Cache | None = None
    """The cache of the latest pass."""
    earlier_caches: WeakSet = field(default_factory=WeakSet)
    """Caches of prompts that other prompts have followed."""

    def begin_pass(self, tokens: Tensor, kwargs: Mapping) -> bool:
        """Set the mask of a pass and return whether the pass begins a new prompt.

        Args:
            tokens: ids (batch, pos), or embeddings (batch, pos, d_model), which need `prompt_lengths`.
            kwargs: the other arguments of the pass.

        Raises:
            ModelError: the positions of this pass can't be located, or a pass went by unseen.
        """
        cache, n_new, is_given = kwargs.get("past_key_values"), tokens.shape[1], self.prompt_lengths is not None
        n_cached = _n_cached(cache)
        if not is_given and tokens.dim() == 3:
            raise ModelError(f"embeddings in place of input_ids don't say where a prompt ends; give it: {LENGTHS}")
        if n_cached and not is_given and (n_new > 1 or self.ends is None):
            raise ModelError(
                f"a pass of {n_new} tokens after {n_cached} cached ones: a guard can't locate token positions in "
                f"cached chats, chunked prefill or assisted decoding by itself; pass whole prompts, or {LENGTHS}"
            )
        # Also None where `generate` leaves out a mask that hides nothing.
        is_token = _token_mask(kwargs.get("attention_mask"), len(tokens), n_cached + n_new, is_given)
        is_new = self.ends is None or (n_cached == 0 and not self._continues(tokens))
        if is_new:
            # The last chance to find out about the prompts before.
            self.check_complete()
            self._retire_cache(cache)
            self._begin_prompts(tokens, is_token, n_cached)
        else:
            self._check_follows(tokens, cache, n_cached)
        self.cache, self.n_reached = cache, max(self.n_reached, n_cached + n_new)
        self.previous_ids = tokens if n_cached == 0 and tokens.dim() == 2 else None
        self.mask = self._mask_of_pass(tokens, is_token, n_cached)
        return is_new

    def end_pass(self, output: object = None) -> None:
        """Forget what holds for this pass alone: a pass that was not announced must not find it.

        Args:
            output: what the pass returned, maybe with a cache that it made; None if it failed, which leaves nothing
                that a later pass could go on with.
        """
        self.mask = None
        if isinstance(cache := getattr(output, "past_key_values", None), Cache):
            self.cache = cache
        if output is None:
            self.ends = self.previous_ids = self.cache = None

    def check_complete(self) -> None:
        """Check that the passes which were seen are all there were, and got to the end of every prompt.

        Raises:
            ModelError: a prompt ended before the place that was given, so nothing has changed yet; or the cache holds
                tokens of passes that were not seen.
        """
        if self.ends is not None and int(self.ends.max()) >= self.n_reached:
            raise ModelError(
                f"prompt_lengths {self.prompt_lengths}: the passes ended after {self.n_reached} places, before the "
                "end of a prompt; expected the number of tokens of each prompt, padding not counted"
            )
        self._check_cache(_n_cached(self.cache))

    def _check_cache(self, n_cached: int) -> None:
        if n_cached > self.n_reached:
            raise ModelError(
                f"a cache of {n_cached} tokens after passes over {self.n_reached}: the guard was off in a pass "
                "(compiled or replaced forward passes skip hooks), or it is the cache of another prompt"
            )

    def _check_follows(self, tokens: Tensor, cache: Cache | None, n_cached: int) -> None:
        """Check that a pass goes on with the prompts that are being answered.

        Raises:
            ModelError: it has other rows, or the cache of other prompts or of passes that were not seen.
        """
        if len(self.ends) != len(tokens):
            raise ModelError(f"a pass of {len(tokens)} rows while {len(self.ends)} prompts are being answered")
        self._check_cache(n_cached)
        # Only assisted decoding takes tokens back, and it is told where prompts end.
        is_shorter = 0 < n_cached < self.n_reached and self.prompt_lengths is None
        if is_shorter or (cache is not None and cache in self.earlier_caches):
            raise ModelError(
                f"a cache of {n_cached} tokens, which is not that of the last pass (over {self.n_reached}): the guard "
                "would use what it knows of another prompt; answer one batch of prompts at a time"
            )

    def _retire_cache(self, following: Cache | None) -> None:
        """Note that the current prompts are not answered further; their cache may be emptied for the following ones."""
        if self.cache is not None:
            self.earlier_caches.add(self.cache)
        if following is not None:
            self.earlier_caches.discard(following)

    def _begin_prompts(self, tokens: Tensor, is_token: Bool[Tensor, "batch total"] | None, n_cached: int) -> None:
        """Locate the prompts of a pass that begins them."""
        self.ends, self.n_reached = self._ends(tokens, is_token, n_cached + tokens.shape[1]), 0
        self.has_whole_prompts = n_cached == 0 and int(self.ends.max()) < tokens.shape[1]
        self.prompt_mask = self._prompt_mask(tokens, is_token, n_cached)

    def _ends(self, tokens: Tensor, is_token: Bool[Tensor, "batch total"] | None, total: int) -> Int[Tensor, " batch"]:
        """Return the place of each row's last prompt token.

        Raises:
            ModelError: the lengths that were given do not fit the rows.
        """
        n_rows = len(tokens)
        if self.prompt_lengths is None:
            return torch.full((n_rows,), total - 1)
        n = len(self.prompt_lengths)
        times = n_copies(tokens, n)
        if not times:
            raise ModelError(f"{n} prompt_lengths for a batch of {n_rows} rows; expected one per row")
        lengths = torch.tensor(self.prompt_lengths).repeat_interleave(times)
        if (lengths < 1).any():
            raise ModelError(f"prompt_lengths {lengths.tolist()}; expected at least one token each")
        first = torch.zeros(n_rows, dtype=torch.long) if is_token is None else is_token.int().argmax(1).cpu()
        return first + lengths - 1

    def _mask_of_pass(
        self, tokens: Tensor, is_token: Bool[Tensor, "batch total"] | None, n_cached: int
    ) -> Bool[Tensor, "batch pos"]:
        """Return the mask of a pass, on the CPU if it follows from lengths alone: reading it then needs no wait."""
        # A pass without a cache runs earlier positions again, so they change again.
        place, ends = torch.arange(n_cached, n_cached + tokens.shape[1])[None], self.ends[:, None]
        if self.positions == "last_prefill":
            return place == ends
        real = _real(tokens, is_token, n_cached)
        if self.positions in ("generated", "last"):
            after = place > ends if self.positions == "generated" else place >= ends
            # Padding on the right of an answer is no answer.
            return after if self.prompt_lengths is None else after.to(real.device) & real
        if self.positions == "all":
            return real.to(tokens.device)
        if tokens.dim() == 3:
            raise ModelError("positions 'text' with embeddings in place of input_ids: pictures can't be told from text")
        return self._prompt_mask(tokens, is_token, n_cached) & ~self.placeholder_positions(tokens)

    def _prompt_mask(
        self, tokens: Tensor, is_token: Bool[Tensor, "batch total"] | None, n_cached: int
    ) -> Bool[Tensor, "batch pos"]:
        """Return the positions of a pass that belong to prompts, on the device of the tokens."""
        place = torch.arange(n_cached, n_cached + tokens.shape[1])[None]
        return (place <= self.ends[:, None]).to(tokens.device) & _real(tokens, is_token, n_cached).to(tokens.device)

    def _continues(self, tokens: Tensor) -> bool:
        """Return whether a pass without a cache repeats the previous one with one more token: generation.

        Only the prompts are compared, because beam search reorders generated tokens between the beams of a prompt.
        """
        previous = self.previous_ids
        if previous is None or tokens.dim() == 3 or len(tokens) != len(previous):
            return False
        width = int(self.ends.max()) + 1
        if tokens.shape[1] != previous.shape[1] + 1 or width > previous.shape[1]:
            return False
        return torch.equal(tokens[:, :width], previous[:, :width])


def _real(tokens: Tensor, is_token: Bool[Tensor, "batch total"] | None, n_cached: int) -> Bool[Tensor, "batch pos"]:
    """Return the positions of a pass that are no padding."""
    if is_token is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool)
    return is_token[:, n_cached : n_cached + tokens.shape[1]]


def n_copies(tokens: Tensor, n_prompts: int) -> int:
    """Return how often each of the prompts is in a batch, in which `generate` puts the copies next to each other.

    Returns:
        0 if the batch does not consist of so many prompts and their copies.
    """
    times = len(tokens) // max(1, n_prompts)
    if times == 0 or times * n_prompts != len(tokens):
        return 0
    is_repeated = times == 1 or torch.equal(tokens, tokens[::times].repeat_interleave(times, dim=0))
    return times if is_repeated else 0


def _n_cached(cache: Cache | None) -> int:
    """Return the number of tokens in the cache that a pass continues."""
    return int(cache.get_seq_length()) if cache is not None else 0


def _token_mask(mask, n_rows: int, total: int, is_given: bool) -> Bool[Tensor, "batch total"] | None:
    """Return which of the cached and new tokens are no padding; None if there is no mask.

    In a prepared mask, as static caches make it, a token that no query sees is padding.

    Args:
        mask: the attention mask of the pass.
        n_rows: rows of the pass.
        total: number of cached and new tokens.
        is_given: whether prompt lengths are given, which a prepared mask needs.

    Raises:
        ModelError: the mask is prepared, and no prompt lengths are given; or it has another shape.
    """
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dim() == 2:
        if mask.shape[1] != total:
            raise ModelError(
                f"an attention mask of {mask.shape[1]} places for {total} cached and new tokens; expected one for each "
                "(a cache that is not passed as past_key_values can't be followed)"
            )
        return mask.bool()
    if not is_given:
        raise ModelError(
            "a prepared attention mask, as static caches make; a guard needs a mask of shape (batch, pos), or to be "
            f"told where prompts end: {LENGTHS}"
        )
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention")
    is_known = isinstance(mask, Tensor) and mask.dim() == 4 and len(mask) in (1, n_rows) and mask.shape[-1] >= total
    if not is_known:
        raise ModelError("an attention mask of an unknown form; expected (batch, pos), or (batch, head, query, key)")
    sees = mask[:, 0, :, :total]
    return (sees if sees.dtype == torch.bool else sees >= 0).any(1).expand(n_rows, -1)
