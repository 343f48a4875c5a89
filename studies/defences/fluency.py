"""How well formed answers are: perplexity under a text-only model, of all answers and of those that a guard changed."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import t

from interp import LLM, VLM
from probes import Measured
from studies.bookkeeping.estimates import mean, rate
from studies.defences.answer_log import AnswerRecord
from studies.defences.arms import DefenceArm
from studies.generation.generate import perplexities

CHANGED = ("guard", "guard_always")
"""Defences whose changed answers are measured: the guard, and the same guard with its gate always open."""
CLASSES = {"harmful": True, "harmless": False}
Fluency = Mapping[tuple[str, str], float]
"""Perplexity by request and answer."""


def measure_fluency(arms: Sequence[DefenceArm], scorer: VLM | LLM) -> Fluency:
    """Measure each answer once: many defences give the same answer to a request. Empty answers have no perplexity."""
    answers = [record for arm in arms if not arm.first.right for record in arm.answers if record.answer]
    pairs = list(dict.fromkeys((record.request, record.answer) for record in answers))
    if not pairs:
        return {}
    requests, texts = zip(*pairs, strict=True)
    return dict(zip(pairs, perplexities(scorer, requests, texts).tolist(), strict=True))


def perplexity_rows(arm: DefenceArm, fluency: Fluency) -> Iterator[dict]:
    """Yield the mean perplexity of all answers by class, refusals included."""
    for category, label in CLASSES.items():
        chosen = [answer for answer in arm.answers if answer.harmful == label]
        if chosen:
            yield mean("perplexity", [_perplexity(answer, fluency) for answer in chosen]) | {"category": category}


def changed_rows(arm: DefenceArm, plain: DefenceArm, fluency: Fluency | None, judge: str) -> Iterator[dict]:
    """Yield how fluent a guard's answers are where it changed them, by class.

    Only requests count that are answered both unguarded and guarded, because a refusal is measured as one elsewhere.
    `changed_share` is the share of these whose text differs; of those that differ, `changed_perplexity_ratio` is the
    geometric mean of guarded over unguarded, and `changed_coherence` the share that the judge finds coherent.

    Args:
        arm: answers under the guard.
        plain: answers of the unguarded model.
        fluency: perplexities; None leaves the ratio out.
        judge: decides what is a refusal.
    """
    by_row = {record.row: record for record in plain.answers}
    for category, label in CLASSES.items():
        chosen = [record for record in arm.answers if record.harmful == label and record.row in by_row]
        own = [(record, by_row[record.row]) for record in chosen]
        answered = [pair for pair in own if all(record.verdicts[judge]["refused"] is False for record in pair)]
        changed = [(after, before) for after, before in answered if after.answer != before.answer]
        labels = {"category": category}
        if own:
            yield rate("changed_share", [after.answer != before.answer for after, before in answered]) | labels
            coherent = [after.verdicts[judge].get("coherent") for after, _ in changed]
            coherent = [verdict for verdict in coherent if verdict is not None]
            yield rate("changed_coherence", coherent) | labels | {"judge": judge}
        if own and fluency is not None:
            ratios = [_perplexity(after, fluency) / _perplexity(before, fluency) for after, before in changed]
            yield geometric_mean("changed_perplexity_ratio", ratios) | labels


def _perplexity(record: AnswerRecord, fluency: Fluency) -> float:
    return fluency.get((record.request, record.answer), np.nan)


def geometric_mean(metric: str, ratios: Sequence[float]) -> dict:
    """Return the geometric mean of paired ratios, with the t interval of the mean of their logarithms.

    Returns:
        The columns `metric`, `value`, `ci_low`, `ci_high` and `n` of a row; values that are not finite are left out.
    """
    logs = np.log(np.asarray(ratios, dtype=float))
    logs = logs[np.isfinite(logs)]
    n = len(logs)
    if n < 2:
        value = float(np.exp(logs[0])) if n else np.nan
        return Measured(metric, value, n=n).row()
    half = t.ppf(0.975, n - 1) * logs.std(ddof=1) / np.sqrt(n)
    low, value, high = np.exp(logs.mean() + half * np.array([-1, 0, 1])).tolist()
    return Measured(metric, value, low, high, n).row()
