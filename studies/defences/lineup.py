"""The line-up: which defences answer a set of prompts, which references they read, and what they are called."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import xarray as xr

from interp import TYPOGRAPHIC, Guard, SafetyDirection
from interp.related_methods import astra, cmrm, infer_aligner, shift_dc
from studies.defences.defence import BOUND, CONTROL, GUARD, NEIGHBOUR, Defence, unguarded
from studies.defences.detours import caption_only, ecso, text_verdict
from studies.defences.guarded import guarded
from studies.defences.prompt_sets import PromptSet
from studies.defences.prompt_wordings import BUILT_IN_WORDINGS, WORDINGS, by_prompt
from studies.experiment.config import BUILT_IN, ConfigError
from studies.judges import RuleJudge

CONTROLS = {
    "guard_random": {"control": "random"},
    "guard_full_state": {"control": "full_state", "rule": "substitute", "gate_scope": "change", "strength": 1.0},
}
"""Fields of the guard that are changed: a random direction, and the bound that copies the reference's whole state."""
GUARDS = ("guard", *CONTROLS)
RELATED_METHODS = ("shift_dc", "cmrm", "infer_aligner", "astra")
UNFITTED = ("unguarded", *WORDINGS, "ecso", "caption_only", "text_verdict")
"""Defences that need neither a guard nor anchors."""
CLAIMED = ("self_reminder", "goal_priority")
"""Prompt defences that the claims are about."""
WITHOUT_RIVALS = (*CLAIMED, "text_verdict", *GUARDS)
"""Defences that the claims are about, for scales without time for the others."""


@dataclass(frozen=True)
class LineUp:
    """All defences of a run; called with a prompt set, it returns those that apply to it."""

    model: str
    """Name of the model. The built-in model has a small vocabulary, and prompt defences worded in it."""
    judge: RuleJudge
    """Decides what is a refusal for the text verdict."""
    guard: Guard | None = None
    related: Sequence[tuple[str, Guard]] = ()
    """Related methods by name."""
    names: Sequence[str] = ()
    """Defences to include; empty for all. The unguarded model is always included."""

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
        """Yield the guard and what it is compared with: the text verdict, and controls."""
        yield text_verdict(reference, self.judge.refuses, self.judge.name)
        if self.guard:
            kind = BOUND if reference == "oracle" else GUARD
            yield guarded(self.guard, reference, self.guard.source, kind=kind)
            for name, changes in CONTROLS.items():
                kind = CONTROL if "random" in name else BOUND
                yield guarded(replace(self.guard, **changes), reference, self.guard.source, name, kind)

    def _related(self, reference: str) -> Iterator[Defence]:
        for name, guard in self.related:
            yield guarded(guard, "prompt_text+caption" if name == "shift_dc" else reference, name=name, kind=NEIGHBOUR)


def fit_related_methods(n_layers: int, text: xr.Dataset, blank: xr.Dataset) -> list[tuple[str, Guard]]:
    """Fit ShiftDC, CMRM, InferAligner and ASTRA at the layers of their papers, with strength 1; nothing is tuned.

    Args:
        n_layers: number of layers of the model.
        text: traced anchors as text; all but CMRM use their mean difference.
        blank: the same anchors with a meaningless picture, which CMRM uses.
    """
    direction, upper = SafetyDirection.fit(text, "mean_diff"), tuple(range(n_layers // 2, n_layers))
    guards = (
        shift_dc(direction, upper),
        cmrm(text, blank, tuple(range(n_layers))),
        infer_aligner(direction, upper),
        astra(direction, n_layers // 2),
    )
    return list(zip(RELATED_METHODS, guards, strict=True))


def check_names(names: Sequence[str], guard: bool, anchors: bool) -> None:
    """Check the names of defences, given that there is a guard, or that there are anchors.

    Raises:
        ConfigError: a defence does not exist, or needs a guard or anchors.
    """
    available = [*UNFITTED, *(GUARDS if guard else ()), *(RELATED_METHODS if anchors else ())]
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ConfigError(
            f"defence {unknown[0]!r} does not exist here; expected any of {', '.join(available)}; guards need --guard, "
            "related methods need the requests that they are fitted on (--anchors)"
        )
