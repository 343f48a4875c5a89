"""A defence: a named way to answer prompts, behind one interface, `defence.answer(vlm, prompts)`.

Defences differ in one function, `Defence.run`. Published prompts are copied word for word only where their licence
allows it; all other wordings are this project's own, written after the papers, and say so.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from interp import LLM, VLM, Guard, Prompt
from studies.generation.cached_model import CachedModel, Outcome
from studies.generation.generate import Generation
from studies.guards.configuration import guard_columns

KINDS = "none", "prompt", "detour", "bound", "guard", "neighbour", "control", "saved"
NONE, PROMPT, DETOUR, BOUND, GUARD, NEIGHBOUR, CONTROL, SAVED = KINDS
"""Kinds of defence. `prompt` puts words around the request, `detour` answers by way of text, `neighbour` is a related
method from another paper; `bound` and `control` are what a guard is compared with, and are never ranked; `saved` are
answers of another program, under a defence that their file names, or does not."""
UNTUNED = "untuned"
"""Tuning of a defence for which nothing was chosen on validation."""
REFUSAL = "I'm sorry, but I can't help with that."
"""Answer of bounds that refuse without asking the model: one of the built-in model's refusals, which every rule-based
judge recognises as a refusal by any model."""


@dataclass(frozen=True)
class GuardSetup:
    """A guard and the reference that it reads."""

    guard: Guard
    reference: str
    source: str


@dataclass(frozen=True)
class Defence:
    """A named way to answer prompts."""

    name: str
    kind: str
    """One of `KINDS`."""
    settings: Mapping[str, object]
    """JSON values that the answers depend on, apart from the model, the prompts and the generation settings."""
    run: Callable[[CachedModel, Sequence[Prompt]], Outcome]
    guard_setup: GuardSetup | None = None
    """The guard, if the defence is one. Guards can share a prefill: see `run_together`."""
    tuning: str = ""
    """Settings that were chosen on validation, and from how many; empty if its kind says it (`DefenceArm.tuning`)."""

    def answer(self, vlm: VLM | LLM, prompts: Sequence[Prompt], how: Generation | None = None) -> list[str]:
        """Return greedy answers in the order of the prompts.

        Raises:
            PictureError: a picture can't be read.
        """
        return self.run(CachedModel(vlm, how), list(prompts)).answers

    @cached_property
    def id(self) -> str:
        """Hash of the name and the settings: a defence with other settings is another defence."""
        identity = json.dumps([self.name, self.stored_settings], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @cached_property
    def stored_settings(self) -> dict:
        """The settings as they are read back from a JSON file."""
        return json.loads(json.dumps(dict(self.settings)))

    @cached_property
    def columns(self) -> dict:
        """The columns that identify the defence in a table."""
        tuning = {"tuning": self.tuning} if self.tuning else {}
        if self.guard_setup:
            setup = self.guard_setup
            return guard_columns(setup.guard, setup.reference, setup.source) | {"defence": self.name} | tuning
        # A detour always reads the same reference, so its name says which; a bound is run with several.
        return {"defence": self.name} | ({"reference": self.reference} if self.kind == BOUND else {}) | tuning

    @property
    def reference(self) -> str | None:
        """The text that the aligned LLM is shown; None for defences that show it none."""
        return self.settings.get("reference")


def refuse_where(
    model: CachedModel,
    prompts: Sequence[Prompt],
    is_refused: Sequence[bool],
    answer: Callable[[CachedModel, Sequence[Prompt]], Outcome] = CachedModel.outcome,
) -> Outcome:
    """Return `REFUSAL` for some prompts and another answer to the others.

    Nothing is scored: a refusal that is not generated has no first token.

    Args:
        model: answers the others.
        prompts: what is answered.
        is_refused: one for each prompt.
        answer: answers the others; by default without a defence.
    """
    accepted = [i for i, refused in enumerate(is_refused) if not refused]
    texts = [REFUSAL] * len(prompts)
    if accepted:
        for i, text in zip(accepted, answer(model, [prompts[i] for i in accepted]).answers, strict=True):
            texts[i] = text
    return Outcome(texts, *torch.full((2, len(texts)), torch.nan), acted=list(is_refused))


def unguarded() -> Defence:
    """Return the undefended model as a defence."""
    return Defence("unguarded", NONE, {}, lambda model, prompts: model.outcome(prompts))
