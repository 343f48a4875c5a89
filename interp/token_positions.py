"""Where states are read: token roles and places of a prompt, found in its token ids."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.families import ModelError
from interp.inputs import Prompt
from interp.prompt_text import _decode
from interp.vlm import LLM, VLM


def instruction_positions(
    model: VLM | LLM, prompts: Sequence[Prompt], input_ids: Int[Tensor, "prompt pos"]
) -> Int[Tensor, " prompt"]:
    """Where the user's own text ends: the position of its last token in each row of a batch.

    Found by decoding the very ids that the model is given, whatever its processor adds before and after.

    Raises:
        ModelError: the tokenizer changes the text, so that it is not found again.
    """
    found = [instruction_position(model, prompt.text, row) for prompt, row in zip(prompts, input_ids, strict=True)]
    return torch.tensor(found)


def instruction_position(model: VLM | LLM, text: str, ids: Int[Tensor, " pos"]) -> int:
    """`instruction_positions` for one row.

    Raises:
        ModelError: the tokenizer changes the text, so that it is not found again.
    """
    start = 0
    if isinstance(model, VLM) and (ids == model.image_token_id).any():
        start = int((ids == model.image_token_id).nonzero().max()) + 1
    shown, text = _decode(model, ids[start:]), text.strip()
    if text not in shown:
        raise ModelError(f"the text {text!r} is not found in the tokens of its prompt, which say {shown!r}")
    end = shown.rindex(text) + len(text)
    length_of = lambda n: len(_decode(model, ids[start : start + n]))  # noqa: E731
    return start + bisect_left(range(1, len(ids) - start + 1), end, key=length_of)


TOKEN_ROLES = ("last", "instruction", "image_mean", "text_mean")
"""`last` token of the prompt; last token of the query's own text; means over picture tokens, and over all others."""
ALL = "all"
MEANS = ("image_mean", "text_mean")
Token = str | int
Tokens = Sequence[Token] | np.ndarray | str
Layers = Sequence[int] | np.ndarray
"""Arrays are coordinates of another trace."""


class TraceError(ValueError):
    """Something was asked for that does not exist."""


@dataclass(frozen=True)
class TokenPositions:
    """Of one prompt, counted from its first token, whatever padding stands before it."""

    picks: tuple[int, ...]
    """Single tokens."""
    means: Bool[Tensor, "mean pos"]
    """Sets of tokens."""

    @classmethod
    def of(
        cls, model: VLM | LLM, prompt: Prompt | None, ids: Int[Tensor, " pos"], tokens: Sequence[Token] | str
    ) -> "TokenPositions":
        """Finds the tokens in a prompt's ids.

        Args:
            model: says which tokens stand for pictures.
            prompt: what the ids were made from; only `instruction` needs it.
            ids: without padding.
            tokens: some of `TOKEN_ROLES`, places (from the first token, or negative from the last), or `all`.

        Raises:
            TraceError: a place outside the prompt.
        """
        n = len(ids)
        if tokens == ALL:
            return cls(tuple(range(n)), torch.zeros(0, n, dtype=torch.bool))
        is_image = torch.zeros(n, dtype=torch.bool)
        if isinstance(model, VLM):
            is_image = model.image_positions(ids[None])[0].cpu()
        sets = {"image_mean": is_image, "text_mean": ~is_image}
        picks = [_pick(model, prompt, ids, token) for token in tokens if token not in MEANS]
        means = [sets[token] for token in tokens if token in MEANS]
        return cls(tuple(picks), torch.stack(means) if means else torch.zeros(0, n, dtype=torch.bool))

    def behind(self, n: int) -> "TokenPositions":
        """The same of a prompt without its first `n` tokens, none of which is picked."""
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
    """As plain numbers and words.

    Raises:
        TraceError: none, or a name that does not exist.
    """
    if isinstance(tokens, str):
        found = tokens
    else:
        found = tuple(index(token) if hasattr(token, "__index__") else token for token in tokens)
    strange = [token for token in found if not isinstance(token, int) and token not in TOKEN_ROLES]
    if found != ALL and (not found or isinstance(found, str) or strange):
        wrong = found if isinstance(found, str) else strange
        raise TraceError(f"tokens {wrong!r}; expected 'all', or some of {', '.join(TOKEN_ROLES)} and places as numbers")
    return found
