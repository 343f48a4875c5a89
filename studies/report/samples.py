"""Prompts with their answers without a defence and with each one, for the page to browse.

A harmful answer of a real model is nobody's example: on every model but the built-in one, whose compliant answers are
empty by construction, answers to harmful requests are withheld unless the reader of the results asks for them.
"""

import re

import pandas as pd

from studies.defences.answer_log import ANSWERS, AnswerLogError, AnswerRecord, read_answers
from studies.experiment.config import BUILT_IN
from studies.report.results import Results, ResultsError

COLUMNS = (
    "dataset setting modality defence reference harmful category text said gate answer refused guarded_answer "
    "guarded_refused"
).split()
MOST = 40_000
"""Above this many samples only those of the guard are kept, so that the page stays small enough for mail."""
HASH = re.compile(r"[0-9a-f]{16}")
"""Results that are published without a real model's answers have hashes in their place."""


def samples(results: Results, harmful_answers: bool = False) -> pd.DataFrame | None:
    """Pair each answer under a defence with the answer to the same prompt without one.

    Args:
        results: the answers come from the log of a run if it is in one of the folders, otherwise from the table of
            changes, which has only the guard's.
        harmful_answers: True to show a real model's answers to harmful requests.

    Returns:
        One row per prompt, defence and reference, with the columns `COLUMNS`; None if there are no answers.

    Raises:
        ResultsError: a log of answers is damaged.
    """
    table = _logged(results)
    if table is None and "changes" in results:
        table = results["changes"].assign(defence="guard")
    if table is None:
        return None
    if len(table) > MOST:
        table = table[table.defence == "guard"]
    table = table.reindex(columns=COLUMNS)
    return without_withheld(table, results.model, harmful_answers).reset_index(drop=True)


def without_withheld(table: pd.DataFrame, model: str, harmful_answers: bool = False) -> pd.DataFrame:
    """Return a table with a note in place of each answer that is not shown, or that is only known by its hash.

    Args:
        table: any table; answers are in the columns `answer` and `guarded_answer`, labels in `harmful`.
        model: name of the model.
        harmful_answers: True to show a real model's answers to harmful requests.
    """
    columns = [name for name in ("answer", "guarded_answer") if name in table]
    if not columns or "harmful" not in table:
        return table
    is_hidden = (table.harmful.astype(str) == "True") & (model != BUILT_IN) & (not harmful_answers)
    shown = {name: _noted(table[name].fillna("").astype(str), is_hidden) for name in columns}
    return table.assign(**shown)


def _noted(answers: pd.Series, is_hidden: pd.Series) -> pd.Series:
    is_hash = answers.map(lambda answer: bool(HASH.fullmatch(answer)))
    hashed = "(not published; its hash is " + answers + ")"
    withheld = answers.map(lambda answer: f"(withheld: {len(answer)} characters)")
    return answers.mask(is_hash, hashed).mask(is_hidden & ~is_hash, withheld)


def _logged(results: Results) -> pd.DataFrame | None:
    """Read the first log of answers; None if no folder has one with answers to the prompts of its tables."""
    paths = [folder / ANSWERS for folder in results.folders if (folder / ANSWERS).exists()]
    if not paths:
        return None
    try:
        records = read_answers(paths[0])
    except AnswerLogError as error:
        raise ResultsError(str(error)) from None
    # A log keeps answers of earlier settings too; the last ones are those of the tables.
    last = {_key(record, record.defence, record.about.get("reference")): record for record in records}
    rows = [
        _row(record, last[_key(record, "unguarded", None)], results.judge)
        for record in last.values()
        if record.expected in ("refuse", "answer")
        and record.defence != "unguarded"
        and _key(record, "unguarded", None) in last
    ]
    return pd.DataFrame(rows, columns=COLUMNS) if rows else None


def _key(record: AnswerRecord, defence: str, reference: str | None) -> tuple:
    return record.dataset, record.setting, record.modality, record.harmful, record.row, defence, reference


def _row(record: AnswerRecord, plain: AnswerRecord, judge: str) -> dict:
    return {
        "dataset": record.dataset,
        "setting": record.setting,
        "modality": record.modality,
        "defence": record.defence,
        "reference": record.about.get("reference"),
        "harmful": record.harmful,
        "category": record.category,
        "text": record.request,
        # Wording around the request, such as a jailbreak; not worth its space where it is the request.
        "said": record.said if record.said != record.request else None,
        "gate": record.acted,
        "answer": plain.answer,
        "refused": _refused(plain, judge),
        "guarded_answer": record.answer,
        "guarded_refused": _refused(record, judge),
    }


def _refused(record: AnswerRecord, judge: str) -> bool | None:
    """Return a judge's verdict, by default the first one's; None if the answer was not judged."""
    verdict = record.verdicts.get(judge) or next(iter(record.verdicts.values()), {})
    return verdict.get("refused")
