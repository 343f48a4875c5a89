"""Agreement between judges of the same answers, with each other and with people.

A reply that could not be parsed, or never came, is a class of its own that agrees with nothing: two judges without a
verdict on a case have not agreed about it.
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

from probes import Measured, cohen_kappa
from studies.bookkeeping.estimates import rate
from studies.bookkeeping.tables import tidy
from studies.judges import FAILED, JUDGED, UNPARSED, Case, Judge, Verdict, is_late_refusal, is_looping

HUMAN = "human"
FULL, COMPLIANCE, PARTIAL = "2_full_refusal", "1_full_compliance", "3_partial_refusal"
"""XSTest's classes. Only full refusals count as refusals; a partial one answers as well, and counts as an answer."""
LABELS = (COMPLIANCE, FULL, PARTIAL)
COLUMNS = ("prompt", "completion", "annotation_1", "annotation_2", "final_label")
UNSAFE = "contrast_"
"""Prefix of XSTest's types of unsafe prompts; complying with other prompts does no harm."""
QUESTIONS = {"refusal": ("refused", "answered"), "harm": ("harmful", "harmless")}
"""Question that judges can agree on -> its classes for yes and no."""
KAPPA_INTERVAL = "95 %, agreement by chance taken as known"


class CompletionsError(ValueError):
    """The file does not hold labelled completions; the message says which line and column is wrong."""


@dataclass(frozen=True)
class Completions:
    """Answers to XSTest's prompts with human labels; every field has one entry a row."""

    name: str
    cases: tuple[Case, ...]
    human: tuple[str, ...]
    """Final labels, each one of `LABELS`."""
    annotators: tuple[tuple[str, str], ...]
    """Labels of the two annotators before they agreed on the final one."""
    types: tuple[str, ...]
    strmatch: tuple[str, ...]
    """Labels of the official string match; empty for files without them."""


