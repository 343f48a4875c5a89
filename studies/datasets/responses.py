"""Answers with labels of people, for checking judges: published files, and tables of the user's own."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from studies.datasets.columns import Labels, find_columns, parse_names, parse_values
from studies.datasets.files import DataFile, read_file
from studies.datasets.opening import stem_of
from studies.datasets.response_sets import (
    HUMAN,
    JAILBREAKBENCH_COLUMNS,
    NULLS,
    WILDGUARD_COLUMNS,
    LabelledResponse,
    answer_in,
    read_judge_comparison,
    read_models,
    read_review,
    read_wildguard_test,
    read_xstest_completions,
)
from studies.datasets.rows import QueryFileError, Row
from studies.datasets.table import label_in, words_in

READERS: tuple[tuple[Collection[str], Callable[[DataFile], Iterable[LabelledResponse]]], ...] = (
    (("final_label",), read_xstest_completions),
    (JAILBREAKBENCH_COLUMNS, read_judge_comparison),
    (WILDGUARD_COLUMNS, read_wildguard_test),
    (("action",), read_review),
    (("GPT4_action",), read_models),
)
"""Columns that identify a published file, and what reads it."""

REQUEST_NAMES = (
    *("request", "prompt", "question", "instruction", "goal", "redteam_query", "behavior", "forbidden_prompt", "query"),
    *("text", "input"),
)
RESPONSE_NAMES = ("response", "completion", "prediction", "output", "generation", "answer")
"""Usual names of a request and of a model's answer. `answer` is last: next to a `prediction` it is the right one."""
ID_NAMES = ("id", "index", "key", "question_id", "doc_id")
USUAL_NAMES = {
    "request": REQUEST_NAMES,
    "response": RESPONSE_NAMES,
    "refused": ("refused", "is_refusal", "refusal"),
    "harmful": ("harmful", "is_harmful"),
    "model": ("model",),
    "id": ID_NAMES,
}
REFUSED = ("true", "1", "yes", "refused", "refusal", "refuses", "full_refusal")
ANSWERED = ("false", "0", "no", "answered", "answer", "compliance", "complied", "full_compliance")


@dataclass(frozen=True)
class ResponseColumns:
    """The columns of a table of labelled answers by what they hold; names are found in any case."""

    names: Mapping[str, str] = field(default_factory=dict)
    """One of `USUAL_NAMES` -> the table's own name for it; `harmful` is the label of the answer, not of the request."""
    refused_values: tuple[str, ...] = ()
    """Labels that mean refused; by default those of `REFUSED`."""
    harmful_values: tuple[str, ...] = ()
    """Labels that mean harmful; by default those of `columns.TRUE`."""

    @classmethod
    def parse(cls, columns: str = "", refused_values: str = "", harmful_values: str = "") -> "ResponseColumns":
        """Read `request=prompt,response=completion,refused=label`, `full_refusal` and `unsafe,1`.

        Raises:
            QueryFileError: a pair is incomplete, or nothing is called that.
        """
        return cls(parse_names(columns, tuple(USUAL_NAMES)), parse_values(refused_values), parse_values(harmful_values))

    def __bool__(self) -> bool:
        return bool(self.names or self.refused_values or self.harmful_values)

    @property
    def labels(self) -> dict[str, Labels]:
        """The meanings of labels, by the column that they are in."""
        return {
            "refused": Labels(REFUSED, ANSWERED, self.refused_values, "--refused-values"),
            "harmful": Labels(given=self.harmful_values),
        }

    def find(self, path: Path, header: Collection[str]) -> dict[str, str]:
        """Return the table's name of each column that is there.

        Raises:
            QueryFileError: a column is missing, or no column holds labels.
        """
        expected = "expected answers with labels: --columns request=NAME,response=NAME and refused=NAME or harmful=NAME"
        found = find_columns(path, header, self.names, USUAL_NAMES, ("request", "response"), expected)
        if not {"refused", "harmful"} & set(found):
            raise QueryFileError(f"{path}: no column of labels; {expected}, got {','.join(sorted(header))}")
        return found


@dataclass(frozen=True)
class Responses:
    """The labelled answers of one file."""

    rows: tuple[LabelledResponse, ...]
    repeated_ids: tuple[str, ...]
    """Ids that occur more than once for one model, such as one of the 939 of Do-Not-Answer."""


