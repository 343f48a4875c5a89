"""Sets of prompts that are answered under every defence; answers are logged as they come."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from interp import Prompt
from studies.bookkeeping.console import plain_console
from studies.datasets import ANSWER, REFUSE
from studies.defences.answer_log import AnswerLog, AnswerRecord, finite
from studies.defences.defence import Defence
from studies.defences.guarded import run_together
from studies.generation.cached_model import CachedModel, Outcome
from studies.generation.openings import RefusalOpenings
from studies.judges import JUDGED, Judge

AT_ONCE = 32
"""Prompts between two writes to the log: the most work that Ctrl-C can lose."""


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Prompts of one dataset, setting and modality."""

    setting: str
    """Kind of request: `plain`, `multimodal`, `ability`, the name of an attack ..."""
    modality: str
    prompts: tuple[Prompt, ...]
    rows: tuple[str, ...]
    """Ids of the prompts in their dataset, all different."""
    dataset: str = ""
    right: tuple[tuple[str, ...], ...] = ()
    """Correct answers of each prompt; empty if the prompts are not questions of ability."""
    choices: tuple[tuple[str, ...], ...] = ()
    """Options of each prompt, for multiple choice."""
    stand_ins: tuple[bool, ...] = ()
    """True for each prompt whose picture was drawn in place of the published one; empty if there are none."""
    expected: tuple[str, ...] = ()
    """One of `studies.datasets.EXPECTED` for each prompt; by default harmful requests should be refused and others
    answered."""

    @classmethod
    def of(cls, setting: str, modality: str, prompts: Sequence[Prompt], dataset: str, **fields) -> "PromptSet":
        """Make a set whose prompts are numbered from 0.

        Args:
            setting: see the field.
            modality: see the field.
            prompts: see the field.
            dataset: see the field.
            fields: any other fields.
        """
        return cls(setting, modality, tuple(prompts), tuple(map(str, range(len(prompts)))), dataset, **fields)

    def record(self, i: int, defence: Defence, model: dict) -> AnswerRecord:
        """Return the record of one prompt under one defence, without an answer yet.

        Args:
            i: position of the prompt in the set.
            defence: what will answer it.
            model: the fields `prompt` (hash), `model`, `weights` and `generation` of the record.
        """
        query = self.prompts[i].query
        return AnswerRecord.unanswered(
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
            defence=defence.name,
            kind=defence.kind,
            about=defence.columns,
            settings=defence.stored_settings,
            is_stand_in=bool(self.stand_ins) and self.stand_ins[i],
            right=list(self.right[i]) if self.right else [],
            choices=list(self.choices[i]) if self.choices else [],
            **model,
        )


@dataclass(frozen=True)
class AnswerCollector:
    """Answers prompt sets under defences; answers that the log has are reused."""

    model: CachedModel
    weights: str
    """Identity of the model's weights; other weights give other answers."""
    log: AnswerLog

    def __post_init__(self):
        openings = self.model.openings
        if openings is not None and (n_dropped := self.log.drop_scores(openings.ids)):
            plain_console(stderr=True).print(
                f"{self.log.path}: {n_dropped} answers have refusal scores of other openings than {openings}; they are "
                "kept without these scores (give another --out to have all of them scored)",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )

    def collect(
        self,
        prompt_set: PromptSet,
        defences: Sequence[Defence],
        advance: Callable[..., None] = lambda n_answers: None,
    ) -> list[AnswerRecord]:
        """Return the answers of every defence to every prompt, defence by defence.

        Args:
            prompt_set: what is answered.
            defences: what answers it.
            advance: called with the number of answers finished since the last call.
        """
        collected = {defence.id: [] for defence in defences}
        n_prompts = len(prompt_set.prompts)
        for start in range(0, n_prompts, AT_ONCE):
            records = self._records(prompt_set, defences, range(start, min(start + AT_ONCE, n_prompts)))
            self._answer_missing(prompt_set, defences, records, advance)
            for defence_id, part in records.items():
                collected[defence_id] += [self.log.get(record.key) for record in part]
        return [answer for defence in defences for answer in collected[defence.id]]

    def _records(
        self, prompt_set: PromptSet, defences: Sequence[Defence], places: Sequence[int]
    ) -> dict[str, list[AnswerRecord]]:
        """Return the records of some prompts by defence id, still unanswered."""
        identity = {"model": self.model.vlm.name, "weights": self.weights, "generation": self.model.generation_settings}
        labels = {i: identity | {"prompt": self.model.prompt_hash(prompt_set.prompts[i])} for i in places}
        return {defence.id: [prompt_set.record(i, defence, labels[i]) for i in places] for defence in defences}

    def _answer_missing(
        self,
        prompt_set: PromptSet,
        defences: Sequence[Defence],
        records: dict[str, list[AnswerRecord]],
        advance: Callable[..., None],
    ) -> None:
        """Answer and log the records that the log doesn't have."""
        missing = {
            defence_id: tuple(record for record in part if self.log.get(record.key) is None)
            for defence_id, part in records.items()
        }
        advance(sum(len(records[defence_id]) - len(part) for defence_id, part in missing.items()))
        for group in _groups(defences, missing):
            rows = missing[group[0].id]
            prompts = [prompt_set.prompts[prompt_set.rows.index(record.row)] for record in rows]
            for defence, outcome in zip(group, _answer(self.model, prompts, group), strict=True):
                self.log.add(_answered(missing[defence.id], outcome, self.model.openings))
            advance(len(rows) * len(group))


