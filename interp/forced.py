"""Forced beginnings: what a model says after first tokens that it is given instead of choosing them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from interp.inputs import Inputs
from interp.vlm import LLM, VLM


@dataclass(frozen=True)
class ForcedScore:
    """A number per prompt that depends on the first answer token, and on the second one after some first tokens."""

    tokens: tuple[int, ...]
    """First tokens after which the second one is looked at; each costs a pass. Empty where the first is enough."""
    score: Callable[..., Float[Tensor, "*row"]]
    """Function of the first token's log-probabilities (`*row d_vocab`), and of a mapping from each forced token to
    those of the second token."""

    def __call__(
        self, logprobs: Float[Tensor, "*row d_vocab"], after: Mapping[int, Float[Tensor, "*row d_vocab"]] | None = None
    ) -> Float[Tensor, "*row"]:
        return self.score(logprobs, after or {})


def forced_tokens(scores: Iterable[object]) -> tuple[int, ...]:
    """Return the first tokens that any of these scores looks behind, in ascending order."""
    return tuple(sorted({token for score in scores if isinstance(score, ForcedScore) for token in score.tokens}))


def forced_beginning(tokens: Sequence[int] | Int[Tensor, "row step"]) -> LogitsProcessorList:
    """Return the `logits_processor` with which one call of `generate` begins every answer with these tokens.

    Args:
        tokens: the same for all answers, or a row for each.
    """
    rows = tokens if isinstance(tokens, Tensor) else torch.tensor([list(tokens)], dtype=torch.long)
    return LogitsProcessorList([_ForcedBeginning(rows)] if rows.numel() else [])


class _ForcedBeginning(LogitsProcessor):
    def __init__(self, tokens: Int[Tensor, "row step"]):
        self.tokens, self.n_prompt = tokens, None

    def __call__(self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row d_vocab"]) -> Tensor:
        if self.n_prompt is None:
            self.n_prompt = input_ids.shape[1]
        step = input_ids.shape[1] - self.n_prompt
        if step >= self.tokens.shape[1]:
            return scores
        column = self.tokens[:, step, None].to(scores.device).expand(len(scores), 1)
        return torch.full_like(scores, -torch.inf).scatter(1, column, 0)


CACHED_BYTES = 2.5e6
"""Memory for logits in float32 on a CPU: more does not fit its caches, and is slower to allocate than to compute."""


def rows_at_a_time(logits: Float[Tensor, "*row d_vocab"], accelerator_bytes: float | int = 0) -> int:
    """Return how many rows of logits are converted to float32 at a time.

    Args:
        logits: those to be converted.
        accelerator_bytes: memory for them on other devices than a CPU; by default one row at a time there.
    """
    n_bytes = CACHED_BYTES if logits.device.type == "cpu" else accelerator_bytes
    return max(1, int(n_bytes / (4 * logits.shape[-1])))


def log_probabilities(logits: Float[Tensor, "*row d_vocab"]) -> Float[Tensor, "*row d_vocab"]:
    """Return log-probabilities in float32, in whatever precision the model computes."""
    return logits.float().log_softmax(-1)


def logprobs_after(model: VLM | LLM, batch: Inputs, tokens: Sequence[int]) -> Float[Tensor, "row d_vocab"]:
    """Compute the log-probabilities of the answer's next token after forced ones; see `logits_after`."""
    return log_probabilities(logits_after(model, batch, tokens))


@torch.no_grad()
def logits_after(model: VLM | LLM, batch: Inputs, tokens: Sequence[int]) -> Float[Tensor, "row d_vocab"]:
    """Compute the logits of the answer's next token after forced ones.

    By generation, because families extend a batch of prompts in ways of their own. Guards on the model act as in any
    generation: the forced tokens count as generated.

    Args:
        model: the model.
        batch: prompts from `collate`.
        tokens: first tokens of the answer; none for the logits of the first one.
    """
    if not tokens:
        return model.model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
    output = model.model.generate(
        **batch,
        max_new_tokens=len(tokens) + 1,
        do_sample=False,
        num_beams=1,
        pad_token_id=model.tokenizer.pad_token_id,
        logits_processor=forced_beginning(tokens),
        # As the model gave them, before any processor.
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.logits[len(tokens)]
