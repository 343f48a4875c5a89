"""Published answers with labels, for checking judges: XSTest's and Do-Not-Answer's."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from studies.datasets.files import DataFile, Row, read_file
from studies.datasets.rows import QueryFileError

XSTEST_LABELS = {"1_full_compliance": False, "2_full_refusal": True, "3_partial_refusal": None}
"""Label -> refused; None for a partial refusal."""

ACTIONS = ("declines", "refutes the premise", "both sides", "disclaimer", "cannot", "unsure", "follows")
"""Do-Not-Answer's actions by GPT-4's codes from 0; its code -1 is a reply that was not parsed."""
HUMAN, GPT4 = "human", "GPT-4"
FOLDERS = {"human": HUMAN, "gpt4": GPT4, "bert": "BERT", "longformer": "Longformer"}
"""Do-Not-Answer's folders -> labeller. BERT and Longformer were trained on human labels and use their codes."""
# People had no code for `unsure`, so their 5 is GPT-4's 6.
HUMAN_CODES = {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4, "5": 6}
GPT4_CODES = {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4, "5": 5, "6": 6, "-1": None}
"""Code -> index in `ACTIONS`."""


@dataclass(frozen=True)
class LabelledResponse:
    """One answer of a model, and its label."""

    id: str
    """Id of the request in its benchmark; files have different orders, so they are joined by it."""
    request: str
    response: str
    label: str
    """Published label, in words; `unparsed` if the labeller's reply was not a label."""
    refused: bool | None
    """None for partial refusals, and for labels `unsure` and `unparsed`."""
    harmful: bool | None
    """The label of people where the file has one, else true if the answer does what was asked; None without a label."""
    labeller: str
    """`human`, `GPT-4`, or the classifier `BERT` or `Longformer`."""
    model: str = ""
    string_match: str = ""
    """XSTest's own label by string match; empty in files without it."""


@dataclass(frozen=True)
class Responses:
    """The labelled answers of one file."""

    rows: tuple[LabelledResponse, ...]
    repeated_ids: tuple[str, ...]
    """Ids that occur more than once for one model, such as one of the 939 of Do-Not-Answer."""


def read_responses(path: str | Path) -> Responses:
    """Read a file of labelled answers.

    It may be a table in a file of any kind: XSTest's completions and their evaluations; Do-Not-Answer's `data_en.csv`
    (six models, human labels); or a file of its folders `Review/{Human,GPT4,BERT,Longformer}`, whose codes look alike
    and mean different things.

    Raises:
        QueryFileError: the file is of no such kind, a label is unknown, or folder and columns contradict each other.
    """
    file = read_file(path)
    readers = {"final_label": _xstest, "action": _review, "GPT4_action": _models}
    reader = next((reader for key, reader in readers.items() if key in file.keys), None)
    if reader is None:
        raise QueryFileError(
            f"{path}: {file.summary()}; expected labelled answers, with final_label (XSTest), action or <model>_action "
            "(Do-Not-Answer)"
        )
    rows = tuple(reader(file))
    counts = Counter((row.model, row.id) for row in rows)
    return Responses(rows, tuple(id for (_, id), n in counts.items() if n > 1))


def without_repeated_files(paths: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """Leave out files whose answers, with the same labels, are all in another one.

    A model's answers are published several times, with labels of people alone and with automatic labels next to them;
    counted more than once, they would make intervals too narrow. Files that can't be read are kept.

    Returns:
        The files in their order without those, and those.
    """
    paths = [Path(path) for path in paths]
    answers = [_answers_in(path) for path in paths]
    kept: list[int] = []
    # The largest come first, and of equal ones the first.
    for i in sorted(range(len(paths)), key=lambda i: -len(answers[i])):
        if not answers[i] or not any(answers[i] <= answers[other] for other in kept):
            kept.append(i)
    return [paths[i] for i in sorted(kept)], [paths[i] for i in range(len(paths)) if i not in kept]


def _answers_in(path: Path) -> frozenset[tuple[str, ...]]:
    try:
        rows = read_responses(path).rows
    except QueryFileError:
        return frozenset()
    return frozenset((row.model, row.labeller, row.id, row.request, row.response, row.label) for row in rows)


def _xstest(file: DataFile) -> Iterator[LabelledResponse]:
    for row in file.rows:
        label = row.one_of("final_label", tuple(XSTEST_LABELS))
        yield LabelledResponse(
            row.number_or_text("id").removeprefix("v2-"),
            row.text("prompt"),
            row.get("completion"),
            label,
            XSTEST_LABELS[label],
            None,
            HUMAN,
            string_match=row.cells.get("strmatch_label", ""),
        )


def _review(file: DataFile) -> Iterator[LabelledResponse]:
    labeller = _labeller(file)
    key = next((key for key in sorted(file.keys) if key.endswith("response")), "response")
    model = key.removesuffix("response").rstrip("_") or file.stem.rpartition("_")[2]
    for row in file.rows:
        yield _labelled(row, labeller, model, key, "action", "harmful")


def _models(file: DataFile) -> Iterator[LabelledResponse]:
    models = sorted(key.removesuffix("_action") for key in file.keys if key.endswith("_action"))
    for row in file.rows:
        for model in models:
            yield _labelled(row, HUMAN, model, f"{model}_response", f"{model}_action", f"{model}_harmful")


def _labeller(file: DataFile) -> str:
    """Return the labeller by the folder, or by the column of reasons, which only GPT-4's files have."""
    folder = FOLDERS.get(file.path.absolute().parent.name.lower())
    has_reasons = bool(file.keys & {"action_review", "reviews"})
    if folder and (folder == GPT4) != has_reasons:
        raise QueryFileError(
            f"{file.path}: {'a' if has_reasons else 'no'} column of reasons, in the folder of labels by {folder}; "
            "expected reasons from GPT-4 only"
        )
    if not folder and not has_reasons:
        raise QueryFileError(
            f"{file.path}: the labeller is unknown, without a folder Human, GPT4, BERT or Longformer, and without a "
            "column of reasons; 5 means `follows` to people and `unsure` to GPT-4, so the labels can't be read"
        )
    return folder or GPT4


def _labelled(row: Row, labeller: str, model: str, response: str, action: str, harmful: str) -> LabelledResponse:
    codes = GPT4_CODES if labeller == GPT4 else HUMAN_CODES
    index = codes[row.one_of(action, tuple(codes))]
    label = "unparsed" if index is None else ACTIONS[index]
    is_clear = label not in ("unparsed", "unsure")
    follows = label == "follows" if is_clear else None
    # People said of each answer whether it is harmful, which is not the same as following the instruction.
    is_harmful = row.one_of(harmful, ("0", "1")) == "1" if row.cells.get(harmful) not in (None, "") else follows
    return LabelledResponse(
        row.number_or_text("id"),
        row.text("question"),
        row.get(response),
        label,
        label == "declines" if is_clear else None,
        is_harmful,
        labeller,
        model,
    )
