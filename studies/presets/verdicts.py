"""A published number against ours: reproduced, differs, or not the same measurement."""

from dataclasses import dataclass
from math import nan
from pathlib import Path

from probes import newcombe_interval
from studies.presets.preset import PublishedTarget

REPRODUCED = "reproduced"
DIFFERS = "differs"
JUDGE_DIFFERS = "judge differs"
NOT_MEASURED = "not measured"
QUICK = "quick run"
"""Few requests and short answers are not comparable."""
OTHER_MODEL = "another model"
OTHER_DATA = "other data"
OTHER_SETTINGS = "other settings"
MOST_UNJUDGED = 0.02
"""Share of answers without a verdict above which a rate is not compared."""
SAME_DIRECTION = 0.02
"""How far a published cosine may be outside of our interval: it was measured on other requests, without one."""


@dataclass(frozen=True)
class OurResult:
    """Our counterpart of a published number, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    judge: str = ""
    """Full name of the judge, for a rate."""
    unjudged: float = 0.0
    """Share of the answers without a verdict, for a rate."""


@dataclass(frozen=True)
class TargetVerdict:
    """A row of `targets.csv`. What was not measured is NaN."""

    target: str
    measure: str
    theirs: float
    their_n: int
    their_judge: str
    source: str
    verdict: str
    reason: str = ""
    ours: float = nan
    low: float = nan
    high: float = nan
    n: int = 0
    judge: str = ""
    difference_low: float = nan
    """Newcombe's interval of ours minus theirs, for a rate."""
    difference_high: float = nan

    def in_words(self) -> tuple[str, str, str]:
        """Return theirs, ours and the difference in words."""
        theirs = f"{self.theirs:g}" + (f", n = {self.their_n}, {self.their_judge}" if self.their_n else "")
        if self.ours != self.ours:
            return theirs, "", ""
        ours = f"{self.ours:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}" + (
            f", {self.judge}" if self.judge else ""
        )
        difference = f"{self.ours - self.theirs:+.3f}"
        if self.difference_low == self.difference_low:
            difference += f" [{self.difference_low:+.3f}, {self.difference_high:+.3f}]"
        return theirs, ours, difference


def verdict_on(
    target: PublishedTarget, result: OurResult | None, incomparable: tuple[str, str] | None = None
) -> TargetVerdict:
    """Compare a published number with ours.

    A rate is `reproduced` where Newcombe's interval of the difference of two independent proportions holds 0, and
    `differs` otherwise; under another judge it is `judge differs`, whatever the numbers are. A cosine has to reach
    `at_least`; without that, the published value has to be in our interval, widened by `SAME_DIRECTION`.

    Args:
        target: the published number.
        result: ours; None if it could not be measured.
        incomparable: a verdict and its reason, if ours is not the same measurement, or there is none.
    """
    published = {
        "target": target.id,
        "measure": target.measure,
        "theirs": target.value,
        "their_n": target.n,
        "their_judge": f"{target.judge} {target.judge_model}".strip(),
        "source": f"{target.source} [{target.read_in}]",
    }
    if result is None or result.value != result.value or result.unjudged > MOST_UNJUDGED:
        verdict, reason = NOT_MEASURED, "not measured on this model"
        if result is not None:
            reason = f"{result.unjudged:.0%} of the answers have no verdict"
        elif incomparable and incomparable[0] == NOT_MEASURED:
            reason = incomparable[1]
        return TargetVerdict(**published, verdict=verdict, reason=reason)
    verdict, reason = incomparable or _compared(target, result)
    low, high = _difference(target, result)
    ours = {"ours": result.value, "low": result.low, "high": result.high, "n": result.n, "judge": result.judge}
    return TargetVerdict(**published, **ours, verdict=verdict, reason=reason, difference_low=low, difference_high=high)


def _difference(target: PublishedTarget, result: OurResult) -> tuple[float, float]:
    if target.measure != "rate":
        return nan, nan
    return newcombe_interval(*((round(each.value * each.n), each.n) for each in (result, target)))


def _compared(target: PublishedTarget, result: OurResult) -> tuple[str, str]:
    """Return the verdict, and what has to be known about it."""
    if target.measure == "rate":
        # As in `llama_guard@2:Llama-Guard-3-8B`.
        rubric, _, model = result.judge.partition(":")
        if (rubric.split("@")[0], model) != (target.judge, Path(target.judge_model).name):
            note = f" ({target.judge_note})" if target.judge_note else ""
            return JUDGE_DIFFERS, f"theirs is {target.judge}{note}"
        low, high = _difference(target, result)
        return (REPRODUCED if low <= 0 <= high else DIFFERS), target.caveat
    if target.at_least is not None:
        return (REPRODUCED if result.value >= target.at_least else DIFFERS), f"expected at least {target.at_least:g}"
    is_near = result.low - SAME_DIRECTION <= target.value <= result.high + SAME_DIRECTION
    return (REPRODUCED if is_near else DIFFERS), target.caveat
