"""Token positions at which a guard changes states, followed from pass to pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

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
    n_reached: int = 0
    """Places up to which passes have got since the prompt began."""

    def begin_pass(self, tokens: Tensor, kwargs: Mapping) -> bool:
        """Set the mask of a pass and return whether the pass begins a new prompt.

        Args:
            tokens: ids (batch, pos), or embeddings (batch, pos, d_model), which need `prompt_lengths`.
            kwargs: the other arguments of the pass.

        Raises:
            ModelError: the positions of this pass can't be located.
        """
        n_cached, n_new, is_given = _n_cached(kwargs), tokens.shape[1], self.prompt_lengths is not None
        if not is_given and tokens.dim() == 3:
            raise ModelError(f"embeddings in place of input_ids don't say where a prompt ends; give it: {LENGTHS}")
        if n_cached and not is_given and (n_new > 1 or self.ends is None):
            raise ModelError(
                f"a pass of {n_new} tokens after {n_cached} cached ones: a guard can't locate token positions in "
                f"cached chats, chunked prefill or assisted decoding by itself; pass whole prompts, or {LENGTHS}"
            )
        is_token = _token_mask(kwargs.get("attention_mask"), len(tokens), n_cached + n_new, is_given)
        is_new = self.ends is None or (n_cached == 0 and not self._continues(tokens))
        if is_new:
            self.check_reached()
            self.ends, self.n_reached = self._ends(is_token, len(tokens), n_cached + n_new), 0
        elif len(self.ends) != len(tokens):
            raise ModelError(f"a pass of {len(tokens)} rows while {len(self.ends)} prompts are being answered")
        if is_new:
            self.prompt_mask = self._prompt_mask(tokens, is_token, n_cached)
        self.n_reached = max(self.n_reached, n_cached + n_new)
        self.previous_ids = tokens if n_cached == 0 and tokens.dim() == 2 else None
        self.mask = self._mask_of_pass(tokens, is_token, n_cached)
        return is_new

    @property
    def has_whole_prompts(self) -> bool:
        """Return whether the first pass held all prompts up to their ends."""
        return self.ends is not None and int(self.ends.max()) < self.n_reached

    def end_pass(self) -> None:
        """Forget what holds for this pass alone: a pass that was not announced must not find it."""
        self.mask = None

    def check_reached(self) -> None:
        """Check that the passes got to the end of every prompt: a guard that waits for it has changed nothing yet.

        Raises:
            ModelError: a prompt ended before the place that was given.
        """
        if self.ends is not None and int(self.ends.max()) >= self.n_reached:
            raise ModelError(
                f"prompt_lengths {list(self.prompt_lengths or ())}: the passes ended after {self.n_reached} places, "
                "before the end of a prompt; expected the number of tokens of each prompt, padding not counted"
            )

    def _ends(self, is_token: Bool[Tensor, "batch total"] | None, n_rows: int, total: int) -> Int[Tensor, " batch"]:
        """Return the place of each row's last prompt token.

        Raises:
            ModelError: the lengths that were given do not fit the rows.
        """
        if self.prompt_lengths is None:
            return torch.full((n_rows,), total - 1)
        n, times = len(self.prompt_lengths), n_rows // max(1, len(self.prompt_lengths))
        if n == 0 or n * times != n_rows:
            raise ModelError(f"{n} prompt_lengths for a batch of {n_rows} rows; expected one per row")
        # `generate` puts the copies of a prompt next to each other.
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


def _n_cached(kwargs: Mapping) -> int:
    """Return the number of tokens in the cache that a pass continues."""
    cache = kwargs.get("past_key_values")
    return int(cache.get_seq_length()) if cache is not None else 0


def _token_mask(mask, n_rows: int, total: int, is_given: bool) -> Bool[Tensor, "batch total"] | None:
    """Return which of the cached and new tokens are no padding; None if there is no mask.

    A prepared mask, as static caches make it, says so for the last query, which sees every token of its row.

    Raises:
        ModelError: the mask is prepared, and no prompt lengths are given; or it has another shape.
    """
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask[:, :total].bool()
    if not is_given:
        raise ModelError(
            "a prepared attention mask, as static caches make; a guard needs a mask of shape (batch, pos), or to be "
            f"told where prompts end: {LENGTHS}"
        )
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor) or mask.dim() != 4 or len(mask) not in (1, n_rows):
        raise ModelError("an attention mask of an unknown form; expected (batch, pos), or (batch, head, query, key)")
    sees = mask[:, 0, -1, :total]
    return (sees if sees.dtype == torch.bool else sees >= 0).expand(n_rows, -1)
