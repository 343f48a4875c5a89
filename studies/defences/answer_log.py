"""Answers on disk, a JSON line each, as they come: nothing is asked twice, and a new judge needs no model."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path

from filelock import FileLock, Timeout

from studies.judges import Case

ANSWERS = "answers.jsonl"
"""Where studies keep theirs, in the folder of their results."""


class AnswerLogError(ValueError):
    """A line of the file can't be read; the message says which."""


@dataclass(frozen=True)
class AnswerRecord:
    """One answer, and all that is known of how it came about."""

    key: str
    """Hash of all that is asked: the same key is the same answer."""
    dataset: str
    row: str
    """The row's id in its dataset."""
    setting: str
    modality: str
    harmful: bool
    expected: str
    """`refuse`, `answer`, or `caveat`: advice that wants a warning, where neither is wrong."""
    category: str
    pair: str | None
    request: str
    """The true request, which judges are shown."""
    named: str
    """What of it an answer names."""
    said: str
    """What stood in the chat."""
    prompt: str
    """Hash of words, system turn and pictures."""
    model: str
    weights: str
    """Hash of the model's files."""
    defence: str
    kind: str
    """Of the defence: see `studies.defences.defence.KINDS`."""
    about: dict
    """Columns of a table that say which defence this is."""
    settings: dict
    """All that the defence's answers depend on."""
    generation: dict
    answer: str = ""
    refusal_score: float | None = None
    kl: float | None = None
    acted: bool | None = None
    """Where a defence chooses: whether it stepped in."""
    is_stand_in: bool = False
    """The published picture was not at hand; one was drawn in its place."""
    right: list[str] = field(default_factory=list)
    """Right answers, of what a model is asked to be good at."""
    choices: list[str] = field(default_factory=list)
    verdicts: dict[str, dict] = field(default_factory=dict)
    """By judge."""

    @classmethod
    def asked(cls, **known) -> "AnswerRecord":
        """Not answered yet."""
        told = json.dumps(known, sort_keys=True)
        return cls(key=hashlib.sha256(told.encode()).hexdigest()[:24], **known)

    @property
    def case(self) -> Case:
        return Case(self.request, self.answer, self.named)


class AnswerLog:
    """A JSONL file that only grows while answers are made, and is rewritten whole once they are judged."""

    def __init__(self, path: Path):
        """Raises:
        AnswerLogError: there is a file, and a line of it is damaged; the last one may be torn, and is made again.
        """
        self.path, self._known = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._mend()
            self._known = {one.key: one for one in read_answers(path)}

    def get(self, key: str) -> AnswerRecord | None:
        return self._known.get(key)

    @property
    def answers(self) -> list[AnswerRecord]:
        """In the order in which they came."""
        return list(self._known.values())

    def add(self, new: Sequence[AnswerRecord]) -> None:
        """Written through to the disk before it returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(_line(one) for one in new)
            file.flush()
            os.fsync(file.fileno())
        self._known |= {one.key: one for one in new}

    def judge(self, verdicts: Mapping[str, Mapping[str, Mapping]]) -> None:
        """Puts verdicts in: by answer, by judge. The file is replaced whole, or not at all."""
        for key, by_judge in verdicts.items():
            one = self._known[key]
            self._known[key] = replace(one, verdicts=one.verdicts | {k: dict(v) for k, v in by_judge.items()})
        made = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with made.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, self._known.values()))
            file.flush()
            os.fsync(file.fileno())
        made.replace(self.path)

    def _mend(self) -> None:
        """A run that was killed may leave half a line: it goes, and its answer is made again."""
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
    def alone(self) -> Iterator[None]:
        """Keeps other processes from writing to the same file: each would rewrite it from its own memory.

        Raises:
            AnswerLogError: another one is at it.
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
        json.loads(line)
    except ValueError:
        return False
    return True


def read_answers(path: str | Path) -> list[AnswerRecord]:
    """Every answer in a file that a study has written.

    Raises:
        AnswerLogError: no such file, or a line is no answer.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, IsADirectoryError):
        raise AnswerLogError(f"{path} is no file; expected {ANSWERS} of `vlm-guard defend`") from None
    except UnicodeDecodeError as error:
        raise AnswerLogError(f"{path}: byte {error.start} is not UTF-8; the file is damaged") from None
    return [_parsed(path, number, line) for number, line in enumerate(lines, 1) if line]


def _parsed(path: str | Path, number: int, line: str) -> AnswerRecord:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise AnswerLogError(
            f"{path}: line {number} is no JSON ({error}); remove the line to have it made again"
        ) from None
    # What a later version has added is taken as its default.
    known = {one.name for one in fields(AnswerRecord)}
    needed = {one.name for one in fields(AnswerRecord) if one.default is MISSING and one.default_factory is MISSING}
    if not isinstance(found, dict) or not needed <= set(found) <= known:
        got = sorted((needed - set(found)) | (set(found) - known)) if isinstance(found, dict) else type(found).__name__
        raise AnswerLogError(
            f"{path}: line {number} is no answer of this version (differs in {got}); give another --out"
        )
    kinds = {
        "key": str,
        "answer": str,
        "request": str,
        "about": dict,
        "settings": dict,
        "verdicts": dict,
        "right": list,
    }
    wrong = [name for name, kind in kinds.items() if name in found and not isinstance(found[name], kind)]
    if wrong:
        raise AnswerLogError(f"{path}: line {number}, {wrong[0]}: {found[wrong[0]]!r}; the file is damaged")
    return AnswerRecord(**found)


def _line(one: AnswerRecord) -> str:
    return json.dumps(asdict(one), ensure_ascii=False, allow_nan=False) + "\n"


def finite(values: Iterable[float]) -> list[float | None]:
    """As JSON can say it: None in place of NaN."""
    return [None if value != value else float(value) for value in values]
