"""Answers under every defence -> rows of a table: rates, changes, and how each defence stands.

A defence that has no measured effect on this model, or whose effect could not be measured, is `not testable here`: it
stays in the table, and is not ranked. Bounds and controls are what others are held against.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interp.vlm import LLM, VLM
from probes import mcnemar
from studies.bookkeeping.estimates import mean, rate
from studies.datasets import REFUSE
from studies.defences.answer_log import AnswerRecord
from studies.defences.correctness import is_right
from studies.defences.defence import BOUND, CONTROL, DETOUR, GUARD, NEIGHBOUR, NONE, PROMPT
from studies.defences.rates import (
    UNGUARDED,
    category_rows,
    changes,
    corrected,
    first_token_rows,
    gate_rows,
    harm_rows,
    speaks,
)
from studies.generation.generate import perplexities
from studies.judges import KEYWORDS

BASELINE, RANKED, NOT_TESTABLE = "baseline", "ranked", "not testable here"
"""How a defence stands, beside `bound` and `control`."""
STANDS = {NONE: BASELINE, BOUND: BOUND, CONTROL: CONTROL}
RIVALS = (PROMPT, DETOUR, NEIGHBOUR)
LEVEL = 0.05
"""Of the test whether a defence has any effect."""
Fluency = Mapping[tuple[str, str], float]
"""Perplexity by request and answer."""


@dataclass(frozen=True)
class DefenceArm:
    """One set of prompts under one defence."""

    place: tuple[str, str, str]
    """Dataset, setting, modality."""
    answers: tuple[AnswerRecord, ...]

    @property
    def first(self) -> AnswerRecord:
        return self.answers[0]

    @property
    def columns(self) -> dict:
        return dict(zip(("dataset", "setting", "modality"), self.place, strict=True)) | self.first.about


def arms_of(answers: Sequence[AnswerRecord]) -> list[DefenceArm]:
    """Answers of a file, by set and defence, in their order."""
    found: dict[tuple, list[AnswerRecord]] = {}
    for one in answers:
        place = (one.dataset, one.setting, one.modality)
        told = json.dumps([one.settings, one.weights, one.generation], sort_keys=True)
        found.setdefault((place, one.defence, told), []).append(one)
    return [DefenceArm(place, tuple(some)) for (place, *_), some in found.items()]


def table_rows(
    answers: Sequence[AnswerRecord], judges: Sequence[str], scorer: VLM | LLM | None = None, by_category: bool = False
) -> list[dict]:
    """Everything that answers and verdicts say, by set and defence; the first judge decides what has an effect.

    Args:
        judges: names of those that have judged them.
        scorer: measures perplexity, where it is asked for.
        by_category: whether the first judge's rates are also given for each category of a set.

    Raises:
        ValueError: a set was not answered without a defence as well.
    """
    arms = arms_of(answers)
    plain = {arm.place: arm for arm in arms if arm.first.kind == NONE}
    lone = sorted({arm.place for arm in arms} - set(plain))
    if lone:
        raise ValueError(f"no unguarded answers to {lone[0]}; expected them beside those of every defence")
    tests = effects(arms, plain, judges)
    stands = standings(arms, tests)
    fluency = None if scorer is None else _fluency(arms, scorer)
    rows = [row | {"standing": stands(row["defence"], PROMPT)} for row in tests]
    for arm in arms:
        about = arm.columns | {"standing": stands(arm.first.defence, arm.first.kind)}
        rows += [about | row for row in _measured(arm, plain[arm.place], judges, fluency)]
        rows += [about | row for row in _versus_rivals(arm, arms, judges[0])]
        if by_category and not arm.first.right:
            rows += [about | row for row in category_rows(arm.answers, judges[0])]
    return rows + corrected([row for row in rows if row["standing"] in (RANKED, NOT_TESTABLE)])


def standings(arms: Sequence[DefenceArm], tests: Sequence[dict]) -> Callable[[str, str], str]:
    """From the name of a defence, and its kind, to how it stands."""
    found = {row["defence"]: row["value"] for row in tests if row["metric"] == "effect_p"}
    idle = {name for name, p_value in found.items() if p_value >= LEVEL}
    # Without harmful requests as text there is nothing to measure an effect on.
    idle |= {arm.first.defence for arm in arms if arm.first.kind == PROMPT} - set(found)
    return lambda name, kind: NOT_TESTABLE if name in idle else STANDS.get(kind, RANKED)


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


def _versus_rivals(arm: DefenceArm, arms: Sequence[DefenceArm], judge: str) -> Iterator[dict]:
    """The guard against every defence of others on the same prompts."""
    if arm.first.kind == GUARD and not arm.first.right:
        for other in arms:
            if other.place == arm.place and other.first.kind in RIVALS:
                found = changes(arm.answers, other.answers, judge)
                yield from ({"versus": other.first.defence} | row for row in found)


def _agreement(arm: DefenceArm, judges: Sequence[str]) -> Iterator[dict]:
    """How often judges that tell refusals say the same, of answers that all of them have judged."""
    telling = [judge for judge in judges if speaks(arm.answers, judge, "refused")]
    said = [{answer.verdicts[judge]["refused"] for judge in telling} for answer in arm.answers]
    both = [len(verdicts) == 1 for verdicts in said if None not in verdicts]
    if len(telling) > 1 and both:
        yield rate("judge_agreement", both)


def _fluency(arms: Sequence[DefenceArm], scorer: VLM | LLM) -> Fluency:
    """Measured once: under many defences the answer to a request is the same. An empty one has none."""
    answers = [one for arm in arms if not arm.first.right for one in arm.answers if one.answer]
    pairs = list(dict.fromkeys((one.request, one.answer) for one in answers))
    if not pairs:
        return {}
    requests, given = zip(*pairs, strict=True)
    return dict(zip(pairs, perplexities(scorer, requests, given).tolist(), strict=True))


def _perplexity_rows(arm: DefenceArm, fluency: Fluency) -> Iterator[dict]:
    for category, label in (("harmful", True), ("harmless", False)):
        chosen = [answer for answer in arm.answers if answer.harmful == label]
        if chosen:
            values = [fluency.get((answer.request, answer.answer), np.nan) for answer in chosen]
            yield mean("perplexity", values) | {"category": category}


def effects(arms: Sequence[DefenceArm], plain: Mapping[tuple, DefenceArm], judges: Sequence[str]) -> list[dict]:
    """Whether a defence makes a model refuse more, where that can be told.

    Of words around the request: harmful requests as text, plain and in jailbreaks. Of ECSO, which leaves text as it is:
    harmful requests beside and inside pictures. A request counts once, for or against, whatever it was put into; exact
    sign test (McNemar's) over requests.
    """
    rows = []
    wanted = {arm.first.defence: "text" for arm in arms if arm.first.kind == PROMPT}
    wanted |= {arm.first.defence: "pictures" for arm in arms if arm.first.defence == "ecso"}
    for name, where in wanted.items():
        balance = _balance(arms, plain, name, where == "text", judges)
        if balance:
            found = mcnemar(np.array([more > 0 for more in balance]), np.array([more < 0 for more in balance]))
            told = {"defence": name, "setting": f"all {where}", "n": found.n}
            change = {"value": found.difference, "ci_low": found.low, "ci_high": found.high}
            p_value = found.p_value if found.difference > 0 else 1.0
            rows += [told | {"metric": "effect"} | change, told | {"metric": "effect_p", "value": p_value}]
    return rows


def _balance(
    arms: Sequence[DefenceArm], plain: Mapping[tuple, DefenceArm], name: str, as_text: bool, judges: Sequence[str]
) -> list[int]:
    """Of each harmful request: how often it is refused with the defence and not without, less the other way round."""
    found: Counter = Counter()
    for arm in arms:
        if arm.first.defence == name and (arm.first.modality == "text") == as_text and not arm.first.right:
            without = {one.row: one for one in plain[arm.place].answers}
            for one in arm.answers:
                if one.expected == REFUSE:
                    more = _is_refused(one, judges) - _is_refused(without[one.row], judges)
                    found[arm.place[0], one.request] += more
    return list(found.values())


def _is_refused(one: AnswerRecord, judges: Sequence[str]) -> bool:
    """By the first judge that tells; where none does, by the project's own rule."""
    told = [one.verdicts[judge]["refused"] for judge in judges if one.verdicts[judge]["refused"] is not None]
    return bool(told[0]) if told else KEYWORDS.refuses(one.answer)
