"""Agreement between judges of the same answers, with each other and with people.

A reply that could not be parsed, or never came, is a class of its own that agrees with nothing: two judges without a
verdict on a case have not agreed about it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import combinations, compress

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from probes import Measured, cohen_kappa
from studies.bookkeeping.estimates import rate
from studies.bookkeeping.tables import tidy
from studies.datasets.response_sets import LabelledResponse, Opinion
from studies.datasets.responses import ResponseFiles
from studies.judges import FAILED, JUDGED, UNPARSED, Case, Judge, Verdict, is_late_refusal, is_looping

QUESTIONS = {"refusal": ("refused", "answered"), "harm": ("harmful", "harmless")}
"""Question that judges can agree on -> its classes for yes and no."""
FIELDS = {"refusal": "refused", "harm": "harmful"}
"""Question -> the field of a verdict, and of a label, that answers it."""
KAPPA_INTERVAL = "95 %, agreement by chance taken as known"


def compare_judges(
    cases: Sequence[Case],
    judges: Sequence[Judge],
    harmful: Sequence[bool] | None = None,
    labels: Mapping | None = None,
    advance: Callable[[int], None] = lambda n_cases: None,
) -> pd.DataFrame:
    """Have every judge judge the same cases, and compare the judges with each other.

    Args:
        cases: what is judged.
        judges: who judges.
        harmful: which requests are harmful, by default all; harm is counted and compared among these only.
        labels: columns that every row shares, such as `dataset`.
        advance: called with the number of cases that a judge has finished since the last call.

    Returns:
        For each judge `refusal_rate`, `harm_rate`, `unparsed_rate` and `failed_rate`; for each pair `agreement`,
        `kappa` and `confusion` by question (`setting`: `refusal` or `harm`); for the answers themselves
        `late_refusal_rate` and `looping_rate`.

    Raises:
        ValueError: there are no cases, two judges have one name, or the numbers of labels and cases differ.
    """
    verdicts = _verdicts(cases, judges, harmful, advance)
    return tidy(dict(labels or {}) | row for row in (*_answer_rows(cases), *compared(verdicts, harmful)))


def _verdicts(
    cases: Sequence[Case],
    judges: Sequence[Judge],
    harmful: Sequence[bool] | None,
    advance: Callable[[int], None] = lambda n_cases: None,
) -> dict[str, list[Verdict]]:
    """Return the verdicts of every judge, by its name; see `compare_judges`."""
    names = [judge.name for judge in judges]
    n_labels = len(cases) if harmful is None else len(harmful)
    if not cases or len(set(names)) < len(names) or n_labels != len(cases):
        raise ValueError(
            f"{len(cases)} cases, judges {', '.join(names)}, {n_labels} labels; expected one case or more, judges of "
            "different names, and a label for each case or none at all"
        )
    return {judge.name: judge.verdicts(cases, advance) for judge in judges}


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


def compare_with_people(files: ResponseFiles, judges: Sequence[Judge]) -> pd.DataFrame:
    """Compare judges with people on labelled answers, all files together, and annotators with each other.

    Automatic judges whose verdicts every file holds are compared too.

    Harm is compared among harmful requests; where a file does not say which these are, among those with a label of
    harm.

    Returns:
        A table as of `compare_judges`, in which `judge_2` may also be the name of a labeller (`human`); with it there
        are `precision`, `recall` and `false_alarm_rate` too.
    """
    by_answer: dict[tuple, dict[str, LabelledResponse]] = {}
    for row in files.rows:
        # One answer may have labels from several labellers.
        by_answer.setdefault((row.model, row.id, row.request, row.response), {})[row.labeller] = row
    labelled = list(by_answer.values())
    first = [next(iter(own.values())) for own in labelled]
    cases = [Case(row.request, row.response) for row in first]
    harmful = [any(map(_asks_harm, own.values())) for own in labelled]
    verdicts = _verdicts(cases, judges, harmful) | _published_verdicts(first)
    rows = [*_answer_rows(cases), *compared(verdicts, harmful)]
    for labeller in dict.fromkeys(row.labeller for row in files.rows):
        rows += against_people(verdicts, [own.get(labeller) for own in labelled], labeller)
    rows += _between_annotators(files.rows)
    return tidy({"dataset": "+".join(files.names)} | row for row in rows)


def _published_verdicts(rows: Sequence[LabelledResponse]) -> dict[str, list[Verdict]]:
    names = [name for name in rows[0].automatic if all(name in row.automatic for row in rows)]
    return {name: [_as_verdict(row.automatic[name]) for row in rows] for name in names}


def _as_verdict(opinion: Opinion) -> Verdict:
    return Verdict(refused=opinion.refused, harmful=opinion.harmful)


def _asks_harm(row: LabelledResponse) -> bool:
    """Return whether a request is harmful; where the file does not say, whether people were asked about harm."""
    return row.harmful is not None if row.asks_harm is None else row.asks_harm


def _between_annotators(rows: Sequence[LabelledResponse]) -> Iterator[dict]:
    """Yield the agreement of each two annotators, on the answers that all of them have seen."""
    n_annotators = max(len(row.annotators) for row in rows)
    seen = [row.annotators for row in rows if len(row.annotators) == n_annotators]
    votes = {f"annotator_{i + 1}": [_as_verdict(own[i]) for own in seen] for i in range(n_annotators)}
    yield from (row for row in compared(votes) if "judge_2" in row)


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


def against_people(
    verdicts: Mapping[str, Sequence[Verdict]], labels: Sequence[LabelledResponse | None], labeller: str
) -> Iterator[dict]:
    """Yield each judge's agreement with a labeller, with precision, recall and false alarms.

    An answer without a label is left out of the question that the label would answer. A partial refusal answers as
    well, and counts as an answer; agreement is also given without these.
    """
    for question in QUESTIONS:
        meant = [None if label is None else _label(label, question) for label in labels]
        is_labelled = [value is not None for value in meant]
        truth = np.array([value for value in meant if value is not None], dtype=bool)
        is_whole = np.array([not label.is_partial for label in compress(labels, is_labelled)], dtype=bool)
        for name, given in verdicts.items():
            own = list(compress(given, is_labelled))
            if len(truth) and _answers(own, question):
                names = {"judge": name, "judge_2": labeller}
                yield from (names | row for row in _against_rows(own, truth, is_whole, question))


def _label(label: LabelledResponse, question: str) -> bool | None:
    """Return what a label says on a question; harm is done only where it was asked for, as far as the file says."""
    if question == "refusal":
        return False if label.is_partial else label.refused
    return None if label.asks_harm is False else label.harmful


def _against_rows(
    own: Sequence[Verdict], truth: Bool[np.ndarray, " case"], is_whole: Bool[np.ndarray, " case"], question: str
) -> Iterator[dict]:
    """Yield the agreement of a judge with people, and its precision, recall and false alarms."""
    field, labels = FIELDS[question], {"setting": question}
    yield from _pair_rows(own, [Verdict(**{field: value}) for value in truth.tolist()], question)
    values = [getattr(verdict, field) for verdict in own]
    hits, agree = np.array([value is True for value in values]), np.array(values, dtype=object) == truth
    yield labels | rate("precision", truth[hits])
    yield labels | rate("recall", hits[truth])
    yield labels | rate("false_alarm_rate", hits[~truth])
    if not is_whole.all():
        yield {"setting": f"{question}, partial left out"} | rate("agreement", agree[is_whole].astype(bool))


def _judge_rows(verdicts: Mapping[str, Sequence[Verdict]]) -> Iterator[dict]:
    """Yield one judge's rates by question, among the cases it answers, and its missing verdicts, among all cases."""
    for question, field in FIELDS.items():
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
    value = getattr(verdict, FIELDS[question])
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
