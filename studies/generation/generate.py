"""Greedy answers to prompts, and their perplexity, without a guard."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.utils import ModelOutput

from interp import LLM, VLM, Prompt, collate, forced_beginning, log_probabilities, text_prompt
from interp.batches import Advance, batches, in_halves
from interp.control_tokens import without_control_tokens

LOGIT_BYTES = 2e9
"""The most that the logits of answers may take which are scored together."""


def no_progress(n_prompts: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Generation:
    """Settings for generating answers; they are part of every result."""

    max_new_tokens: int = 40
    batch_size: int = 64


@torch.no_grad()
def answers(
    vlm: VLM | LLM,
    prompts: Sequence[Prompt],
    generation: Generation,
    advance: Advance = no_progress,
    forced: Sequence[int] = (),
    keep_first: Callable[[int, Float[Tensor, " d_vocab"]], object] | None = None,
) -> list[str]:
    """Generate a greedy answer to each prompt.

    Args:
        vlm: the model that answers.
        prompts: in any order; the answers come back in the same one.
        generation: length of the answers and size of the batches.
        advance: progress callback.
        forced: tokens that every answer begins with.
        keep_first: called with the place of each prompt and the log-probabilities of its first answer token.
    """
    tokenizer, texts = vlm.tokenizer, [""] * len(prompts)

    def answer(indices: list[int]) -> list[int]:
        batch = collate(vlm, [prompts[i] for i in indices])
        with _first_logits(vlm) as first:
            ids = vlm.model.generate(
                **batch,
                max_new_tokens=generation.max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=forced_beginning(forced),
            )
        # Some models answer without their own forward pass; then there is nothing to keep.
        if keep_first and first:
            for i, logprobs in zip(indices, log_probabilities(first[0]).cpu(), strict=True):
                keep_first(i, logprobs)
        new_ids = ids[:, batch["input_ids"].shape[1] :]
        for i, text in zip(indices, answer_texts(vlm, new_ids), strict=True):
            texts[i] = text.strip()
        return indices

    for indices, _ in in_halves(batches(prompts, generation.batch_size), answer):
        advance(len(indices))
    return texts


def answer_texts(model: VLM | LLM, ids: Int[Tensor, "answer pos"] | Int[np.ndarray, "answer pos"]) -> list[str]:
    """Return generated tokens as text.

    Words that look like control tokens are left out: they would be taken for some once the answer becomes part of
    another prompt.
    """
    return [without_control_tokens(model, text) for text in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]


@contextmanager
def _first_logits(vlm: VLM | LLM) -> Iterator[list[Float[Tensor, "row d_vocab"]]]:
    """Collect what the model gives for the first answer token inside the block, before any processor."""
    first: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: ModelOutput) -> None:
        if not first:
            first.append(output.logits[:, -1])

    handle = vlm.model.register_forward_hook(keep)
    try:
        yield first
    finally:
        handle.remove()


@torch.no_grad()
def perplexities(
    scorer: VLM | LLM, requests: Sequence[str], answers: Sequence[str], batch_size: int = 64
) -> Float[Tensor, " answer"]:
    """Compute the perplexity per token of each answer, following its request.

    Args:
        scorer: text-only model, or a VLM that is shown no picture.
        requests: the request that each answer follows.
        answers: an empty answer has no perplexity: NaN.
        batch_size: answers scored together.
    """
    tokenizer = scorer.tokenizer

    def score(rows: list[int]) -> Float[Tensor, " answer"]:
        batch = collate(scorer, [text_prompt(requests[i]) for i in rows])
        # Padding on the right keeps each answer next to its prompt; the mask excludes the padding from the scores.
        answer = tokenizer(
            [f" {answers[i]}" if answers[i] else "" for i in rows],
            padding=True,
            padding_side="right",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(scorer.model.device)
        ids = torch.cat([batch["input_ids"], answer["input_ids"]], dim=1).long()
        mask = torch.cat([batch["attention_mask"], answer["attention_mask"]], dim=1).long()
        n_answer = answer["input_ids"].shape[1]
        if len(rows) > 1 and ids.shape[0] * (n_answer + 1) * len(tokenizer) * scorer.model.dtype.itemsize > LOGIT_BYTES:
            raise MemoryError("the logits of these answers are too many to be held together")
        # One position more than the answer: the last prompt token predicts the first answer token.
        logits = scorer.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=n_answer + 1).logits
        # Row by row: in float32, those of a large vocabulary take gigabytes together.
        logprobs = torch.stack(list(map(_logprobs_of, logits[:, :-1], ids[:, -n_answer:])))
        is_answer = answer["attention_mask"].bool()
        return (-(logprobs * is_answer).sum(1) / is_answer.sum(1)).exp().cpu()

    plan = [list(range(start, min(start + batch_size, len(answers)))) for start in range(0, len(answers), batch_size)]
    return torch.cat([values for _, values in in_halves(plan, score)])


def _logprobs_of(logits: Float[Tensor, "pos d_vocab"], ids: Int[Tensor, " pos"]) -> Float[Tensor, " pos"]:
    return logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