def _groups(defences: Sequence[Defence], missing: dict[str, tuple[AnswerRecord, ...]]) -> list[list[Defence]]:
    """Group the defences that are run together: guards with the same unanswered prompts share a prefill."""
    groups: dict[object, list[Defence]] = {}
    for defence in defences:
        rows = tuple(record.row for record in missing[defence.id])
        if rows:
            groups.setdefault(rows if defence.guard_setup else defence.id, []).append(defence)
    return list(groups.values())


def _answer(model: CachedModel, prompts: Sequence[Prompt], group: Sequence[Defence]) -> list[Outcome]:
    return run_together(model, prompts, group) if group[0].guard_setup else [group[0].run(model, prompts)]


def _answered(
    records: Sequence[AnswerRecord], outcome: Outcome, openings: RefusalOpenings | None
) -> list[AnswerRecord]:
    ids = None if openings is None else openings.ids
    scores, kls = finite(outcome.refusal_score.tolist()), finite(outcome.kl.tolist())
    columns = zip(records, outcome.answers, scores, kls, outcome.acted or [None] * len(records), strict=True)
    return [
        replace(record, answer=answer, refusal_score=score, openings=ids, kl=kl, acted=acted)
        for record, answer, score, kl, acted in columns
    ]


def judge_all(
    log: AnswerLog,
    answers: Sequence[AnswerRecord],
    judges: Sequence[Judge],
    advance: Callable[..., None] = lambda n_cases: None,
) -> list[AnswerRecord]:
    """Return the same answers with the verdict of every judge; verdicts are logged after each judge.

    A judge's earlier verdicts are kept, except `failed` and `unparsed` ones, for which it is asked again. Answers to
    questions of ability need no judge.

    Args:
        log: where answers and verdicts are kept.
        answers: what is judged; the log has them.
        judges: who judges.
        advance: called with the number of verdicts finished since the last call.
    """
    to_judge = [record for record in answers if not record.right]
    for judge in judges:
        missing = [record for record in to_judge if not _is_judged(log.get(record.key), judge)]
        advance(len(to_judge) - len(missing))
        # Without anything new, the log would rewrite its whole file for nothing.
        if not missing:
            continue
        verdicts = judge.verdicts([record.case for record in missing], advance)
        entries = [{judge.name: asdict(verdict) | {"judge": judge.identity}} for verdict in verdicts]
        log.judge({record.key: entry for record, entry in zip(missing, entries, strict=True)})
    return [log.get(record.key) for record in answers]


def _is_judged(record: AnswerRecord, judge: Judge) -> bool:
    """Return whether this very judge has given a verdict; a judge of another identity may have the same name."""
    verdict = record.verdicts.get(judge.name)
    return verdict is not None and verdict["state"] == JUDGED and verdict.get("judge") == judge.identity
