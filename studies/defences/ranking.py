"""Answers under every defence -> rows of a table: rates, changes, and the ranking status of each defence.

A prompt defence (or ECSO) that has no measured effect on this model, or whose effect could not be measured, is
`not testable here`: it stays in the table and is not ranked. Bounds and controls are never ranked; others are compared
with them.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from interp import LLM, VLM
from probes import Measured, mcnemar
from studies.bookkeeping.estimates import mean, rate
from studies.datasets import REFUSE
from studies.defences.answer_log import AnswerRecord
from studies.defences.correctness import is_right
from studies.defences.defence import BOUND, CONTROL, DETOUR, GUARD, NEIGHBOUR, NONE, PROMPT
from studies.defences.rates import (
    UNGUARDED,
    answers_question,
    category_rows,
    changes,
    corrected,
    first_token_rows,
    gate_rows,
    harm_rows,
)
from studies.generation.generate import perplexities
from studies.judges import KEYWORDS

BASELINE, RANKED, NOT_TESTABLE = "baseline", "ranked", "not testable here"
"""Ranking statuses (column `standing`); `bound` and `control` are the other two."""
STATUS_OF_KIND = {NONE: BASELINE, BOUND: BOUND, CONTROL: CONTROL}
RIVALS = (PROMPT, DETOUR, NEIGHBOUR)
LEVEL = 0.05
"""Level of the test of whether a defence has any effect."""
Fluency = Mapping[tuple[str, str], float]
"""Perplexity by request and answer."""


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
        return dict(zip(("dataset", "setting", "modality"), self.condition, strict=True)) | self.first.about


def arms_of(answers: Sequence[AnswerRecord]) -> list[DefenceArm]:
    """Group answers by condition, defence and its settings, in their order."""
    groups: dict[tuple, list[AnswerRecord]] = {}
    for record in answers:
        condition = (record.dataset, record.setting, record.modality)
        settings = json.dumps([record.settings, record.weights, record.generation], sort_keys=True)
        groups.setdefault((condition, record.defence, settings), []).append(record)
    return [DefenceArm(condition, tuple(group)) for (condition, *_), group in groups.items()]


@dataclass(frozen=True)
class Comparison:
    """All arms of a table and the judges of their answers; the first judge decides what has an effect."""

    arms: tuple[DefenceArm, ...]
    judges: tuple[str, ...]

    @cached_property
    def unguarded(self) -> dict[tuple[str, str, str], DefenceArm]:
        """The undefended arm of each condition.

        Raises:
            ValueError: a condition has none.
        """
        unguarded = {arm.condition: arm for arm in self.arms if arm.first.kind == NONE}
        lacking = sorted({arm.condition for arm in self.arms} - set(unguarded))
        if lacking:
            raise ValueError(f"no unguarded answers to {lacking[0]}; expected them next to those of every defence")
        return unguarded

    @cached_property
    def effects(self) -> list[dict]:
        """Rows on whether each defence that can be tested makes the model refuse more.

        Prompt defences are tested on harmful requests as text, plain and in jailbreaks. ECSO, which leaves text-only
        prompts alone, is tested on harmful requests next to and inside pictures. A request counts once, for or against,
        in however many settings it was asked; the test is the exact sign test (McNemar's) over requests.
        """
        tested = {arm.first.defence: "text" for arm in self.arms if arm.first.kind == PROMPT}
        tested |= {arm.first.defence: "pictures" for arm in self.arms if arm.first.defence == "ecso"}
        rows = []
        for name, where in tested.items():
            balance = self._balance(name, where == "text")
            if balance:
                test = mcnemar(np.array([more > 0 for more in balance]), np.array([more < 0 for more in balance]))
                p_value = Measured("effect_p", test.p_value if test.difference > 0 else 1.0, n=test.n)
                labels = {"defence": name, "setting": f"all {where}"}
                rows += [labels | test.measured("effect").row(), labels | p_value.row()]
        return rows

    def _balance(self, name: str, as_text: bool) -> list[int]:
        """Count, for each harmful request, refusals with the defence only, minus refusals without it only."""
        balance: Counter = Counter()
        for arm in self.arms:
            if arm.first.defence == name and (arm.first.modality == "text") == as_text and not arm.first.right:
                plain = {record.row: record for record in self.unguarded[arm.condition].answers}
                for record in arm.answers:
                    if record.expected == REFUSE:
                        more = self._is_refused(record) - self._is_refused(plain[record.row])
                        balance[arm.condition[0], record.request] += more
        return list(balance.values())

    def _is_refused(self, record: AnswerRecord) -> bool:
        """Follow the first judge that says so; without any, this project's keyword rule."""
        verdicts = [record.verdicts[judge]["refused"] for judge in self.judges]
        verdicts = [refused for refused in verdicts if refused is not None]
        return bool(verdicts[0]) if verdicts else KEYWORDS.refuses(record.answer)

    @cached_property
    def _ineffective(self) -> set[str]:
        """Names of the defences without a measured effect."""
        p_values = {row["defence"]: row["value"] for row in self.effects if row["metric"] == "effect_p"}
        ineffective = {name for name, p_value in p_values.items() if p_value >= LEVEL}
        # Without harmful requests as text there is nothing to measure the effect of a prompt defence on.
        return ineffective | {arm.first.defence for arm in self.arms if arm.first.kind == PROMPT} - set(p_values)

    def status(self, name: str, kind: str) -> str:
        """Return the ranking status of a defence."""
        return NOT_TESTABLE if name in self._ineffective else STATUS_OF_KIND.get(kind, RANKED)


def table_rows(
    answers: Sequence[AnswerRecord], judges: Sequence[str], scorer: VLM | LLM | None = None, by_category: bool = False
) -> list[dict]:
    """Compute everything that answers and verdicts say, by condition and defence.

    Args:
        answers: judged, the unguarded model's among them.
        judges: names of the judges; the first one decides what has an effect.
        scorer: measures perplexity; None leaves it out.
        by_category: also compute the first judge's rates for each category of a set.

    Returns:
        Rows of `studies.bookkeeping.tables.COLUMNS`.

    Raises:
        ValueError: a set of prompts was not answered by the unguarded model.
    """
    comparison = Comparison(tuple(arms_of(answers)), tuple(judges))
    unguarded = comparison.unguarded
    rows = [row | {"standing": comparison.status(row["defence"], PROMPT)} for row in comparison.effects]
    fluency = None if scorer is None else _fluency(comparison.arms, scorer)
    for arm in comparison.arms:
        labels = arm.columns | {"standing": comparison.status(arm.first.defence, arm.first.kind)}
        rows += [labels | row for row in _measured(arm, unguarded[arm.condition], judges, fluency)]
        rows += [labels | row for row in _versus_rivals(arm, comparison)]
        if by_category and not arm.first.right:
            rows += [labels | row for row in category_rows(arm.answers, judges[0])]
    return rows + corrected([row for row in rows if row["standing"] in (RANKED, NOT_TESTABLE)])


def _measured(arm: DefenceArm, plain: DefenceArm, judges: Sequence[str], fluency: Fluency | None) -> Iterator[dict]:
    if arm.first.right:
        yield rate("accuracy", [is_right(answer) for answer in arm.answers])
        return
    for judge in judges:
        yield from harm_rows(arm.answers, judge)
    if arm.first.kind != NONE:
        yield from ({"versus": UNGUARDED} | row for row in changes(arm.answers, plain.answers, judges[0]))
    yield from _agreement(arm, judges)
    yield from first_token_rows(arm.answers)
    yield from gate_rows(arm.answers)
    if fluency is not None:
        yield from _perplexity_rows(arm, fluency)


def _versus_rivals(arm: DefenceArm, comparison: Comparison) -> Iterator[dict]:
    """Compare the guard with every rival defence on the same prompts."""
    if arm.first.kind == GUARD and not arm.first.right:
        for other in comparison.arms:
            if other.condition == arm.condition and other.first.kind in RIVALS:
                rows = changes(arm.answers, other.answers, comparison.judges[0])
                yield from ({"versus": other.first.defence} | row for row in rows)


def _agreement(arm: DefenceArm, judges: Sequence[str]) -> Iterator[dict]:
    """Compute how often the judges of refusals agree, on answers that all of them have judged."""
    of_refusals = [judge for judge in judges if answers_question(arm.answers, judge, "refused")]
    verdicts = [{answer.verdicts[judge]["refused"] for judge in of_refusals} for answer in arm.answers]
    agree = [len(refused) == 1 for refused in verdicts if None not in refused]
    if len(of_refusals) > 1 and agree:
        yield rate("judge_agreement", agree)


def _fluency(arms: Sequence[DefenceArm], scorer: VLM | LLM) -> Fluency:
    """Measure each answer once: many defences give the same answer to a request. Empty answers have no perplexity."""
    answers = [record for arm in arms if not arm.first.right for record in arm.answers if record.answer]
    pairs = list(dict.fromkeys((record.request, record.answer) for record in answers))
    if not pairs:
        return {}
    requests, texts = zip(*pairs, strict=True)
    return dict(zip(pairs, perplexities(scorer, requests, texts).tolist(), strict=True))


def _perplexity_rows(arm: DefenceArm, fluency: Fluency) -> Iterator[dict]:
    for category, label in (("harmful", True), ("harmless", False)):
        chosen = [answer for answer in arm.answers if answer.harmful == label]
        if chosen:
            values = [fluency.get((answer.request, answer.answer), np.nan) for answer in chosen]
            yield mean("perplexity", values) | {"category": category}
