"""Answers that other programs have saved: lmms-eval, inspect_ai, VLMEvalKit, or any table of requests and answers."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from interp.json_text import parse_json
from studies.datasets.columns import ALL, NONE, Labels, find_columns, parse_names, parse_values
from studies.datasets.files import OBJECT, DataFile, read_file
from studies.datasets.inspect_logs import SUFFIX, InspectLog, inspect_log_of, is_inspect_json, read_inspect_log
from studies.datasets.opening import check_is_data
from studies.datasets.response_sets import answer_in
from studies.datasets.responses import ID_NAMES, REQUEST_NAMES, RESPONSE_NAMES
from studies.datasets.rows import VALUE, QueryFileError, Row
from studies.datasets.table import label_in, word
from studies.datasets.text_sets import XSTEST_TYPES, XSTEST_UNSAFE

USUAL_NAMES = {
    "request": REQUEST_NAMES,
    "response": RESPONSE_NAMES,
    "harmful": ("harmful", "is_harmful", "prompt_harm_label"),
    "model": ("model",),
    "defence": ("defence", "defense"),
    "dataset": ("dataset",),
    "category": ("category",),
    "id": ID_NAMES,
}
LMMS_NAME = re.compile(r"(?P<run>.*?)_?samples_(?P<task>.+)")
"""Name of a file of lmms-eval, without its suffix."""
TABLE, LMMS_EVAL, INSPECT, VLMEVALKIT = "table", "lmms-eval", "inspect_ai", "VLMEvalKit"


@dataclass(frozen=True)
class AnswerColumns:
    """The columns of saved answers by what they hold; names are found in any case."""

    names: Mapping[str, str] = field(default_factory=dict)
    """One of `USUAL_NAMES` -> the file's own name for it; `harmful` is the class of the request: a column, `all` or
    `none`."""
    harmful_values: tuple[str, ...] = ()
    """Labels that mean harmful; by default those of `columns.TRUE`."""

    @classmethod
    def parse(cls, columns: str = "", harmful_values: str = "") -> "AnswerColumns":
        """Read `request=goal,response=output,harmful=none` and `unsafe,1`.

        Raises:
            QueryFileError: a pair is incomplete, or nothing is called that.
        """
        return cls(parse_names(columns, tuple(USUAL_NAMES)), parse_values(harmful_values))

    @property
    def all_harmful(self) -> bool | None:
        """The class of all requests if it is given in place of a column; else None."""
        return {ALL: True, NONE: False}.get(self.names.get("harmful", ""))

    def find(self, path: Path, header: Collection[str]) -> dict[str, str]:
        """Return the file's name of each column that is there.

        Raises:
            QueryFileError: a column that was named, or the request or response, is missing.
        """
        usual = {ours: own for ours, own in USUAL_NAMES.items() if ours != "harmful" or self.all_harmful is None}
        expected = "expected saved answers: --columns request=NAME,response=NAME"
        return find_columns(path, header, self.names, usual, ("request", "response"), expected)


@dataclass(frozen=True)
class SavedAnswer:
    """One answer, and what its file says of it."""

    id: str
    request: str
    response: str
    harmful: bool
    """Class of the request; true if the file does not say."""
    model: str = ""
    """Empty if the file does not say; so are the others."""
    defence: str = ""
    dataset: str = ""
    category: str = ""


@dataclass(frozen=True)
class SavedAnswers:
    """The answers of one file."""

    answers: tuple[SavedAnswer, ...]
    program: str
    """The program that wrote the file, or `table`."""
    n_without: int
    """Requests without an answer, which are left out."""
    tells_harm: bool
    """False if nothing says which requests are harmful; all count as harmful then."""
    max_new_tokens: int | None = None
    """At most this many tokens were generated, as far as the file says."""


@dataclass(frozen=True)
class _Log:
    """Rows of a file in one form, whatever program wrote it, and what holds for all of them."""

    path: Path
    rows: Iterable[Row]
    header: frozenset[str]
    program: str = TABLE
    model: str = ""
    dataset: str = ""
    max_new_tokens: int | None = None


def read_saved_answers(path: str | Path, columns: AnswerColumns | None = None) -> SavedAnswers:
    """Read answers that another program has saved.

    Files of lmms-eval (`samples_*.jsonl`), inspect_ai (`.eval`, `.json`) and VLMEvalKit (`.xlsx`, `.tsv`) are
    recognised by their contents; other tables need a request and an answer. Names of columns may also be keys of a
    document in lmms-eval, or of the metadata of a sample in inspect_ai.

    Args:
        path: the file.
        columns: columns and labels, where they have other names than the usual ones.

    Raises:
        QueryFileError: the file can't be read, a column is missing, a label is unknown, or there is no answer.
    """
    path, columns = Path(path), columns or AnswerColumns()
    log = _opened(path)
    found = columns.find(path, log.header)
    answered = [row for row in log.rows if answer_in(row, found["response"]) is not None]
    if not answered:
        raise QueryFileError(f"{path}: no answers; expected at least one row with an answer")
    classes = _classes(path, answered, found.get("harmful"), columns)
    # Without ids, the answers of two defences to one request are known by the request.
    places = {text: str(i) for i, text in enumerate(dict.fromkeys(row.text(found["request"]) for row in answered))}
    answers = [
        _answer(log, row, found, places[row.text(found["request"])], is_harmful)
        for row, is_harmful in zip(answered, classes or [True] * len(answered), strict=True)
    ]
    n_without = sum(1 for _ in log.rows) - len(answered)
    return SavedAnswers(_with_unique_ids(answers), log.program, n_without, classes is not None, log.max_new_tokens)


def _opened(path: Path) -> _Log:
    if path.suffix.lower() == SUFFIX and path.is_file():
        check_is_data(path)
        return _inspect(path, read_inspect_log(path))
    file = read_file(path)
    if file.kind == OBJECT:
        parts = {row.key: row.cells.get(VALUE, row.cells) for row in file.rows}
        if is_inspect_json(parts):
            return _inspect(path, inspect_log_of(path, parts))
    if "doc_id" in file.keys and file.keys & {"resps", "filtered_resps"}:
        return _lmms_eval(file)
    if {"index", "question", "prediction"} <= file.keys:
        return _vlmevalkit(file)
    return _Log(path, file.rows, file.keys, dataset=file.stem)


def _inspect(path: Path, log: InspectLog) -> _Log:
    header = frozenset(key for row in log.rows for key in row.cells)
    return _Log(path, log.rows, header, INSPECT, log.model, log.task, log.max_new_tokens)


def _lmms_eval(file: DataFile) -> _Log:
    """Read documents, and the answers as they were before any filter; the name of the file says the task."""
    rows = tuple(map(_lmms_row, file.rows))
    match = LMMS_NAME.fullmatch(file.stem)
    header = frozenset(key for row in rows for key in row.cells)
    task = match["task"] if match else file.stem
    return _Log(file.path, rows, header, LMMS_EVAL, _lmms_model(file.path, match), task)


def _lmms_row(row: Row) -> Row:
    doc = row.cells.get("doc")
    answers = row.cells.get("resps") or row.cells.get("filtered_resps")
    while isinstance(answers, list):
        answers = answers[0] if answers else None
    own = {"input": row.cells.get("input"), "id": row.number_or_text("doc_id"), "response": answers}
    return replace(row, cells=(doc if isinstance(doc, dict) else {}) | own)


def _lmms_model(path: Path, match: re.Match | None) -> str:
    """Return the model that the results next to the samples name, else the one that the folder is called after."""
    results = path.with_name(f"{match['run']}_results.json") if match else path
    try:
        config = parse_json(results.read_text(encoding="utf-8"))
        named = re.search(r"pretrained=([^,]+)", str(config.get("config", {}).get("model_args", "")))
        return named[1] if named else str(config.get("model_name") or "")
    except (OSError, ValueError, AttributeError):
        folder = path.absolute().parent.name
        return folder.replace("__", "/") if "__" in folder else ""


def _vlmevalkit(file: DataFile) -> _Log:
    """Read predictions; files are called MODEL_DATASET, in a folder of the model or one inside it."""
    folders = [folder.name for folder in file.path.absolute().parents[:2]]
    model = next((name for name in folders if name and file.stem.startswith(f"{name}_")), "")
    dataset = file.stem.removeprefix(f"{model}_") if model else file.stem
    return _Log(file.path, file.rows, file.keys, VLMEVALKIT, model, dataset)


def _classes(path: Path, rows: Sequence[Row], key: str | None, columns: AnswerColumns) -> list[bool] | None:
    """Return whether each request is harmful; None if nothing says it."""
    if columns.all_harmful is not None:
        return [columns.all_harmful] * len(rows)
    if key is not None:
        labels, words = Labels(given=columns.harmful_values), [word(row.cells.get(key)) for row in rows]
        remaining = labels.remaining(path, words)
        return [label_in(row, key, labels, remaining, words) for row in rows]
    types = [row.cells.get("type") for row in rows]
    return [kind.startswith(XSTEST_UNSAFE) for kind in types] if set(types) <= set(XSTEST_TYPES) else None


def _answer(log: _Log, row: Row, found: Mapping[str, str], place: str, is_harmful: bool) -> SavedAnswer:
    def text(name: str, otherwise: str) -> str:
        return word(row.cells.get(found[name])) or otherwise if name in found else otherwise

    return SavedAnswer(
        text("id", place),
        row.text(found["request"]),
        answer_in(row, found["response"]),
        is_harmful,
        text("model", log.model),
        text("defence", ""),
        text("dataset", log.dataset),
        text("category", ""),
    )


def _with_unique_ids(answers: Sequence[SavedAnswer]) -> tuple[SavedAnswer, ...]:
    """Number ids that are repeated within a dataset, model and defence."""
    seen: Counter[tuple[Any, ...]] = Counter()
    unique = []
    for answer in answers:
        place = answer.dataset, answer.model, answer.defence, answer.id
        seen[place] += 1
        unique.append(replace(answer, id=f"{answer.id}#{seen[place]}") if seen[place] > 1 else answer)
    return tuple(unique)
