"""Token positions of a prompt at which states are read, located in its token ids."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import ModelError
from interp.inputs import Prompt
from interp.prompt_text import decode
from interp.vlm import LLM, VLM

TOKEN_ROLES = ("last", "instruction", "image_mean", "text_mean")
"""Last token of the prompt; last token of the query's own text; means over the picture's tokens and over all others."""
ALL_TOKENS = "all"
MEANS = ("image_mean", "text_mean")
Token = str | int
Tokens = Sequence[Token] | np.ndarray | str
Layers = Sequence[int] | np.ndarray
"""Layer numbers; an array can be the coordinate of another trace."""


class TraceError(ValueError):
    """The request names something that does not exist."""


def instruction_positions(
    model: VLM | LLM, prompts: Sequence[Prompt], input_ids: Int[Tensor, "prompt pos"]
) -> Int[Tensor, " prompt"]:
    """Return the position of the last token of the user's own text in each row of a batch.

    It is located by decoding the ids that the model is given, whatever its processor adds before and after.

    Raises:
        ModelError: the tokenizer changes the text, so that it can't be located.
    """
    rows = zip(prompts, input_ids, strict=True)
    return torch.tensor([instruction_position(model, prompt.text, row) for prompt, row in rows])


def instruction_position(model: VLM | LLM, text: str, ids: Int[Tensor, " pos"]) -> int:
    """Return `instruction_positions` for one row.

    Raises:
        ModelError: the tokenizer changes the text, so that it can't be located.
    """
    start = 0
    if isinstance(model, VLM) and (ids == model.image_token_id).any():
        start = int((ids == model.image_token_id).nonzero().max()) + 1
    decoded, text = decode(model, ids[start:]), text.strip()
    if text not in decoded:
        raise ModelError(f"the text {text!r} can't be located in the tokens of its prompt, which read {decoded!r}")
    end = decoded.rindex(text) + len(text)

    def decoded_length(n_tokens: int) -> int:
        return len(decode(model, ids[start : start + n_tokens]))

    # The first number of tokens whose text reaches the end: more tokens never decode to a shorter text.
    return start + bisect_left(range(1, len(ids) - start + 1), end, key=decoded_length)


@dataclass(frozen=True)
class TokenPositions:
    """Token positions of one prompt, counted without padding."""

    picks: tuple[int, ...]
    """Single tokens."""
    means: Bool[Tensor, "mean pos"]
    """Sets of tokens to average over."""

    @classmethod
    def of(
        cls, model: VLM | LLM, prompt: Prompt | None, ids: Int[Tensor, " pos"], tokens: Sequence[Token] | str
    ) -> "TokenPositions":
        """Locate tokens in the ids of a prompt.

        Args:
            model: knows which tokens belong to pictures.
            prompt: the prompt that the ids were made from; needed for `instruction` only.
            ids: token ids without padding.
            tokens: names from `TOKEN_ROLES`, positions (negative from the end), or `all`.

        Raises:
            TraceError: a position is outside the prompt.
        """
        n = len(ids)
        if tokens == ALL_TOKENS:
            return cls(tuple(range(n)), torch.zeros(0, n, dtype=torch.bool))
        is_image = is_placeholder = torch.zeros(n, dtype=torch.bool)
        if isinstance(model, VLM):
            is_image = model.image_positions(ids[None])[0].cpu()
            is_placeholder = model.placeholder_positions(ids[None])[0].cpu()
        sets = {"image_mean": is_image, "text_mean": ~is_placeholder}
        picks = [_pick(model, prompt, ids, token) for token in tokens if token not in MEANS]
        means = [sets[token] for token in tokens if token in MEANS]
        return cls(tuple(picks), torch.stack(means) if means else torch.zeros(0, n, dtype=torch.bool))

    def after(self, n: int) -> "TokenPositions":
        """Return the positions counted from token `n` on; no single token may come before it."""
        return TokenPositions(tuple(pick - n for pick in self.picks), self.means[:, n:])


def _pick(model: VLM | LLM, prompt: Prompt | None, ids: Int[Tensor, " pos"], token: Token) -> int:
    if token == "last":
        return len(ids) - 1
    if token == "instruction":
        return instruction_position(model, prompt.text, ids)
    if not -len(ids) <= token < len(ids):
        raise TraceError(f"token {token} of a prompt of {len(ids)} tokens; expected {-len(ids)} to {len(ids) - 1}")
    return token % len(ids)


def check_tokens(tokens: Tokens) -> tuple[Token, ...] | str:
    """Return the tokens as plain numbers and words.

    Raises:
        TraceError: there are none, or one has a name that does not exist.
    """
    if isinstance(tokens, str):
        checked = tokens
    else:
        checked = tuple(index(token) if hasattr(token, "__index__") else token for token in tokens)
    unknown = [token for token in checked if not isinstance(token, int) and token not in TOKEN_ROLES]
    if checked != ALL_TOKENS and (not checked or isinstance(checked, str) or unknown):
        wrong = checked if isinstance(checked, str) else unknown
        roles = ", ".join(TOKEN_ROLES)
        raise TraceError(f"tokens {wrong!r}; expected 'all', or some of {roles} and positions as numbers")
    return checked
