"""Defences that rest on a detector, put together from answers that exist already.

Refusing needs no model, and a guard with another gate gives either the answer of the guard whose gate is always open or
the unguarded one. So the answers of the unguarded model and of two guards are all that is generated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from probes import holm, mcnemar
from studies.bookkeeping.progress import phase
from studies.defences.answer_log import ANSWERS, AnswerLog, AnswerRecord
from studies.defences.comparisons import EQUIVALENCE
from studies.defences.defence import REFUSAL, unguarded
from studies.defences.guarded import guarded
from studies.defences.lineup import VARIANTS
from studies.defences.prompt_sets import AnswerCollector, PromptSet, judge_all
from studies.defences.rates import COMPARED, answer_to, changes, harm_rows
from studies.detectors.fitted import FittedDetector
from studies.experiment.experiment import Experiment
from studies.guards.configuration import GuardConfiguration
from studies.judges import RuleJudge

REFUSES, GATES = "detector_refuser", "detector_gate"
"""Uses of a detector: to refuse what it detects, or as the gate of the guard."""


@dataclass(frozen=True, eq=False)
class Answered:
    """Judged answers to one set of prompts: without a defence, under the guard, and with its gate always open."""

    prompt_set: PromptSet
    reference: str
    """The text that the guard reads."""
    unguarded: Sequence[AnswerRecord]
    guard: Sequence[AnswerRecord]
    always: Sequence[AnswerRecord]
    refused: Sequence[AnswerRecord]
    """The unguarded answers with `REFUSAL` in their place."""

    def under(self, is_detected: Bool[np.ndarray, " prompt"], use: str) -> list[AnswerRecord]:
        """Return the answers where a detector refuses, or is the guard's gate.

        Args:
            is_detected: one for each prompt.
            use: `REFUSES` or `GATES`.
        """
        rows = zip(is_detected, self.always if use == GATES else self.refused, self.unguarded, strict=True)
        return [own if detected else plain for detected, own, plain in rows]


def refused(record: AnswerRecord, judges: Sequence[RuleJudge]) -> AnswerRecord:
    """Return a record whose answer is a refusal, judged."""
    refusal = replace(record, answer=REFUSAL)
    verdicts = {judge.name: asdict(judge.verdicts([refusal.case])[0]) for judge in judges}
    return replace(refusal, verdicts=verdicts)


def answer(
    experiment: Experiment, prompt_sets: Sequence[PromptSet], configuration: GuardConfiguration
) -> list[Answered]:
    """Have the model answer every set unguarded, guarded, and with the guard's gate always open; judge the answers.

    Args:
        experiment: model, judges and output folder, where answers are kept as they come.
        prompt_sets: what is answered.
        configuration: the guard, and the text that it reads.
    """
    log = AnswerLog(Path(experiment.config.out) / ANSWERS)
    collector = AnswerCollector(experiment.cached_model, experiment.identity, log)
    guard, found = replace(configuration.guard, source=configuration.source), []
    with log.locked(), phase("answers", 3 * sum(len(own.prompts) for own in prompt_sets)) as report:
        for prompt_set in prompt_sets:
            reference = configuration.reference_in(prompt_set.modality)
            open_guard = replace(guard, **VARIANTS["guard_always"])
            arms = (
                unguarded(),
                guarded(guard, reference, configuration.source),
                guarded(open_guard, reference, configuration.source, name="guard_always"),
            )
            records = judge_all(log, collector.collect(prompt_set, arms, report), experiment.judges)
            n = len(prompt_set.prompts)
            own = [records[i * n : (i + 1) * n] for i in range(3)]
            refusals = [refused(record, experiment.judges) for record in own[0]]
            found.append(Answered(prompt_set, reference, *own, refusals))
    return found


@dataclass(frozen=True, eq=False)
class Acting:
    """A detector at one threshold, used on a set."""

    detector: FittedDetector
    fit: Mapping[str, object]
    """Columns that say what it was fitted on."""
    rule: str
    """Name of the threshold."""
    use: str
    is_detected: Bool[np.ndarray, " prompt"]

    @property
    def columns(self) -> dict:
        """The columns that identify it."""
        return dict(self.detector.columns) | dict(self.fit) | {"defence": self.use, "selection_rule": self.rule}


def acting_rows(answered: Answered, detectors: Sequence[Acting], judges: Sequence[RuleJudge]) -> Iterator[dict]:
    """Yield rates of every defence on a set, and how each detector compares with the guard on the same prompts.

    `asr_change` and `over_refusal_rate_change` are a detector's rate minus the guard's, with exact p-values before and
    after Holm's correction over the detectors of the set; `asr_excess` and `over_refusal_rate_excess` are the same
    differences with intervals at 90 %, whose upper limits are one-sided tests.
    """
    judge = judges[0].name
    place = {name: getattr(answered.prompt_set, name) for name in ("dataset", "setting", "modality")}
    own = {"unguarded": answered.unguarded, "guard": answered.guard, "guard_always": answered.always}
    for name, records in own.items():
        columns = {"defence": name} | ({} if name == "unguarded" else {"reference": answered.reference})
        yield from (place | columns | row for row in _rates(records, judges))
    compared = []
    for acting in detectors:
        records = answered.under(acting.is_detected, acting.use)
        yield from (place | acting.columns | row for row in _rates(records, judges))
        rows = [*changes(records, answered.guard, judge), *_excess(records, answered.guard, judge)]
        compared += [place | acting.columns | row | {"versus": "guard"} for row in rows]
    yield from compared
    for metric in COMPARED:
        tests = [row for row in compared if row["metric"] == f"{metric}_change_p"]
        adjusted = holm([row["value"] for row in tests])
        for row, p_value in zip(tests, adjusted.tolist(), strict=True):
            yield row | {"metric": f"{metric}_change_p_holm", "value": p_value}


def _rates(records: Sequence[AnswerRecord], judges: Sequence[RuleJudge]) -> Iterator[dict]:
    """Yield attack success and over-refusal, as each judge sees them."""
    for judge in judges:
        yield from (row for row in harm_rows(records, judge.name) if row["metric"] in COMPARED)


def _excess(records: Sequence[AnswerRecord], others: Sequence[AnswerRecord], judge: str) -> Iterator[dict]:
    for metric, (expected, question) in COMPARED.items():
        pairs = [
            tuple(answer_to(each.verdicts[judge], question) for each in pair)
            for pair in zip(records, others, strict=True)
            if pair[0].expected == expected
        ]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            test = mcnemar(*(np.array(side, dtype=bool) for side in zip(*pairs, strict=True)), EQUIVALENCE)
            yield test.measured(f"{metric}_excess").row() | {"judge": judge, "interval": "90 %"}
