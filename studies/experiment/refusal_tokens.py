"""The tokens with which a model opens its refusals."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp import VLM, Prompt
from studies.generation.generate import Generation, answers
from studies.judges import KEYWORDS, REFUSAL_PHRASES, RuleJudge


@dataclass(frozen=True)
class RefusalTokens:
    """The tokens with which a model opens refusals, and where they come from."""

    ids: Int[Tensor, " token"]
    origin: str
    """How the set was obtained; stored with the results."""


def refusal_tokens(vlm: VLM, anchors: Sequence[Prompt], judge: RuleJudge, generation: Generation) -> RefusalTokens:
    """Collect the first tokens of refused harmful anchors, minus those of answers to harmless ones.

    If the model refuses no harmful anchor, the openings of the judge's refusal phrases are used instead.

    Args:
        vlm: the model that answers the anchors.
        anchors: text-only prompts of both classes.
        judge: decides which answers are refusals.
        generation: settings for generating the answers.
    """
    openings = {True: set(), False: set()}
    for prompt, answer in zip(anchors, answers(vlm, anchors, generation), strict=True):
        if judge.refuses(answer) == prompt.query.harmful:
            openings[prompt.query.harmful] |= _first_token(vlm, answer)
    tokens, origin = openings[True] - openings[False], f"first tokens of refused anchors, by {judge.name}"
    if not tokens:
        tokens = set().union(*(_first_token(vlm, phrase.capitalize()) for phrase in REFUSAL_PHRASES))
        origin = f"no refusal among {len(anchors)} anchors; first tokens of the phrases of {KEYWORDS.name}"
    ids = sorted(tokens)
    return RefusalTokens(torch.tensor(ids), f"{origin}: {vlm.tokenizer.convert_ids_to_tokens(ids)}")


def _first_token(vlm: VLM, answer: str) -> set[int]:
    """Return the first token of an answer as it follows the prompt, that is, after a space."""
    return set(vlm.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"][:1]) if answer else set()
