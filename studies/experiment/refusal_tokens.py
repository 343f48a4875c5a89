"""First-token metrics: how near the model is to refusing, and how far a guard moves it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp.inputs import Prompt
from interp.vlm import VLM
from studies.generation.generate import Generation, answers
from studies.judges import KEYWORDS, REFUSAL_PHRASES, RuleJudge


@dataclass(frozen=True)
class RefusalTokens:
    """The tokens with which a model opens refusals."""

    ids: Int[Tensor, " token"]
    found: str
    """How the set was found; stored with the results."""


def refusal_tokens(vlm: VLM, anchors: Sequence[Prompt], judge: RuleJudge, how: Generation) -> RefusalTokens:
    """First tokens of the model's refusals of harmful anchors, less those of its answers to harmless ones.

    A model that refuses none of them is asked for the openings of the judge's phrases instead.
    """
    given = answers(vlm, anchors, how)
    openings = {True: set(), False: set()}
    for prompt, answer in zip(anchors, given, strict=True):
        if judge.refuses(answer) == prompt.query.harmful:
            openings[prompt.query.harmful] |= _first_token(vlm, answer)
    found, source = openings[True] - openings[False], f"first tokens of refused anchors, by {judge.name}"
    if not found:
        found = set().union(*(_first_token(vlm, phrase.capitalize()) for phrase in REFUSAL_PHRASES))
        source = f"no refusal among {len(anchors)} anchors; first tokens of the phrases of {KEYWORDS.name}"
    ids = sorted(found)
    return RefusalTokens(torch.tensor(ids), f"{source}: {vlm.tokenizer.convert_ids_to_tokens(ids)}")


def _first_token(vlm: VLM, answer: str) -> set[int]:
    """As it stands after the prompt, i.e. after a blank."""
    return set(vlm.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"][:1]) if answer else set()