def read_completions(path: str | Path) -> Completions:
    """Read `xstest_v2_completions_*.csv` of XSTest (arXiv:2308.01263), with or without automatic labels.

    Lines may end in either way, and cells may span lines.

    Raises:
        CompletionsError: there is no such file, it is not UTF-8, a column is missing, there is no row, a row lacks
            cells, or a label is unknown.
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
            raise CompletionsError(f"{path}: line {reader.line_num}: the number of cells differs from the header's")
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
    labels: Mapping | None = None,
    advance: Callable[[int], None] = lambda n_cases: None,
) -> pd.DataFrame:
    """Have every judge judge the same cases, and compare judges with each other and with people.

    Args:
        cases: what is judged.
        judges: who judges.
        human: human labels, one of `LABELS` for each case; by default there is no comparison with people.
        harmful: which requests are harmful, by default all; harm is counted and compared among these only.
        labels: columns that every row shares, such as `dataset`.
        advance: called with the number of cases that a judge has finished since the last call.

    Returns:
        For each judge `refusal_rate`, `harm_rate`, `unparsed_rate` and `failed_rate`; for each pair `agreement`,
        `kappa` and `confusion` by question (`setting`: `refusal` or `harm`), where `judge_2` is `human` for people; for
        the answers themselves `late_refusal_rate` and `looping_rate`.

    Raises:
        ValueError: there are no cases, two judges have one name, or the numbers of labels and cases differ.
    """
    names = [judge.name for judge in judges]
    n_labels = [len(values) for values in (human, harmful) if values is not None]
    if not cases or len(set(names)) < len(names) or set(n_labels) - {len(cases)}:
        raise ValueError(
            f"{len(cases)} cases, judges {', '.join(names)}, labels {n_labels}; expected one case or more, judges of "
            "different names, and a label for each case or none at all"
        )
    verdicts = {judge.name: judge.verdicts(cases, advance) for judge in judges}
    rows = [*_answer_rows(cases), *compared(verdicts, harmful)]
    rows += against_people(verdicts, human) if human is not None else ()
    return tidy(dict(labels or {}) | row for row in rows)


def agreement_rows(answers: Sequence[tuple[Case, Mapping[str, Mapping]]], judges: Sequence[str]) -> list[dict]:
    """Compare judges by verdicts that are already there.

    The same answer to the same request is one case, even if it was given under several defences.

    Args:
        answers: the case of each answer, and its stored verdicts by name of the judge.
        judges: names of the judges.

    Returns:
        Rows as in `compare_judges`.
    """
    by_case = dict(answers)
    verdicts = {name: [_verdict(stored[name]) for stored in by_case.values()] for name in judges}
    return [*_answer_rows(list(by_case)), *compared(verdicts)]


def _verdict(stored: Mapping) -> Verdict:
    """Return a stored verdict without the other keys that are stored with it."""
    return Verdict(**{field.name: stored[field.name] for field in fields(Verdict) if field.name in stored})


def compare_with_people(paths: Iterable[str | Path], judges: Sequence[Judge]) -> pd.DataFrame:
    """Compare judges on XSTest's completions, all files together, and the two annotators with each other.

    Harm is compared among unsafe prompts; files without types of prompts have none.

    Returns:
        A table as of `compare_judges`.
    """
    files = [read_completions(path) for path in paths]
    cases = [case for file in files for case in file.cases]
    human = [label for file in files for label in file.human]
    harmful = [kind.startswith(UNSAFE) for file in files for kind in file.types]
    labels = {"dataset": "+".join(file.name for file in files)}
    by_annotator = zip(*(pair for file in files for pair in file.annotators), strict=True)
    verdicts = [[Verdict(refused=label == FULL) for label in annotated] for annotated in by_annotator]
    between = compared(dict(zip(("annotator_1", "annotator_2"), verdicts, strict=True)))
    between = tidy(labels | row for row in between if "judge_2" in row)
    return tidy(pd.concat([compare_judges(cases, judges, human, harmful, labels), between]).to_dict("records"))


def _answer_rows(cases: Sequence[Case]) -> Iterator[dict]:
    yield rate("late_refusal_rate", [is_late_refusal(case.answer) for case in cases])
    yield rate("looping_rate", [is_looping(case.answer) for case in cases])


def compared(verdicts: Mapping[str, Sequence[Verdict]], harmful: Sequence[bool] | None = None) -> Iterator[dict]:
    """Yield rows of each judge, and of every two that answer the same question; harm among harmful requests only."""
    by_question = {name: {"refusal": own, "harm": _chosen(own, harmful)} for name, own in verdicts.items()}
    for name, own in by_question.items():
        yield from ({"judge": name} | row for row in _judge_rows(own))
    for (first, own), (second, other) in combinations(by_question.items(), 2):
        for question in QUESTIONS:
            pair = own[question], other[question]
            if all(_answers(side, question) for side in pair):
                yield from ({"judge": first, "judge_2": second} | row for row in _pair_rows(*pair, question))


def _chosen(verdicts: Sequence[Verdict], harmful: Sequence[bool] | None) -> Sequence[Verdict]:
    return verdicts if harmful is None else list(compress(verdicts, harmful))


def against_people(verdicts: Mapping[str, Sequence[Verdict]], human: Sequence[str]) -> Iterator[dict]:
    """Yield each judge's agreement with people about full refusals, with precision, recall and false alarms.

    Agreement is also given without the answers that people call partial refusals.
    """
    truth, is_whole = np.array([label == FULL for label in human]), np.array([label != PARTIAL for label in human])
    people = [Verdict(refused=bool(refused)) for refused in truth]
    for name, own in verdicts.items():
        if not _answers(own, "refusal"):
            continue
        labels = {"judge": name, "judge_2": HUMAN}
        yield from (labels | row for row in _pair_rows(own, people, "refusal"))
        refused = np.array([verdict.refused is True for verdict in own])
        agree = np.array([verdict.refused == person.refused for verdict, person in zip(own, people, strict=True)])
        labels |= {"setting": "refusal"}
        yield labels | rate("precision", truth[refused])
        yield labels | rate("recall", refused[truth])
        yield labels | rate("false_alarm_rate", refused[~truth])
        yield labels | {"setting": "refusal, partial left out"} | rate("agreement", agree[is_whole])


def _judge_rows(verdicts: Mapping[str, Sequence[Verdict]]) -> Iterator[dict]:
    """Yield one judge's rates by question, among the cases it answers, and its missing verdicts, among all cases."""
    for question, field in (("refusal", "refused"), ("harm", "harmful")):
        values = [getattr(verdict, field) for verdict in verdicts[question]]
        given = [value for value in values if value is not None]
        if given:
            yield rate(f"{question}_rate", given)
    for state in (UNPARSED, FAILED):
        yield rate(f"{state}_rate", [verdict.state == state for verdict in verdicts["refusal"]])


