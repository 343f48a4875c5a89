"""The judges study: how far judges of the same answers agree, with each other and with people.

A reply that could not be read, or never came, is a class of its own, and agrees with nothing: two judges that are
both silent about a case have not said the same of it.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations, compress
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int

from probes import cohen_kappa
from studies.bookkeeping.estimates import rate
from studies.bookkeeping.tables import tidy
from studies.judges import FAILED, JUDGED, UNPARSED, Case, Judge, Verdict, is_late_refusal, is_looping

HUMAN = "human"
FULL, COMPLIANCE, PARTIAL = "2_full_refusal", "1_full_compliance", "3_partial_refusal"
"""XSTest's classes. A refusal is a full one; a partial one answers as well, and counts as an answer."""
LABELS = (COMPLIANCE, FULL, PARTIAL)
COLUMNS = ("prompt", "completion", "annotation_1", "annotation_2", "final_label")
UNSAFE = "contrast_"
"""How XSTest's types of unsafe prompts begin: to comply with the others does no harm."""
QUESTIONS = {"refusal": ("refused", "answered"), "harm": ("harmful", "harmless")}
"""What can be agreed on -> what is said for yes and no."""
KAPPA_INTERVAL = "95 %, agreement by chance taken as known"


class CompletionsError(ValueError):
    """The file holds no labelled completions; the message says which line and column."""


@dataclass(frozen=True)
class Completions:
    """Answers to XSTest's prompts that people have labelled, one entry a row in each field."""

    name: str
    cases: tuple[Case, ...]
    human: tuple[str, ...]
    """The final label, one of `LABELS`."""
    annotators: tuple[tuple[str, str], ...]
    """What the two annotators said before they settled on it."""
    types: tuple[str, ...]
    strmatch: tuple[str, ...]
    """Label of the official string match; empty where the file has none."""


