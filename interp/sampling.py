"""Answers that are drawn at a temperature, each with random numbers of its own, whatever runs next to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from interp.forced import rows_at_a_time


@dataclass(frozen=True)
class Sampling:
    """Draws each token from the model's distribution at a temperature; nothing is cut off (no top-k, no top-p).

    The likeliest token of `logits / temperature` plus Gumbel noise is such a draw (Maddison et al., arXiv:1411.0030).
    The noise depends on the seed, the prompt's place and the token's place in its answer, so it is the same in batches
    of any size, and for guards that share a prefill or don't. Two guards with one seed get the same noise: their
    answers differ by what they do, not by luck.

    Where guards can't share a prefill, `generate` changes logits first as the model's own generation settings say
    (repetition penalties, suppressed tokens).

    Raises:
        ValueError: the temperature is not a positive number, or the seed is negative.
    """

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature}; expected a positive number, or no sampling at all")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed}; expected 0 or more")

    def noise(self, prompt: int, step: int, d_vocab: int) -> Float[Tensor, " d_vocab"]:
        """Return the Gumbel noise of one token: minus the logarithm of exponential draws."""
        seed = np.random.SeedSequence((self.seed, prompt, step)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed))
        return -torch.empty(d_vocab).exponential_(generator=generator).log()

    def draw(self, logits: Float[Tensor, "row d_vocab"], prompts: Sequence[int], step: int) -> Int[Tensor, " row"]:
        """Draw a token for each row.

        Args:
            logits: of the next token.
            prompts: place of each row's prompt among all of them.
            step: place of the token in the answers.
        """
        noise = torch.stack([self.noise(prompt, step, logits.shape[-1]) for prompt in prompts])
        return (logits.float() / self.temperature + noise.to(logits.device)).argmax(-1)


def likeliest(logits: Float[Tensor, "*row d_vocab"], step: int = 0) -> Int[Tensor, "*row"]:
    """Return the likeliest tokens, at any step of an answer."""
    # In 16-bit precision, a CPU compares several times slower than in float32.
    if logits.device.type != "cpu" or logits.dtype == torch.float32:
        return logits.argmax(-1)
    parts = logits.flatten(0, -2).split(rows_at_a_time(logits))
    return torch.cat([part.float().argmax(-1) for part in parts]).view(logits.shape[:-1])


def next_tokens(
    samplings: Sequence[Sampling | None], prompts: Sequence[int], logits: Float[Tensor, "row guard d_vocab"], step: int
) -> Int[Tensor, "row guard"]:
    """Return the next token of each row under each guard: the likeliest one, or a draw.

    Args:
        samplings: one for each guard; None for the likeliest token.
        prompts: place of each row's prompt among all of them.
        logits: of the next token.
        step: place of the token in the answers.
    """
    tokens = likeliest(logits) if None in samplings else torch.empty_like(logits[..., 0], dtype=torch.long)
    for i, sampling in enumerate(samplings):
        if sampling:
            tokens[:, i] = sampling.draw(logits[:, i], prompts, step)
    return tokens


class DrawnTokens(LogitsProcessor):
    """Makes greedy `generate` draw: the token that a `Sampling` draws is the only one left."""

    def __init__(self, sampling: Sampling, prompts: Sequence[int], n_prompt: int):
        """Take the draws of some prompts.

        Args:
            sampling: what is drawn.
            prompts: place of each row's prompt among all of them.
            n_prompt: positions before the answers.
        """
        self._sampling, self._prompts, self._n_prompt = sampling, prompts, n_prompt

    def __call__(self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row d_vocab"]) -> Tensor:
        drawn = self._sampling.draw(scores, self._prompts, input_ids.shape[1] - self._n_prompt)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn[:, None], 0.0)
