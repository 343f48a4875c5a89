"""The line-up: which defences answer a set of prompts, which references they read, and what they are called."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from interp import TYPOGRAPHIC, Guard
from studies.bookkeeping.suggestions import did_you_mean
from studies.defences.defence import BOUND, CONTROL, GUARD, NEIGHBOUR, UNTUNED, Defence, unguarded
from studies.defences.detours import TextScoreRule, caption_only, ecso, text_score_verdict, text_verdict
from studies.defences.guarded import gate_refuser, guarded
from studies.defences.prompt_sets import PromptSet
from studies.defences.prompt_wordings import BUILT_IN_WORDINGS, WORDINGS, by_prompt
from studies.defences.related import OWN_REFERENCE, RelatedMethod
from studies.experiment.config import BUILT_IN, ConfigError
from studies.judges import RuleJudge

VARIANTS = {
    "guard_always": {"gate": "always", "gate_scope": "change", "threshold": 0.0, "probe": None},
    "guard_full_state": {"control": "full_state", "rule": "substitute", "gate_scope": "change", "strength": 1.0},
}
"""Fields of the guard that are changed: the control whose gate is always open, so that it changes every answer; and the
bound that copies the reference's whole state."""
GUARDS = ("guard", "gate_refuser", *VARIANTS)
RELATED_METHODS = (
    "shift_dc",
    "cmrm",
    "infer_aligner",
    "astra",
    "tbop",
    "alpha_steer",
    "null_steer",
    "re_gap",
    "angular_steering",
)
CONE = "refusal_cone"
"""The related method whose vectors are loaded from a file."""
UNFITTED = ("unguarded", *WORDINGS, "ecso", "caption_only", "text_verdict", "text_score_verdict")
"""Defences that need neither a guard nor anchors."""
CLAIMED = ("self_reminder", "goal_priority", "adashield_s", "safety_prompt")
"""Prompt defences that the claims are about."""
WITHOUT_RIVALS = (*CLAIMED, "text_verdict", "text_score_verdict", *GUARDS)
"""Defences that the claims are about, for scales without time for the others."""


@dataclass(frozen=True)
class LineUp:
    """All defences of a run; called with a prompt set, it returns those that apply to it."""

    model: str
    """Name of the model. The built-in model has a small vocabulary, and prompt defences worded in it."""
    judge: RuleJudge
    """Decides what is a refusal for the text verdict."""
    text_score: TextScoreRule
    """Decides what is refused by one pass of the text."""
    guard: Guard | None = None
    related: Sequence[RelatedMethod] = ()
    names: Sequence[str] = ()
    """Defences to include; empty for all. The unguarded model is always included."""
    tuning: str = ""
    """How the guard was chosen on validation, and from how many configurations."""

    def __call__(self, prompt_set: PromptSet, references: Sequence[str]) -> list[Defence]:
        """Return every defence that applies to a prompt set, the unguarded model first.

        Args:
            prompt_set: what will be answered.
            references: what the guard reads, one after the other. Related methods read the first of them, or the
                transcription if the request is written in the picture.
        """
        defences = [*self._without_guard(prompt_set)]
        for reference in references:
            defences += self._with_reference(reference)
        defences += self._related("transcription" if prompt_set.modality in TYPOGRAPHIC else references[0])
        return [unguarded(), *(defence for defence in defences if not self.names or defence.name in self.names)]

    def _without_guard(self, prompt_set: PromptSet) -> Iterator[Defence]:
        wordings = BUILT_IN_WORDINGS if self.model == BUILT_IN else WORDINGS
        yield from (by_prompt(name, wording) for name, wording in wordings.items())
        if any(prompt.pictures for prompt in prompt_set.prompts):
            yield from (ecso(), caption_only())

    def _with_reference(self, reference: str) -> Iterator[Defence]:
        """Yield the guard and what it is compared with: bounds that need no direction, and variants of the guard."""
        yield text_verdict(reference, self.judge.refuses, self.judge.name)
        yield text_score_verdict(reference, self.text_score)
        if self.guard:
            source, tuning = self.guard.source, self.tuning
            kind = BOUND if reference == "oracle" else GUARD
            yield guarded(self.guard, reference, source, kind=kind, tuning=tuning)
            yield gate_refuser(self.guard, reference, source, tuning)
            for name, changes in VARIANTS.items():
                kind = CONTROL if name == "guard_always" else BOUND
                yield guarded(replace(self.guard, **changes), reference, source, name, kind, tuning)

    def _related(self, reference: str) -> Iterator[Defence]:
        for method in self.related:
            own, tuning = OWN_REFERENCE.get(method.name, reference), method.tuning
            # An untuned method is the same defence as before there was tuning, and so are its logged answers.
            told = {} if tuning == UNTUNED else {"tuning": tuning}
            yield guarded(method.guard, own, name=method.name, kind=NEIGHBOUR, **told)


def check_names(names: Sequence[str], guard: bool, anchors: bool, cone: bool = False) -> None:
    """Check the names of defences, given what there is to fit them on.

    Args:
        names: as they were typed.
        guard: whether there is a guard.
        anchors: whether there are anchors.
        cone: whether there are vectors of a refusal cone.

    Raises:
        ConfigError: a defence does not exist, or needs a guard or anchors; or a cone has no anchors.
    """
    if cone and not anchors:
        raise ConfigError(f"{CONE} needs the requests that its class means are measured on (--anchors)")
    available = [
        *UNFITTED,
        *(GUARDS if guard else ()),
        *(RELATED_METHODS if anchors else ()),
        *([CONE] if cone else ()),
    ]
    unknown = [name for name in names if name not in available]
    if unknown:
        suggestion = did_you_mean(unknown[0], available)
        raise ConfigError(
            f"defence {unknown[0]!r} does not exist here; expected any of {', '.join(available)}; guards need --guard, "
            f"related methods need the requests that they are fitted on (--anchors), {CONE} its vectors too (--cone)"
            f"{suggestion}"
        )