def read_completions(path: str | Path) -> Completions:
    """Reads `xstest_v2_completions_*.csv` of XSTest (arXiv:2308.01263), with or without automatic labels.

    Line ends of either kind; cells span lines.

    Raises:
        CompletionsError: no such file, not UTF-8, a missing column, no row, one without all cells, or an unknown label.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(path, csv.DictReader(file, strict=True)))
    except OSError as error:
        raise CompletionsError(f"{path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise CompletionsError(f"{path}: byte {error.start} is not UTF-8; expected XSTest's completions") from None
    except csv.Error as error:
        raise CompletionsError(f"{path}: not a CSV file ({error})") from None
    if not rows:
        raise CompletionsError(f"{path}: no row under the header; expected labelled completions")
    return Completions(
        path.stem,
        tuple(Case(row["prompt"], row["completion"]) for row in rows),
        tuple(row["final_label"] for row in rows),
        tuple((row["annotation_1"], row["annotation_2"]) for row in rows),
        tuple(row.get("type", "") for row in rows),
        tuple(row.get("strmatch_label", "") for row in rows),
    )


def _rows(path: Path, reader: csv.DictReader) -> Iterator[dict]:
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise CompletionsError(f"{path}: no column {', '.join(missing)}; expected a header with {','.join(COLUMNS)}")
    for row in reader:
        if None in row or None in row.values():
            raise CompletionsError(f"{path}: line {reader.line_num}: another number of cells than the header has")
        for column in COLUMNS[2:]:
            if row[column] not in LABELS:
                raise CompletionsError(
                    f"{path}: line {reader.line_num}, column {column}: {row[column]!r}; expected {', '.join(LABELS)}"
                )
        yield row


def compare_judges(
    cases: Sequence[Case],
    judges: Sequence[Judge],
    human: Sequence[str] | None = None,
    harmful: Sequence[bool] | None = None,
    about: Mapping | None = None,
    advance: Callable[[int], None] = lambda n_cases: None,
) -> pd.DataFrame:
    """Every judge over the same cases, every two of them compared, and each with people where there are labels.

    Args:
        human: labels of `LABELS`, one a case.
        harmful: which requests are; harm is counted and compared among these alone. By default all of them.
        about: columns that every row shares, such as `dataset`.
        advance: called with the number of cases that a judge has done since the last call.

    Returns:
        Per judge `refusal_rate`, `harm_rate`, `unparsed_rate`, `failed_rate`; per two of them `agreement`, `kappa` and
        `confusion`, by question (`setting`: `refusal` or `harm`); `judge_2` is `human` for people. Of the answers
        themselves `late_refusal_rate` and `looping_rate`.

    Raises:
        ValueError: no cases, two judges of one name, or another number of labels than cases.
    """
    names = [judge.name for judge in judges]
    n_told = [len(told) for told in (human, harmful) if told is not None]
    if not cases or len(set(names)) < len(names) or set(n_told) - {len(cases)}:
        raise ValueError(
            f"{len(cases)} cases, judges {', '.join(names)}, labels {n_told}; expected one case or more, judges of "
            "different names, and a label for each case or none at all"
        )
    said = {judge.name: judge.verdicts(cases, advance) for judge in judges}
    rows = [*_of_answers(cases), *compared(said, harmful), *(against_people(said, human) if human is not None else ())]
    return tidy(dict(about or {}) | row for row in rows)


def agreement_rows(answers: Sequence[tuple[Case, Mapping[str, Mapping]]], judges: Sequence[str]) -> list[dict]:
    """The same rows from verdicts that are kept: of each answer its case, and by judge what a verdict says.

    The same answer to the same request is one case, however many defences have left it as it was.
    """
    by_case = dict(answers)
    said = {name: [_kept(verdicts[name]) for verdicts in by_case.values()] for name in judges}
    return [*_of_answers(list(by_case)), *compared(said)]


def _kept(verdict: Mapping) -> Verdict:
    """Without what is kept beside it."""
    return Verdict(**{one.name: verdict[one.name] for one in fields(Verdict) if one.name in verdict})


def compare_with_people(paths: Iterable[str | Path], judges: Sequence[Judge]) -> pd.DataFrame:
    """`run` on XSTest's completions, all files together, and how far the two annotators agreed with each other.

    Harm is compared among unsafe prompts; files that do not say which these are have none.
    """
    read = [read_completions(path) for path in paths]
    cases = [case for one in read for case in one.cases]
    human = [label for one in read for label in one.human]
    harmful = [kind.startswith(UNSAFE) for one in read for kind in one.types]
    about = {"dataset": "+".join(one.name for one in read)}
    annotators = list(zip(*(pair for one in read for pair in one.annotators), strict=True))
    verdicts = [[Verdict(refused=label == FULL) for label in labels] for labels in annotators]
    between = compared(dict(zip(("annotator_1", "annotator_2"), verdicts, strict=True)))
    between = tidy(about | row for row in between if "judge_2" in row)
    return tidy(pd.concat([compare_judges(cases, judges, human, harmful, about), between]).to_dict("records"))


def _of_answers(cases: Sequence[Case]) -> Iterator[dict]:
    yield rate("late_refusal_rate", [is_late_refusal(case.answer) for case in cases])
    yield rate("looping_rate", [is_looping(case.answer) for case in cases])


def compared(said: Mapping[str, Sequence[Verdict]], harmful: Sequence[bool] | None = None) -> Iterator[dict]:
    """Rows of each judge, and of every two that answer the same question; of harm among requests that are harmful."""
    asked = {name: {"refusal": verdicts, "harm": _chosen(verdicts, harmful)} for name, verdicts in said.items()}
    for name, verdicts in asked.items():
        yield from ({"judge": name} | row for row in _of_one(verdicts))
    for (first, its), (second, others) in combinations(asked.items(), 2):
        for question in QUESTIONS:
            pair = its[question], others[question]
            if all(_answers(verdicts, question) for verdicts in pair):
                yield from ({"judge": first, "judge_2": second} | row for row in _of_two(*pair, question))


def _chosen(verdicts: Sequence[Verdict], harmful: Sequence[bool] | None) -> Sequence[Verdict]:
    return verdicts if harmful is None else list(compress(verdicts, harmful))


def against_people(said: Mapping[str, Sequence[Verdict]], human: Sequence[str]) -> Iterator[dict]:
    """Agreement about full refusals; precision, recall and false alarms; and agreement with partial ones left out."""
    truth, is_whole = np.array([label == FULL for label in human]), np.array([label != PARTIAL for label in human])
    people = [Verdict(refused=bool(refused)) for refused in truth]
    for name, verdicts in said.items():
        if not _answers(verdicts, "refusal"):
            continue
        about = {"judge": name, "judge_2": HUMAN}
        yield from (about | row for row in _of_two(verdicts, people, "refusal"))
        refused = np.array([verdict.refused is True for verdict in verdicts])
        right = np.array([verdict.refused == person.refused for verdict, person in zip(verdicts, people, strict=True)])
        about |= {"setting": "refusal"}
        yield about | rate("precision", truth[refused])
        yield about | rate("recall", refused[truth])
        yield about | rate("false_alarm_rate", refused[~truth])
        yield about | {"setting": "refusal, partial left out"} | rate("agreement", right[is_whole])


def _of_one(verdicts: Mapping[str, Sequence[Verdict]]) -> Iterator[dict]:
    """Rates of what it says, by question, among the cases that it says it of; and of its silences, among all."""
    for question, field in (("refusal", "refused"), ("harm", "harmful")):
        told = [getattr(verdict, field) for verdict in verdicts[question] if getattr(verdict, field) is not None]
        if told:
            yield rate(f"{question}_rate", told)
    for state in (UNPARSED, FAILED):
        yield rate(f"{state}_rate", [verdict.state == state for verdict in verdicts["refusal"]])


def _of_two(first: Sequence[Verdict], second: Sequence[Verdict], question: str) -> Iterator[dict]:
    classes = [[_said(verdict, question) for verdict in verdicts] for verdicts in (first, second)]
    codes = [_codes(said, question, own) for said, own in zip(classes, (2, 3), strict=True)]
    about, n = {"setting": question}, len(first)
    yield about | rate("agreement", codes[0] == codes[1])
    value, low, high = cohen_kappa(*codes)
    kappa = {"metric": "kappa", "value": value, "ci_low": low, "ci_high": high, "interval": KAPPA_INTERVAL, "n": n}
    yield about | kappa
    for (one, other), count in sorted(Counter(zip(*classes, strict=True)).items()):
        cell = {"verdict": one, "verdict_2": other, "metric": "confusion", "value": float(count), "n": n}
        yield about | cell


def _answers(verdicts: Sequence[Verdict], question: str) -> bool:
    """Whether the judge is one that tells; a judge that was never understood is asked nothing either."""
    return any(_said(verdict, question) in QUESTIONS[question] for verdict in verdicts)


def _said(verdict: Verdict, question: str) -> str:
    """`refused`, `answered`, `harmful`, `harmless`; or why not: `unparsed`, `failed`, `not told`."""
    value = verdict.refused if question == "refusal" else verdict.harmful
    if value is None:
        return "not told" if verdict.state == JUDGED else verdict.state
    return QUESTIONS[question][0 if value else 1]


def _codes(said: Sequence[str], question: str, own: int) -> Int[np.ndarray, " case"]:
    """Classes as numbers; no verdict is a number of this judge's own, which no other judge can agree with."""
    yes, no = QUESTIONS[question]
    return np.array([{yes: 1, no: 0}.get(word, own) for word in said])


def summary_lines(table: pd.DataFrame) -> list[str]:
    """A line for each two that were compared, and one for each judge that left cases without a verdict."""
    pairs = table[table.metric == "agreement"]
    told = [_pair_in_words(table, row) for row in pairs.itertuples()]
    silent = table[table.metric.isin([f"{UNPARSED}_rate", f"{FAILED}_rate"]) & (table.value > 0)]
    return told + [
        f"{row.judge}: {round(row.value * row.n)} of {row.n} replies {row.metric.removesuffix('_rate')}"
        for row in silent.itertuples()
    ]


def _pair_in_words(table: pd.DataFrame, row) -> str:
    same = table[(table.judge == row.judge) & (table.judge_2 == row.judge_2) & (table.setting == row.setting)]
    line = (
        f"{row.judge} and {row.judge_2}, {row.setting}: {row.value:.3f} the same [{row.ci_low:.3f}, {row.ci_high:.3f}]"
    )
    kappa = same[same.metric == "kappa"]
    if len(kappa):
        (one,) = kappa.itertuples()
        line += f", kappa {one.value:.2f} [{one.ci_low:.2f}, {one.ci_high:.2f}]"
    return f"{line}, n = {row.n}"
