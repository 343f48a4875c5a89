"""The line-up: which defences answer the prompts of a trial, what each of them is shown, and what they are called."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import xarray as xr

from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.inputs import TYPOGRAPHIC
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
"""What is changed of the guard: a random direction, and the bound that puts the reference's whole state in."""
GUARDS = ("guard", *CONTROLS)
NEIGHBOURS = ("shift_dc", "cmrm", "infer_aligner", "astra")
UNFITTED = ("unguarded", *WORDINGS, "ecso", "caption_only", "text_verdict")
"""Defences that need neither guard nor anchors."""
CLAIMED = ("self_reminder", "goal_priority")
"""Defences by prompt that the claims are about."""
WITHOUT_RIVALS = (*CLAIMED, "text_verdict", *GUARDS)
"""What the claims are about, where there is no time for others."""


@dataclass(frozen=True)
class LineUp:
    """All defences of a run, to be put before one trial after the other."""

    model: str
    """Its name: the built-in model knows few words, and is told the same in those."""
    judge: RuleJudge
    """Says what is a refusal where the text's answer decides (`text_verdict`)."""
    guard: Guard | None = None
    neighbours: Sequence[tuple[str, Guard]] = ()
    names: Sequence[str] = ()
    """Of those that are wanted beside the unguarded model; empty for all."""

    def __call__(self, trial: PromptSet, shown: Sequence[str]) -> list[Defence]:
        """Everything that makes sense in a trial, the unguarded model first.

        Args:
            shown: references that the guard is measured with. Neighbours get the first of them, or what is read in the
                picture where the request is in there.
        """
        found = [*self._of_words(trial)]
        for reference in shown:
            found += self._with_reference(reference)
        found += self._of_neighbours("transcription" if trial.modality in TYPOGRAPHIC else shown[0])
        return [unguarded(), *(one for one in found if not self.names or one.name in self.names)]

    def _of_words(self, trial: PromptSet) -> Iterator[Defence]:
        wordings = BUILT_IN_WORDINGS if self.model == BUILT_IN else WORDINGS
        yield from (by_prompt(name, wording) for name, wording in wordings.items())
        if any(prompt.pictures for prompt in trial.prompts):
            yield from (ecso(), caption_only())

    def _with_reference(self, reference: str) -> Iterator[Defence]:
        """The guard, and what it is held against: the text's own answer, and controls."""
        yield text_verdict(reference, self.judge.refuses, self.judge.name)
        if self.guard:
            kind = BOUND if reference == "oracle" else GUARD
            yield guarded(self.guard, reference, self.guard.source, kind=kind)
            for name, changed in CONTROLS.items():
                kind = CONTROL if "random" in name else BOUND
                yield guarded(replace(self.guard, **changed), reference, self.guard.source, name, kind)

    def _of_neighbours(self, reference: str) -> Iterator[Defence]:
        for name, guard in self.neighbours:
            yield guarded(guard, "prompt_text+caption" if name == "shift_dc" else reference, name=name, kind=NEIGHBOUR)


def made_neighbours(n_layers: int, text: xr.Dataset, blank: xr.Dataset) -> list[tuple[str, Guard]]:
    """ShiftDC, CMRM, InferAligner and ASTRA with the layers that their papers say, strength 1, nothing tuned.

    Args:
        n_layers: of the model.
        text: traced anchors, whose mean difference the first and the last two take.
        blank: the same beside a picture without meaning, which CMRM takes.
    """
    direction, upper = SafetyDirection.fit(text, "mean_diff"), tuple(range(n_layers // 2, n_layers))
    guards = (
        shift_dc(direction, upper),
        cmrm(text, blank, tuple(range(n_layers))),
        infer_aligner(direction, upper),
        astra(direction, n_layers // 2),
    )
    return list(zip(NEIGHBOURS, guards, strict=True))


def check_names(names: Sequence[str], guard: bool, anchors: bool) -> None:
    """Raises:
    ConfigError: a defence that does not exist, or that needs a guard or anchors.
    """
    known = [*UNFITTED, *(GUARDS if guard else ()), *(NEIGHBOURS if anchors else ())]
    strange = [name for name in names if name not in known]
    if strange:
        raise ConfigError(
            f"defence {strange[0]!r} does not exist here; expected some of {', '.join(known)}; guards need --guard, "
            "neighbours the requests that they are fitted on (--anchors)"
        )
