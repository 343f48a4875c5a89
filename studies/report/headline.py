"""The first screen of the page: attack success and over-refusal with and without the guard."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from figures import first_judge
from studies.defences.defence_claims import SETTINGS
from studies.report.glossary import NAMES, way_in_words
from studies.report.results import Results

PLACES = (("plain", "text"), *SETTINGS)
"""Settings and modalities that are shown, in this order; results without any of them show their first ones."""
MOST_PLACES = 4
ARMS = ("unguarded", "text_verdict", "gate_refuser", "guard")
"""Defences that are shown: none, the two that change no state, and the guard."""
SIMPLER = ("gate_refuser", "text_verdict")
"""Defences that refuse and change nothing inside the model."""
READS = {"prompt_text": "reads the prompt", "transcription": "reads the picture"}
"""Words for what a guard with several references reads."""
OWN_REFERENCE, WRITTEN = "prompt_text", "transcription"


@dataclass(frozen=True)
class HeadlineRate:
    """A rate with its 95 % interval and number of requests."""

    value: float
    low: float
    high: float
    n: int

    @property
    def percent(self) -> str:
        return f"{100 * self.value:.0f}\N{NO-BREAK SPACE}%"

    @property
    def interval(self) -> str:
        return f"[{100 * self.low:.0f},\N{NO-BREAK SPACE}{100 * self.high:.0f}]"

    def __str__(self) -> str:
        return f"{self.percent}\N{NO-BREAK SPACE}{self.interval}"


@dataclass(frozen=True)
class HeadlineArm:
    """Both rates of one defence in one place."""

    name: str
    """Name in the table of defences."""
    label: str
    attacks: HeadlineRate
    refusals: HeadlineRate | None

    @property
    def reads(self) -> str:
        """Reads the prompt, or the picture, if its label says so."""
        return self.label.partition(", ")[2]


@dataclass(frozen=True)
class HeadlinePlace:
    """All defences that are shown for one way in which requests reach the model."""

    words: str
    arms: tuple[HeadlineArm, ...]

    def arm(self, name: str) -> HeadlineArm | None:
        """Return a defence; the guard with the reference that leaves fewer attacks, if it has several."""
        arms = [arm for arm in self.arms if arm.name == name]
        return min(arms, key=lambda arm: arm.attacks.value, default=None)


@dataclass(frozen=True)
class Headline:
    """The first screen of the page."""

    places: tuple[HeadlinePlace, ...]

    @classmethod
    def of(cls, results: Results) -> "Headline | None":
        """Read the rates from the table of defences; None if it has no attack success without a defence."""
        if "defence" not in results:
            return None
        columns = ["dataset", "setting", "modality", "defence", "reference", "category", "versus", "judge", "metric"]
        table = results["defence"]
        table = first_judge(table.reindex(columns=list(dict.fromkeys([*table.columns, *columns]))))
        rows = table[table.category.isna() & table.versus.isna() & table.metric.isin(["asr", "over_refusal_rate"])]
        rows = rows[rows.dataset.isna() | (rows.dataset == rows.dataset.dropna().iloc[:1].squeeze())]
        found = [place for place in map(lambda key: _place(rows, *key), _keys(rows)) if place.arm("unguarded")]
        return cls(tuple(found[:MOST_PLACES])) if found else None

    @property
    def lead(self) -> HeadlinePlace:
        """The place of the headline: with a blank picture, if that was measured."""
        blank = way_in_words("plain", "blank")
        return next((place for place in self.places if place.words == blank), self.places[0])

    @property
    def sentence(self) -> str:
        """The headline."""
        unguarded, guard = self.lead.arm("unguarded"), self.lead.arm("guard")
        without = f"{_upper(self.lead.words)}, {unguarded.attacks.percent} of attacks succeed"
        return f"{without}; with the guard, {guard.attacks}." if guard else f"{without}."

    @property
    def notes(self) -> list[str]:
        """The sentences that follow: the cost, what does as well without the guard, and where it helps least."""
        return list(self._notes())

    def _notes(self) -> Iterator[str]:
        lead, unguarded, guard = self.lead, self.lead.arm("unguarded"), self.lead.arm("guard")
        if not guard:
            return
        if guard.refusals and unguarded.refusals:
            yield f"Cost: {self._cost(guard, unguarded)}."
        yield from self._simpler()
        place, weakest = max(self._guards(), key=lambda pair: pair[1].attacks.value)
        if (place, weakest) != (lead, guard):
            own = f"{weakest.attacks} with the guard" + (f", if it {weakest.reads}" if weakest.reads else "")
            words = f"Weakest: {place.words}, {place.arm('unguarded').attacks.percent} succeed without a defence, {own}"
            best = place.arm("guard")
            yield f"{words}; {best.attacks} if it {best.reads}." if best != weakest and best.reads else f"{words}."

    def _cost(self, guard: HeadlineArm, unguarded: HeadlineArm) -> str:
        """Say what is refused in the leading place, and where the guard adds most to that."""
        words = f"{guard.refusals} of the harmless requests are refused with the guard, "
        words += f"{unguarded.refusals.percent} without"
        added = {}
        for place, arm in self._guards():
            before = place.arm("unguarded").refusals
            if arm.refusals and before:
                added[arm.refusals.value - before.value] = (place, arm, before)
        place, arm, before = added[max(added)]
        if max(added) <= guard.refusals.value - unguarded.refusals.value:
            return words
        reads = f", if the guard {arm.reads}" if arm.reads else ""
        return f"{words}; {place.words}, {arm.refusals}{reads}, and {before.percent} without"

    def _simpler(self) -> Iterator[str]:
        """Yield what the defences leave that change no state, in every place where attacks succeed without one."""
        parts = []
        for place in self.places:
            arms = [arm for name in (*SIMPLER, "guard") if (arm := place.arm(name))]
            if len(arms) > 1 and place.arm("unguarded").attacks.value > 0:
                left = ", ".join(f"{NAMES[arm.name]} {arm.attacks.percent}" for arm in arms)
                parts.append(f"{place.words}: {left}")
        if parts:
            yield f"Simpler: refuse, and change nothing inside the model. What still succeeds {'; '.join(parts)}."

    def _guards(self) -> Iterator[tuple[HeadlinePlace, HeadlineArm]]:
        yield from ((place, arm) for place in self.places for arm in place.arms if arm.name == "guard")

    @property
    def n(self) -> str:
        """Number of requests behind a rate of the headline."""
        arm = self.lead.arm("unguarded")
        return f"{arm.attacks.n} harmful" + (f", {arm.refusals.n} harmless" if arm.refusals else "")


def _keys(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the settings and modalities to show."""
    measured = list(rows[rows.metric == "asr"][["setting", "modality"]].drop_duplicates().itertuples(index=False))
    measured = [tuple(key) for key in measured]
    return [key for key in PLACES if key in measured] or measured


