"""How far judges agree on the answers of the defence study: all rule-based judges, and a linear one."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from studies.bookkeeping.progress import phase
from studies.defences.answer_log import AnswerRecord
from studies.experiment.config import BUILT_IN
from studies.experiment.experiment import Experiment
from studies.generation.generate import answers
from studies.judges import EXACT, KEYWORDS, KEYWORDS_1, PUBLISHED, Case, Judge, LinearJudge
from studies.judges.agreement import compare_judges

MOST_CASES = 2000
"""At most this many distinct answers are judged, evenly spaced over all."""


def run(experiment: Experiment, records: Sequence[AnswerRecord]) -> pd.DataFrame:
    """Compare every two judges over the answers of `studies.defence_comparison`.

    On the built-in model the exact judge is among them, which is the truth that the others are compared with. The
    linear judge is fitted on the model's own answers to half of the anchors, and validated on those to the other half.

    Returns:
        The table of `studies.judges.agreement.compare_judges`.
    """
    cases = list(dict.fromkeys(record.case for record in records if not record.right))
    cases = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(MOST_CASES, len(cases))).astype(int))]
    own = [judge for judge in (KEYWORDS, KEYWORDS_1) if judge in experiment.judges]
    judges: list[Judge] = [*own, *PUBLISHED.values()]
    if EXACT in experiment.judges and experiment.config.model == BUILT_IN:
        judges = [EXACT, *judges, _linear_judge(experiment)]
    with phase("judges", len(cases) * len(judges)) as report:
        return compare_judges(cases, judges, labels=experiment.labels, advance=report)


def _linear_judge(experiment: Experiment) -> LinearJudge:
    """Fit a judge on the middle layer and validate it, on answers that the exact judge has labelled."""
    halves = [_answered_anchors(experiment, half) for half in (0, 1)]
    judge = LinearJudge.fit(experiment.vlm, experiment.vlm.n_layers // 2, *halves[0])
    return judge.checked(*halves[1])


def _answered_anchors(experiment: Experiment, half: int) -> tuple[list[Case], Sequence[bool]]:
    """Answer every other pair of anchors, as text and with a blank picture.

    Returns:
        The distinct cases, and for each whether its answer is a refusal.
    """
    cases = []
    for modality in ("text", "blank"):
        prompts = experiment.prompts("anchors", modality)
        prompts = [prompt for i, prompt in enumerate(prompts) if i // 2 % 2 == half]
        texts = answers(experiment.vlm, prompts, experiment.config.generation)
        cases += [Case(prompt.query.text, text) for prompt, text in zip(prompts, texts, strict=True)]
    cases = list(dict.fromkeys(cases))
    return cases, [experiment.judges[0].refuses(case.answer) for case in cases]
