"""Ways to defend a model, behind one interface: `defence.answer(vlm, prompts)`.

What varies is a function. Prompts of others are taken over word by word only where their licence allows it; the rest is
written anew after the papers, and says so.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from interp.guard import Guard
from interp.inputs import Prompt
from interp.vlm import VLM
from studies.generation.cached_model import CachedModel, Outcome
from studies.generation.generate import Generation
from studies.guards.measures import describe

NONE, PROMPT, DETOUR, BOUND, GUARD, NEIGHBOUR, CONTROL = "none prompt detour bound guard neighbour control".split()
KINDS = (NONE, PROMPT, DETOUR, BOUND, GUARD, NEIGHBOUR, CONTROL)
"""`prompt`: words around the request; `detour`: answers by way of text; `bound`, `control`: what a guard is held
against, never ranked."""


@dataclass(frozen=True)
class GuardSetup:
    """A guard, and what it is shown."""

    guard: Guard
    reference: str
    source: str


@dataclass(frozen=True)
class Defence:
    """A named way to answer."""

    name: str
    kind: str
    """One of `KINDS`."""
    settings: Mapping[str, object]
    """All that its answers depend on beside model, prompts and generation, as JSON would write it."""
    run: Callable[[CachedModel, Sequence[Prompt]], Outcome]
    ridden: GuardSetup | None = None
    """Guards share a prefill: see `ride`."""

    def answer(self, vlm: VLM, prompts: Sequence[Prompt], how: Generation | None = None) -> list[str]:
        """Greedy answers, in the order of the prompts.

        Raises:
            PictureError: a picture can't be read.
        """
        return self.run(CachedModel(vlm, how), list(prompts)).answers

    @cached_property
    def id(self) -> str:
        """Another setting is another defence."""
        told = json.dumps([self.name, self.told], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @cached_property
    def told(self) -> dict:
        """Settings as they come back from a file."""
        return json.loads(json.dumps(dict(self.settings)))

    @cached_property
    def about(self) -> dict:
        """The columns of a table that say which defence a row is about."""
        if self.ridden:
            return describe(self.ridden.guard, self.ridden.reference, self.ridden.source) | {"defence": self.name}
        # What a detour shows itself is part of it; a bound is shown with each.
        return {"defence": self.name} | ({"reference": self.reference} if self.kind == BOUND else {})

    @property
    def reference(self) -> str | None:
        """The text that the aligned LLM is shown, where it is shown one."""
        return self.settings.get("reference")


def unguarded() -> Defence:
    """The model as it is."""
    return Defence("unguarded", NONE, {}, lambda asker, prompts: asker.outcome(prompts))