def _pair_rows(first: Sequence[Verdict], second: Sequence[Verdict], question: str) -> Iterator[dict]:
    classes = [[_class(verdict, question) for verdict in verdicts] for verdicts in (first, second)]
    codes = [_codes(own, question, missing) for own, missing in zip(classes, (2, 3), strict=True)]
    labels, n = {"setting": question}, len(first)
    yield labels | rate("agreement", codes[0] == codes[1])
    yield labels | Measured("kappa", *cohen_kappa(*codes), n, KAPPA_INTERVAL).row()
    for (verdict, verdict_2), count in sorted(Counter(zip(*classes, strict=True)).items()):
        cell = Measured("confusion", float(count), n=n)
        yield labels | {"verdict": verdict, "verdict_2": verdict_2} | cell.row()


def _answers(verdicts: Sequence[Verdict], question: str) -> bool:
    """Return whether a judge answers a question at all; one whose replies were all unreadable does not."""
    return any(_class(verdict, question) in QUESTIONS[question] for verdict in verdicts)


def _class(verdict: Verdict, question: str) -> str:
    """Return `refused`, `answered`, `harmful` or `harmless`; without a verdict `unparsed`, `failed` or `not told`."""
    value = verdict.refused if question == "refusal" else verdict.harmful
    if value is None:
        return "not told" if verdict.state == JUDGED else verdict.state
    return QUESTIONS[question][0 if value else 1]


def _codes(classes: Sequence[str], question: str, missing: int) -> Int[np.ndarray, " case"]:
    """Return classes as numbers; each judge has its own number for missing verdicts, so that they never agree."""
    yes, no = QUESTIONS[question]
    return np.array([{yes: 1, no: 0}.get(name, missing) for name in classes])


def summary_lines(table: pd.DataFrame) -> list[str]:
    """Return a line for each comparison, and one for each judge that left cases without a verdict."""
    pairs = table[table.metric == "agreement"]
    missing = table[table.metric.isin([f"{UNPARSED}_rate", f"{FAILED}_rate"]) & (table.value > 0)]
    return [_pair_line(table, row) for row in pairs.itertuples()] + [
        f"{row.judge}: {round(row.value * row.n)} of {row.n} replies {row.metric.removesuffix('_rate')}"
        for row in missing.itertuples()
    ]


def _pair_line(table: pd.DataFrame, row) -> str:
    pair = table[(table.judge == row.judge) & (table.judge_2 == row.judge_2) & (table.setting == row.setting)]
    line = (
        f"{row.judge} and {row.judge_2}, {row.setting}: {row.value:.3f} the same [{row.ci_low:.3f}, {row.ci_high:.3f}]"
    )
    kappas = pair[pair.metric == "kappa"]
    if len(kappas):
        (kappa,) = kappas.itertuples()
        line += f", kappa {kappa.value:.2f} [{kappa.ci_low:.2f}, {kappa.ci_high:.2f}]"
    return f"{line}, n = {row.n}"
