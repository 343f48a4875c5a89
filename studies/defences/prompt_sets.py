"""Prompts that are answered under every defence, and the answers, kept as they come."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from interp.inputs import Prompt
from studies.datasets import ANSWER, REFUSE
from studies.defences.answer_log import AnswerLog, AnswerRecord, finite
from studies.defences.defence import Defence
from studies.defences.guarded import ride
from studies.generation.cached_model import CachedModel, Outcome
from studies.judges import FAILED, Judge

AT_ONCE = 32
"""Prompts whose answers are written together: what Ctrl-C can cost."""


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Prompts of one kind."""

    setting: str
    """As `plain`, `jailbreak`, `multimodal`, `benign`, `utility`."""
    modality: str
    prompts: tuple[Prompt, ...]
    rows: tuple[str, ...]
    """The prompts' ids in their dataset, each once."""
    dataset: str = ""
    right: tuple[tuple[str, ...], ...] = ()
    """Right answers of each prompt, where the model is asked to be good at something."""
    choices: tuple[tuple[str, ...], ...] = ()
    stand_ins: tuple[bool, ...] = ()
    """Which prompts show a picture drawn in place of the published one; by default none."""
    expected: tuple[str, ...] = ()
    """Of each prompt; by default harmful ones are to be refused, and all others answered."""

    @classmethod
    def of(cls, setting: str, modality: str, prompts: Sequence[Prompt], dataset: str, **others) -> "PromptSet":
        """Prompts whose ids are their numbers."""
        return cls(setting, modality, tuple(prompts), tuple(map(str, range(len(prompts)))), dataset, **others)

    def asked(
        self, i: int, prompt_hash: str, model: str, weights: str, defence: Defence, generation: dict
    ) -> AnswerRecord:
        """One prompt under one defence, not answered yet."""
        query = self.prompts[i].query
        return AnswerRecord.asked(
            dataset=self.dataset,
            row=self.rows[i],
            setting=self.setting,
            modality=self.modality,
            harmful=query.harmful,
            expected=self.expected[i] if self.expected else (REFUSE if query.harmful else ANSWER),
            category=query.category,
            pair=query.pair,
            request=query.text,
            named=query.rendered,
            said=self.prompts[i].text,
            prompt=prompt_hash,
            model=model,
            weights=weights,
            defence=defence.name,
            kind=defence.kind,
            about=defence.about,
            settings=defence.told,
            generation=generation,
            is_stand_in=bool(self.stand_ins) and self.stand_ins[i],
            right=list(self.right[i]) if self.right else [],
            choices=list(self.choices[i]) if self.choices else [],
        )


def collect(
    asker: CachedModel,
    weights: str,
    trial: PromptSet,
    defences: Sequence[Defence],
    log: AnswerLog,
    advance: Callable[..., None] = lambda n_answers: None,
) -> list[AnswerRecord]:
    """Answers of every defence to every prompt; what the log has is not asked again.

    Args:
        weights: identity of the model, part of what an answer is known by.
        advance: called with the number of answers done since the last call.
    """
    found = {one.id: [] for one in defences}
    for start in range(0, len(trial.prompts), AT_ONCE):
        asked = _asked(asker, weights, trial, defences, range(start, min(start + AT_ONCE, len(trial.prompts))))
        missing = {name: tuple(one for one in some if log.get(one.key) is None) for name, some in asked.items()}
        advance(sum(len(asked[name]) - len(some) for name, some in missing.items()))
        for group in _groups(defences, missing):
            rows = missing[group[0].id]
            outcomes = _answer(asker, [trial.prompts[trial.rows.index(one.row)] for one in rows], group)
            for one, outcome in zip(group, outcomes, strict=True):
                log.add(_answered(missing[one.id], outcome))
            advance(len(rows) * len(group))
        for name, some in asked.items():
            found[name] += [log.get(one.key) for one in some]
    return [answer for one in defences for answer in found[one.id]]


def judge_all(
    log: AnswerLog,
    answers: Sequence[AnswerRecord],
    judges: Sequence[Judge],
    advance: Callable[..., None] = lambda n_cases: None,
) -> list[AnswerRecord]:
    """The same answers with every judge's verdict, which the log keeps too.

    What the same judge has said before stands, unless it could not be asked then. Verdicts are put down judge by judge.
    Answers that are right or wrong need no judge.
    """
    judged = [one for one in answers if not one.right]
    for judge in judges:
        missing = [one for one in judged if not _is_judged(log.get(one.key), judge)]
        advance(len(judged) - len(missing))
        # The log would write its whole file again to put nothing in.
        if not missing:
            continue
        verdicts = judge.verdicts([one.case for one in missing], advance)
        told = [{judge.name: asdict(verdict) | {"judge": judge.identity}} for verdict in verdicts]
        log.judge({one.key: verdict for one, verdict in zip(missing, told, strict=True)})
    return [log.get(one.key) for one in answers]


def _is_judged(one: AnswerRecord, judge: Judge) -> bool:
    """By this very judge: another one may have the same name."""
    verdict = one.verdicts.get(judge.name)
    return verdict is not None and verdict["state"] != FAILED and verdict.get("judge") == judge.identity


def _asked(
    asker: CachedModel, weights: str, trial: PromptSet, defences: Sequence[Defence], chosen: Sequence[int]
) -> dict[str, list[AnswerRecord]]:
    """What is asked, by defence, with answers still empty."""
    hashes = {i: asker.prompt_hash(trial.prompts[i]) for i in chosen}
    about, generation = (asker.vlm.name, weights), asker.generation
    return {one.id: [trial.asked(i, hashes[i], *about, one, generation) for i in chosen] for one in defences}


def _groups(defences: Sequence[Defence], missing: dict[str, tuple[AnswerRecord, ...]]) -> list[list[Defence]]:
    """Defences that are asked together: guards that miss the same prompts share a prefill."""
    groups: dict[object, list[Defence]] = {}
    for one in defences:
        rows = tuple(asked.row for asked in missing[one.id])
        if rows:
            groups.setdefault(rows if one.ridden else one.id, []).append(one)
    return list(groups.values())


def _answer(asker: CachedModel, prompts: Sequence[Prompt], group: Sequence[Defence]) -> list[Outcome]:
    return ride(asker, prompts, group) if group[0].ridden else [group[0].run(asker, prompts)]


def _answered(asked: Sequence[AnswerRecord], outcome: Outcome) -> list[AnswerRecord]:
    scores, kls = finite(outcome.refusal_score.tolist()), finite(outcome.kl.tolist())
    told = zip(asked, outcome.answers, scores, kls, outcome.acted or [None] * len(asked), strict=True)
    return [replace(one, answer=a, refusal_score=score, kl=kl, acted=acted) for one, a, score, kl, acted in told]
