"""Answers on disk, one JSON line each, written as they come: nothing is asked twice, and a new judge needs no model."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path

from filelock import FileLock, Timeout

from interp.json_text import parse_json
from interp.whole_files import replaced
from studies.judges import Case

ANSWERS = "answers.jsonl"
"""Name of the file in a study's folder of results."""


class AnswerLogError(ValueError):
    """The file of answers can't be read or written; the message says where and why."""


@dataclass(frozen=True)
class AnswerRecord:
    """One answer, with everything that it depends on and every verdict on it."""

    key: str
    """Hash of everything that was asked: the same key means the same answer."""
    dataset: str
    row: str
    """Id of the row in its dataset."""
    setting: str
    modality: str
    harmful: bool
    expected: str
    """`refuse`, `answer`, or `caveat`: advice that needs a warning, where refusing and answering are both fine."""
    category: str
    pair: str | None
    request: str
    """The true request, which judges are shown."""
    named: str
    """The part of the request that an answer names."""
    said: str
    """The text in the chat."""
    prompt: str
    """Hash of the text, the system turn and the pictures."""
    model: str
    weights: str
    """Hash of the model's files."""
    defence: str
    kind: str
    """Kind of defence, see `studies.defences.defence.KINDS`."""
    about: dict
    """Columns that identify the defence in a table."""
    settings: dict
    """Settings that the defence's answers depend on."""
    generation: dict
    answer: str = ""
    refusal_score: float | None = None
    openings: list[list[int]] | None = None
    """Token ids of the refusal openings that the score is of; None where they are not known."""
    kl: float | None = None
    acted: bool | None = None
    """True if the defence stepped in; None for defences that always act."""
    is_stand_in: bool = False
    """The published picture was missing; one was drawn in its place."""
    right: list[str] = field(default_factory=list)
    """Correct answers, for questions of ability."""
    choices: list[str] = field(default_factory=list)
    verdicts: dict[str, dict] = field(default_factory=dict)
    """Verdicts by name of the judge."""

    @classmethod
    def unanswered(cls, **question) -> "AnswerRecord":
        """Return a record without an answer, its key computed from the question."""
        content = json.dumps(question, sort_keys=True)
        return cls(key=hashlib.sha256(content.encode()).hexdigest()[:24], **question)

    @property
    def case(self) -> Case:
        return Case(self.request, self.answer, self.named)


class AnswerLog:
    """A JSONL file that is appended to while answers are generated, and rewritten when they are judged."""

    def __init__(self, path: Path):
        """Open the log, or start a new one.

        A torn last line is dropped, and its answer is generated again.

        Raises:
            AnswerLogError: a line of the existing file is damaged.
        """
        self.path, self._records = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._repair_last_line()
            self._records = {record.key: record for record in read_answers(path)}

    def get(self, key: str) -> AnswerRecord | None:
        return self._records.get(key)

    @property
    def answers(self) -> list[AnswerRecord]:
        """All answers, oldest first."""
        return list(self._records.values())

    def add(self, new: Sequence[AnswerRecord]) -> None:
        """Append answers; they are on the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(_line(record) for record in new)
            file.flush()
            os.fsync(file.fileno())
        self._records |= {record.key: record for record in new}

    def drop_scores(self, openings: Sequence[Sequence[int]]) -> int:
        """Forget refusal scores that are of other openings, and return their number; the answers stay."""
        current = [list(tokens) for tokens in openings]
        scored = [record for record in self._records.values() if record.refusal_score is not None]
        stale = [record for record in scored if record.openings != current]
        self._records |= {record.key: replace(record, refusal_score=None) for record in stale}
        return len(stale)

    def judge(self, verdicts: Mapping[str, Mapping[str, Mapping]]) -> None:
        """Add verdicts, by answer key and judge. The file is replaced as a whole or not at all."""
        for key, by_judge in verdicts.items():
            record = self._records[key]
            added = {judge: dict(verdict) for judge, verdict in by_judge.items()}
            self._records[key] = replace(record, verdicts=record.verdicts | added)
        with replaced(self.path) as new, new.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, self._records.values()))
            file.flush()
            os.fsync(file.fileno())

    def _repair_last_line(self) -> None:
        """Drop half a line that a killed run has left, or end a complete one."""
        content = self.path.read_bytes()
        last = content[content.rfind(b"\n") + 1 :]
        if not last:
            return
        with self.path.open("r+b") as file:
            if _is_json(last):
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
            else:
                file.truncate(len(content) - len(last))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing the file: each would overwrite it with what it has in memory.

        Raises:
            AnswerLogError: another process is writing it.
        """
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise AnswerLogError(f"{self.path} is being written by another process; wait for it") from None
        try:
            yield
        finally:
            lock.release()


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def read_answers(path: str | Path) -> list[AnswerRecord]:
    """Read every answer in a file that a study has written.

    Raises:
        AnswerLogError: there is no such file, or a line is not an answer.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, IsADirectoryError):
        raise AnswerLogError(f"{path} is not a file; expected {ANSWERS} of `vlm-guard defend`") from None
    except UnicodeDecodeError as error:
        raise AnswerLogError(f"{path}: byte {error.start} is not UTF-8; the file is damaged") from None
    return [_parsed(path, number, line) for number, line in enumerate(lines, 1) if line]


def count_answers(path: Path) -> int:
    """Return the number of complete lines in a file of answers; 0 if there is no file."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


FIELD_TYPES = {
    "key": str,
    "answer": str,
    "request": str,
    "about": dict,
    "settings": dict,
    "verdicts": dict,
    "right": list,
}
"""Types of the fields whose values are used without a further check."""


def _parsed(path: str | Path, number: int, line: str) -> AnswerRecord:
    try:
        content = parse_json(line)
    except ValueError as error:
        raise AnswerLogError(
            f"{path}: line {number} is not JSON ({error}); remove the line to have its answer generated again"
        ) from None
    if differing := _differing_fields(content):
        raise AnswerLogError(
            f"{path}: line {number} is not an answer of this version (differs in {differing}); give another --out"
        )
    wrong = [name for name, kind in FIELD_TYPES.items() if name in content and not isinstance(content[name], kind)]
    if wrong:
        raise AnswerLogError(f"{path}: line {number}, {wrong[0]}: {content[wrong[0]]!r}; the file is damaged")
    return AnswerRecord(**content)


def _differing_fields(content: object) -> list[str] | str:
    """Return the fields that are missing or unknown; for anything but an object, its type."""
    if not isinstance(content, dict):
        return type(content).__name__
    # Fields that a later version has added have defaults, so files from before can be read.
    names = {field.name for field in fields(AnswerRecord)}
    needed = {f.name for f in fields(AnswerRecord) if f.default is MISSING and f.default_factory is MISSING}
    return sorted((needed - set(content)) | (set(content) - names))


def _line(record: AnswerRecord) -> str:
    return json.dumps(asdict(record), ensure_ascii=False, allow_nan=False) + "\n"


def finite(values: Iterable[float]) -> list[float | None]:
    """Return values that JSON can hold: None in place of NaN."""
    return [None if value != value else float(value) for value in values]
