"""Arms: the answers of one defence to one set of prompts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from studies.defences.answer_log import AnswerRecord
from studies.defences.defence import NEIGHBOUR, NONE, UNTUNED

CONDITION = ("dataset", "setting", "modality")
"""Columns that identify a set of prompts."""
GIVEN = "as given"
"""Tuning of guards that were fitted before the study."""


@dataclass(frozen=True)
class DefenceArm:
    """Answers to one set of prompts under one defence."""

    condition: tuple[str, str, str]
    """Dataset, setting and modality of the prompts."""
    answers: tuple[AnswerRecord, ...]

    @property
    def first(self) -> AnswerRecord:
        return self.answers[0]

    @property
    def columns(self) -> dict:
        """The columns that identify the arm in a table."""
        return dict(zip(CONDITION, self.condition, strict=True)) | self.tuning | self.first.about

    @property
    def tuning(self) -> dict:
        """The column `tuning` of a defence that doesn't say itself what was chosen for it."""
        if self.first.kind == NONE:
            return {}
        has_guard = "gate" in self.first.settings and self.first.kind != NEIGHBOUR
        return {"tuning": GIVEN if has_guard else UNTUNED}

    @property
    def reference(self) -> str | None:
        """The kind of reference that the defence reads; None if it reads none."""
        return self.first.about.get("reference")


def arms_of(answers: Sequence[AnswerRecord]) -> list[DefenceArm]:
    """Group answers by condition, defence and its settings, in their order."""
    groups: dict[tuple, list[AnswerRecord]] = {}
    for record in answers:
        condition = (record.dataset, record.setting, record.modality)
        settings = json.dumps([record.settings, record.weights, record.generation], sort_keys=True)
        groups.setdefault((condition, record.defence, settings), []).append(record)
    return [DefenceArm(condition, tuple(group)) for (condition, *_), group in groups.items()]
