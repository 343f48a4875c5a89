"""The answers of the defence study, judged by every judge that needs no model of its own, and by a linear one."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from studies.bookkeeping.progress import phase
from studies.defences.answer_log import AnswerRecord
from studies.experiment.config import BUILT_IN
from studies.experiment.experiment import Experiment
from studies.generation.generate import answers
from studies.judges import EXACT, Case, Judge, LinearJudge
from studies.judges.agreement import compare_judges
from studies.judges.by_name import rule_judges

MOST_CASES = 2000
"""Different answers that are judged, evenly spaced over all."""


def run(material: Experiment, given: Sequence[AnswerRecord]) -> pd.DataFrame:
    """Agreement of every two judges over the answers of `studies.defence_comparison`: see `studies.judges.agreement.run`.

    On the built-in model the exact judge is one of them, and so the truth that the others are held against. The linear
    judge is fitted on the model's own answers to half of the anchors, and checked on those to the other half.
    """
    cases = list(dict.fromkeys(one.case for one in given if not one.right))
    cases = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(MOST_CASES, len(cases))).astype(int))]
    judges: list[Judge] = list(rule_judges().values())
    if EXACT in material.judges and material.config.model == BUILT_IN:
        judges = [EXACT, *(judge for judge in judges if judge != EXACT), _linear(material)]
    with phase("judges", len(cases) * len(judges)) as report:
        return compare_judges(cases, judges, about=material.labels, advance=report)


def _linear(material: Experiment) -> LinearJudge:
    """Reads the middle layer; fitted and checked on answers that are known to refuse or not."""
    halves = [_anchors_answered(material, start) for start in (0, 1)]
    judge = LinearJudge.fit(material.vlm, material.vlm.n_layers // 2, *halves[0])
    return judge.checked(*halves[1])


def _anchors_answered(material: Experiment, start: int) -> tuple[list[Case], Sequence[bool]]:
    """Every other pair of anchors, as text and beside a blank picture."""
    cases = []
    for modality in ("text", "blank"):
        prompts = material.prompts("anchors", modality)
        prompts = [prompt for i, prompt in enumerate(prompts) if i // 2 % 2 == start]
        said = answers(material.vlm, prompts, material.config.generation)
        cases += [Case(prompt.query.text, answer) for prompt, answer in zip(prompts, said, strict=True)]
    cases = list(dict.fromkeys(cases))
    return cases, [material.judges[0].refuses(case.answer) for case in cases]