def _place(rows: pd.DataFrame, setting: str, modality: str) -> HeadlinePlace:
    own = rows[(rows.setting == setting) & (rows.modality == modality)]
    return HeadlinePlace(way_in_words(setting, modality), tuple(arm for name in ARMS for arm in _arms(own, name)))


def _arms(rows: pd.DataFrame, name: str) -> Iterator[HeadlineArm]:
    """Yield a defence once for each reference that it may read; what changes no state only with the last of them."""
    rows = rows[(rows.defence == name) & (rows.reference != "oracle")]
    references = [key for key in (OWN_REFERENCE, WRITTEN) if (rows.reference == key).any()]
    if not references:
        yield from _arm(rows, name, NAMES[name])
    for reference in references if name == "guard" else references[-1:]:
        label = f"{NAMES[name]}, {READS[reference]}" if len(references) > 1 else NAMES[name]
        yield from _arm(rows[rows.reference == reference], name, label)


def _arm(rows: pd.DataFrame, name: str, label: str) -> Iterator[HeadlineArm]:
    attacks, refusals = (_rate(rows[rows.metric == metric]) for metric in ("asr", "over_refusal_rate"))
    if attacks:
        yield HeadlineArm(name, label, attacks, refusals)


def _rate(rows: pd.DataFrame) -> HeadlineRate | None:
    if rows.empty or pd.isna(rows.value.iloc[0]):
        return None
    row = rows.iloc[0]
    return HeadlineRate(float(row.value), float(row.ci_low), float(row.ci_high), int(row.n))


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
