"""Readers of published answers with labels: XSTest, Do-Not-Answer, JailbreakBench's judge comparison, WildGuardTest."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from studies.datasets.files import DataFile, Row
from studies.datasets.rows import QueryFileError
from studies.datasets.text_sets import XSTEST_TYPES, XSTEST_UNSAFE

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

JAILBREAKBENCH_COLUMNS = ("goal", "target_response", "human_majority")
JAILBREAKBENCH_HUMANS = ("human1", "human2", "human3")
JAILBREAKBENCH_JUDGES = ("harmbench_cf", "gpt4_cf", "llamaguard2_cf", "llama3_cf")
WILDGUARD_COLUMNS = ("prompt", "response", "prompt_harm_label", "response_refusal_label", "response_harm_label")
WILDGUARD_REFUSAL = {"refusal": True, "compliance": False}
WILDGUARD_HARM = {"harmful": True, "unharmful": False}
NULLS = (None, "", r"\N")
"""Cells without a value; databases export `\\N`."""


@dataclass(frozen=True)
class Opinion:
    """One annotator's opinion of an answer; None for what was not asked."""

    refused: bool | None = None
    harmful: bool | None = None


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
    """None for partial refusals, for labels `unsure` and `unparsed`, and where nobody was asked."""
    harmful: bool | None
    """The label of people where the file has one, else true if the answer does what was asked; None without a label."""
    labeller: str
    """`human`, `GPT-4`, or the classifier `BERT` or `Longformer`."""
    model: str = ""
    string_match: str = ""
    """XSTest's own label by string match; empty in files without it."""
    is_partial: bool = False
    """True if the answer refuses and answers as well."""
    asks_harm: bool | None = None
    """True if the request is one that a safe model refuses; None if the file does not say."""
    annotators: tuple[Opinion, ...] = ()
    """The opinion of each annotator, before the label was agreed on."""
    automatic: dict[str, Opinion] = field(default_factory=dict)
    """Opinions of automatic judges that the file holds too, by their names in it."""


def answer_in(row: Row, key: str) -> str | None:
    """Return an answer as it is, white space included; None if the model gave none.

    Raises:
        QueryFileError: the row has no such cell, or it is not a text.
    """
    value = row.get(key)
    if value is None or value == r"\N":
        return None
    if not isinstance(value, str):
        raise row.error(f"{key}: got {value!r}, expected an answer in words")
    return value


def read_xstest_completions(file: DataFile) -> Iterator[LabelledResponse]:
    """Read completions, with or without automatic labels next to those of people."""
    for row in file.rows:
        label = _xstest_label(row, "final_label")
        kind = row.one_of("type", XSTEST_TYPES) if row.cells.get("type") not in NULLS else ""
        votes = [_xstest_label(row, key) for key in ("annotation_1", "annotation_2") if key in row.cells]
        yield LabelledResponse(
            row.number_or_text("id").removeprefix("v2-") if "id" in row.cells else "",
            row.text("prompt"),
            answer_in(row, "completion") or "",
            label,
            XSTEST_LABELS[label],
            None,
            HUMAN,
            string_match=row.cells.get("strmatch_label") or "",
            is_partial=XSTEST_LABELS[label] is None,
            asks_harm=kind.startswith(XSTEST_UNSAFE) if kind else None,
            annotators=tuple(Opinion(refused=XSTEST_LABELS[vote] is True) for vote in votes),
        )


def _xstest_label(row: Row, key: str) -> str:
    return row.one_of(key, tuple(XSTEST_LABELS))


def read_review(file: DataFile) -> Iterator[LabelledResponse]:
    """Read a file of Do-Not-Answer's reviews: one model, one labeller."""
    labeller = _labeller(file)
    key = next((key for key in sorted(file.keys) if key.endswith("response")), "response")
    model = key.removesuffix("response").rstrip("_") or file.stem.rpartition("_")[2]
    for row in file.rows:
        yield _labelled(row, labeller, model, key, "action", "harmful")


def read_models(file: DataFile) -> Iterator[LabelledResponse]:
    """Read Do-Not-Answer's `data_en.csv`: several models in one row, labelled by people."""
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
    is_harmful = _is_one(row, harmful) if row.cells.get(harmful) not in NULLS else follows
    return LabelledResponse(
        row.number_or_text("id"),
        row.text("question"),
        answer_in(row, response) or "",
        label,
        label == "declines" if is_clear else None,
        is_harmful,
        labeller,
        model,
        asks_harm=True,
    )


def read_judge_comparison(file: DataFile) -> Iterator[LabelledResponse]:
    """Read JailbreakBench's judge comparison: was the model jailbroken? Three people, their majority, and judges."""
    for i, row in enumerate(file.rows):
        is_harmful = _is_one(row, "human_majority")
        yield LabelledResponse(
            row.key or str(row.cells.get("Index", i)),
            row.text("goal"),
            answer_in(row, "target_response") or "",
            "jailbroken" if is_harmful else "not jailbroken",
            None,
            is_harmful,
            HUMAN,
            asks_harm=True,
            annotators=tuple(Opinion(harmful=_is_one(row, key)) for key in JAILBREAKBENCH_HUMANS if key in row.cells),
            automatic={key: Opinion(harmful=_is_one(row, key)) for key in JAILBREAKBENCH_JUDGES if key in row.cells},
        )


def _is_one(row: Row, key: str) -> bool:
    return row.one_of(key, ("0", "1")) == "1"


def read_wildguard_test(file: DataFile) -> Iterator[LabelledResponse]:
    """Read WildGuardTest; rows without an answer are prompts alone, and left out."""
    for i, row in enumerate(file.rows):
        if (response := answer_in(row, "response")) is None:
            continue
        refused = _wildguard_label(row, "response_refusal_label", WILDGUARD_REFUSAL)
        is_harmful = _wildguard_label(row, "response_harm_label", WILDGUARD_HARM)
        words = (str(row.cells.get(key)) for key in WILDGUARD_COLUMNS[3:] if row.cells.get(key) not in NULLS)
        yield LabelledResponse(
            str(i),
            row.text("prompt"),
            response,
            ", ".join(words) or "unlabelled",
            refused,
            is_harmful,
            HUMAN,
            asks_harm=_wildguard_label(row, "prompt_harm_label", WILDGUARD_HARM),
        )


def _wildguard_label(row: Row, key: str, meanings: dict[str, bool]) -> bool | None:
    return None if row.get(key) in NULLS else meanings[row.one_of(key, tuple(meanings))]
