"""Prompts -> answers, first-token scores and reference texts, unguarded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batches import batches
from interp.inputs import Prompt, collate, text_prompt
from interp.vlm import LLM, VLM

Advance = Callable[[int], None]


def _silent(n_prompts: int) -> None: ...


@dataclass(frozen=True)
class Generation:
    """How answers are made; part of every result."""

    max_new_tokens: int = 40
    batch_size: int = 64


@torch.no_grad()
def answers(vlm: VLM | LLM, prompts: Sequence[Prompt], how: Generation, advance: Advance = _silent) -> list[str]:
    """Greedy answers, in the order of the prompts."""
    tokenizer, texts = vlm.tokenizer, [""] * len(prompts)
    for rows in batches(prompts, how.batch_size):
        batch = collate(vlm, [prompts[i] for i in rows])
        ids = vlm.model.generate(
            **batch, max_new_tokens=how.max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        new = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(rows, new, strict=True):
            texts[i] = text.strip()
        advance(len(rows))
    return texts


@torch.no_grad()
def perplexities(
    scorer: VLM | LLM, requests: Sequence[str], given: Sequence[str], batch_size: int = 64
) -> Float[Tensor, " answer"]:
    """Perplexity per token of each answer, by a text-only scorer that is shown the request.

    An empty answer has none: NaN.
    """
    tokenizer, values = scorer.tokenizer, []
    for start in range(0, len(given), batch_size):
        chosen = slice(start, start + batch_size)
        prompts = [text_prompt(request) for request in requests[chosen]]
        batch = collate(scorer, prompts)
        # Right padding keeps each answer next to its prompt; the mask keeps the scores of padding out.
        answer = tokenizer(
            [f" {text}" if text else "" for text in given[chosen]],
            padding=True,
            padding_side="right",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(scorer.model.device)
        ids = torch.cat([batch["input_ids"], answer["input_ids"]], dim=1).long()
        mask = torch.cat([batch["attention_mask"], answer["attention_mask"]], dim=1).long()
        n_answer = answer["input_ids"].shape[1]
        logits = scorer.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=n_answer + 1).logits
        logprobs = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, -n_answer:, None])[..., 0]
        is_answer = answer["attention_mask"].bool()
        values.append((-(logprobs * is_answer).sum(1) / is_answer.sum(1)).exp().cpu())
    return torch.cat(values)