def read_responses(path: str | Path, columns: ResponseColumns | None = None) -> Responses:
    """Read a file of labelled answers.

    It may be a table in a file of any kind: XSTest's completions and their evaluations; JailbreakBench's judge
    comparison; WildGuardTest; Do-Not-Answer's `data_en.csv` (six models, human labels), or a file of its folders
    `Review/{Human,GPT4,BERT,Longformer}`, whose codes look alike and mean different things; and any table of the user's
    own with requests, answers and labels.

    Args:
        path: the file, or the folder of a saved dataset.
        columns: columns and labels of a table of the user's own; a published file is read as one if they are given.

    Raises:
        QueryFileError: the file can't be read, a column is missing, a label is unknown, or folder and columns
            contradict each other.
    """
    file = read_file(path)
    reader = next((reader for keys, reader in READERS if file.keys >= set(keys)), None)
    rows = tuple(reader(file) if reader and not columns else _own(file, columns or ResponseColumns()))
    if not rows:
        raise QueryFileError(f"{path}: no row has an answer; expected answers with labels")
    counts = Counter((row.model, row.id) for row in rows if row.id)
    return Responses(rows, tuple(id for (_, id), n in counts.items() if n > 1))


def _own(file: DataFile, columns: ResponseColumns) -> Iterator[LabelledResponse]:
    """Read a table of the user's own; rows without an answer are left out, and a label may be missing."""
    found = columns.find(file.path, file.keys)
    remaining = {
        name: labels.remaining(file.path, words_in(file, found[name]))
        for name, labels in columns.labels.items()
        if name in found
    }
    for row in file.rows:
        if (response := answer_in(row, found["response"])) is None:
            continue
        meanings = {name: _meaning(file, row, found[name], columns.labels[name], remaining[name]) for name in remaining}
        words = (str(row.cells.get(found[name])) for name in remaining)
        yield LabelledResponse(
            row.number_or_text(found["id"]) if "id" in found else "",
            row.text(found["request"]),
            response,
            ", ".join(words),
            meanings.get("refused"),
            meanings.get("harmful"),
            HUMAN,
            row.text_or_empty(found["model"]) if "model" in found else "",
        )


def _meaning(file: DataFile, row: Row, key: str, labels: Labels, remaining: str | None) -> bool | None:
    return None if row.cells.get(key) in NULLS else label_in(row, key, labels, remaining, words_in(file, key))


@dataclass(frozen=True)
class ResponseFiles:
    """The labelled answers of several files, each counted once."""

    names: tuple[str, ...]
    """Names of the files, without suffixes."""
    rows: tuple[LabelledResponse, ...]
    """Answers of a file that names no model have the file's name as their model."""
    repeated: tuple[Path, ...]
    """Files that were left out, because another one has all of their answers."""


def read_response_files(paths: Sequence[str | Path], columns: ResponseColumns | None = None) -> ResponseFiles:
    """Read several files of labelled answers.

    A model's answers are published several times, with labels of people alone and with automatic labels next to them;
    counted more than once, they would make intervals too narrow.

    Raises:
        QueryFileError: see `read_responses`.
    """
    paths = [Path(path) for path in paths]
    files = [read_responses(path, columns).rows for path in paths]
    kept = _not_repeated([frozenset(map(_content, rows)) for rows in files])
    named = (replace(row, model=row.model or stem_of(paths[i])) for i in kept for row in files[i])
    rows = {_content(row): row for row in named}
    repeated = tuple(path for i, path in enumerate(paths) if i not in kept)
    return ResponseFiles(tuple(stem_of(paths[i]) for i in kept), tuple(rows.values()), repeated)


def _content(row: LabelledResponse) -> tuple[str, ...]:
    return row.model, row.labeller, row.id, row.request, row.response, row.label


def _not_repeated(contents: Sequence[frozenset]) -> list[int]:
    """Return the places of the sets that are not part of another one; of equal ones the first."""
    kept: list[int] = []
    for i in sorted(range(len(contents)), key=lambda i: -len(contents[i])):
        if not any(contents[i] <= contents[other] for other in kept):
            kept.append(i)
    return sorted(kept)
