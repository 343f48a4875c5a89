"""Answers that another program has saved -> logs that judges read: one log for each model."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from interp.json_text import parse_json
from studies.bookkeeping.provenance import file_hash
from studies.datasets import ANSWER, REFUSE, SavedAnswers
from studies.datasets.saved_answers import SavedAnswer
from studies.defences.answer_log import ANSWERS, AnswerLog, AnswerRecord
from studies.defences.defence import NONE, SAVED
from studies.defences.rates import UNGUARDED
from studies.experiment.config import ConfigError

NOT_STATED = "not stated"
"""Model, defence or modality of answers whose file does not say it."""
UNDEFENDED = ("", "none", UNGUARDED)
"""Names of no defence, in a file that names a defence for other answers."""
SETTING = "saved"


def is_own_log(path: Path) -> bool:
    """Return whether a file is one of this project's logs, or can only be a damaged one."""
    if path.suffix != ".jsonl" or not path.is_file():
        return path.name == ANSWERS
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        content = parse_json(first)
    except ValueError:
        return path.name == ANSWERS
    return isinstance(content, dict) and {"key", "answer", "verdicts"} <= set(content)


def write_logs(saved: SavedAnswers, path: Path, out: Path, model: str = "", defence: str = "") -> list[Path]:
    """Write a log for each model; those that are there already, with their verdicts, stay.

    Args:
        saved: the answers.
        path: the file that they are from, by whose hash a log is recognised.
        out: folder of the log; with several models it has a folder for each.
        model: name of the model where the file has none.
        defence: name of the defence where the file has none.

    Returns:
        The logs.

    Raises:
        ConfigError: the folder holds a log of other answers.
    """
    answers = [
        replace(answer, model=answer.model or model or NOT_STATED, defence=answer.defence or defence)
        for answer in saved.answers
    ]
    names = list(dict.fromkeys(answer.model for answer in answers))
    logs = []
    for name in names:
        folder = out / name.replace("/", "__") if len(names) > 1 else out
        own = [answer for answer in answers if answer.model == name]
        logs.append(_write_log(_records(own, file_hash([path]), saved.max_new_tokens), folder / ANSWERS))
    return logs


def _write_log(records: Sequence[AnswerRecord], path: Path) -> Path:
    log = AnswerLog(path)
    if {record.weights for record in log.answers} - {records[0].weights}:
        raise ConfigError(f"{path} holds other answers than those of {records[0].weights}; give another --out")
    log.add([record for record in records if log.get(record.key) is None])
    return path


def _records(answers: Sequence[SavedAnswer], file: str, max_new_tokens: int | None) -> list[AnswerRecord]:
    is_stated = any(answer.defence for answer in answers)
    generation = {"max_new_tokens": max_new_tokens} if max_new_tokens else {}
    return [_record(answer, file, generation, is_stated) for answer in answers]


def _record(answer: SavedAnswer, file: str, generation: dict, is_stated: bool) -> AnswerRecord:
    is_plain = is_stated and answer.defence.lower() in UNDEFENDED
    defence = UNGUARDED if is_plain else answer.defence or NOT_STATED
    about = {"defence": defence} | ({} if is_plain else {"tuning": NOT_STATED})
    record = AnswerRecord.unanswered(
        dataset=answer.dataset or NOT_STATED,
        row=answer.id,
        setting=SETTING,
        modality=NOT_STATED,
        harmful=answer.harmful,
        expected=REFUSE if answer.harmful else ANSWER,
        category=answer.category,
        pair=None,
        request=answer.request,
        named="",
        said=answer.request,
        prompt=sha256(answer.request.encode()).hexdigest()[:16],
        model=answer.model,
        weights=f"{answer.model}, file {file}",
        defence=defence,
        kind=NONE if is_plain else SAVED,
        about=about,
        settings={},
        generation=generation,
    )
    return replace(record, answer=answer.response)
