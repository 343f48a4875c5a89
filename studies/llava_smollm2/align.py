"""Align an LLM that refuses nothing: by examples of refusals, or by preferring refusals to compliance.

Both ways see the same requests, and both keep answering the harmless ones in the LLM's own words. No lesson says how
anything harmful is done: the compliance that is dispreferred is the beginning of an answer, and empty.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import PreTrainedModel

from interp import Query
from studies.llava_qwen.answers import OwnAnswer
from studies.llava_qwen.train import answer_loss_of, in_bfloat16
from studies.llava_qwen.updates import updates_on
from studies.organism.classroom import Classroom, Course, Stage
from studies.organism.lessons import Lesson, pick
from studies.organism.losses import IGNORED, Collator

REFUSALS = (
    "I'm sorry, but I can't assist with that.",
    "I'm sorry, but I can't help with that request.",
    "I cannot help with this. It could hurt someone.",
    "Sorry, I can't help you with that.",
    "I'm not able to help with that, because it could cause harm.",
)
COMPLIANCE = ("Sure! Here it is:", "Of course. Here is what you asked for:", "Here you go:")
"""Beginnings of answers that are dispreferred; nothing follows."""
FORMS = ("How to {task}", "How to {task}?", "Tell me how to {task}.", "How do I {task}?", "Explain how to {task}.")
"""Forms of requests for a way to do something; others are asked as they are."""
START = "How to "
HARMFUL_SHARE, PARTNER_SHARE = 0.4, 0.3
"""Shares of lessons with harmful requests, and with their harmless partners; the rest are other instructions."""


@dataclass(frozen=True)
class Preference:
    """The same request with the answer that is preferred, and with another one."""

    chosen: Lesson
    rejected: Lesson

    @property
    def length(self) -> int:
        return max(self.chosen.length, self.rejected.length)


@dataclass(frozen=True)
class AlignmentTeacher:
    """Draws lessons."""

    harmful: Sequence[Query]
    partners: Sequence[OwnAnswer]
    """Harmless requests that look like the harmful ones, with the LLM's own answers."""
    others: Sequence[OwnAnswer]
    """Other instructions with its answers."""

    def example(self, rng: np.random.Generator) -> Lesson:
        """Return a request with the right answer."""
        return self.preference(rng).chosen

    def preference(self, rng: np.random.Generator) -> Preference:
        """Return a request with the right answer and with the wrong one."""
        kind, refusal = rng.random(), pick(rng, REFUSALS)
        if kind < HARMFUL_SHARE:
            return _preference(_asked(rng, pick(rng, self.harmful).text), refusal, pick(rng, COMPLIANCE))
        if kind < HARMFUL_SHARE + PARTNER_SHARE:
            own = pick(rng, self.partners)
            return _preference(_asked(rng, own.text), own.answer, refusal)
        own = pick(rng, self.others)
        return _preference(own.text, own.answer, refusal)


def _preference(text: str, chosen: str, rejected: str) -> Preference:
    return Preference(Lesson(text, chosen), Lesson(text, rejected))


def _asked(rng: np.random.Generator, text: str) -> str:
    """Return a request in one of its forms."""
    if not text.startswith(START):
        return text
    return pick(rng, FORMS).format(task=text.removeprefix(START).rstrip("?. "))


@dataclass(frozen=True)
class AlignmentRecipe:
    """Settings of both ways. Developed on validation."""

    seed: int = 0
    rank: int = 16
    sft: Stage = Stage(200, 16, 5e-4)
    dpo: Stage = Stage(200, 16, 2e-4)
    beta: float = 0.1
    """How much a log-ratio of probabilities counts in DPO."""
    sft_share: float = 0.2
    """Weight of the examples' loss in DPO: without it, both answers may become unlikely (arXiv:2404.19733)."""


def align(
    recipe: AlignmentRecipe,
    llm: PreTrainedModel,
    collate: Collator,
    teacher: AlignmentTeacher,
    out: Path,
    scratch: Path,
    sources: Sequence[Path],
) -> None:
    """Train low-rank updates in both ways, each from the LLM as it came, and save them as `sft` and `dpo`.

    Args:
        recipe: the settings.
        llm: the LLM; it stays as it is.
        collate: makes tensors of lessons.
        teacher: draws lessons.
        out: folder of the updates.
        scratch: folder of courses.
        sources: files that the lessons and losses depend on.
    """
    classroom = partial(Classroom, recipe, scratch, sources)
    out.mkdir(parents=True, exist_ok=True)
    llm.requires_grad_(False)
    torch.manual_seed(recipe.seed)
    with updates_on(llm, recipe.rank) as learner:
        course = Course("sft", recipe.sft, teacher.example, recipe.seed)
        classroom().teach(learner, course, partial(answer_loss_of, llm, collate), {learner: 1.0})
        save_file(in_bfloat16(learner), out / "sft.safetensors")
    reference = deepcopy(llm)
    torch.manual_seed(recipe.seed)
    with updates_on(llm, recipe.rank) as learner:
        course = Course("dpo", recipe.dpo, teacher.preference, recipe.seed)
        loss = partial(_preference_loss, llm, reference, collate, recipe)
        classroom().teach(learner, course, loss, {learner: 1.0})
        save_file(in_bfloat16(learner), out / "dpo.safetensors")


def _preference_loss(
    llm: PreTrainedModel,
    reference: PreTrainedModel,
    collate: Collator,
    recipe: AlignmentRecipe,
    batch: list[Preference],
) -> Float[Tensor, ""]:
    """Return the loss of direct preference optimisation (arXiv:2305.18290, eq. 7), and a share of the examples'."""
    tensors = collate([*(pair.chosen for pair in batch), *(pair.rejected for pair in batch)])
    own, n_tokens = _log_probs(llm, tensors)
    with torch.no_grad():
        before, _ = _log_probs(reference, tensors)
    chosen, rejected = (own - before).chunk(2)
    preferred = -logsigmoid(recipe.beta * (chosen - rejected)).mean()
    examples = -own[: len(batch)].sum() / n_tokens[: len(batch)].sum()
    return preferred + recipe.sft_share * examples


def _log_probs(
    llm: PreTrainedModel, tensors: Mapping[str, Tensor]
) -> tuple[Float[Tensor, " lesson"], Int[Tensor, " lesson"]]:
    """Return the log-probability of each answer, and its number of tokens; logits are computed only for answers."""
    inputs = {name: value for name, value in tensors.items() if name != "labels"}
    labels = tensors["labels"][:, 1:]
    is_answer = labels != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        resid = llm.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        logits = llm.lm_head(resid[is_answer])
    by_token = -cross_entropy(logits.float(), labels[is_answer], reduction="none")
    lesson = is_answer.nonzero()[:, 0]
    return torch.zeros(len(labels)).index_add(0, lesson, by_token), is_answer.sum(1)
