"""The claim that a detector, which changes nothing in the model, does as well as the guard."""

from collections.abc import Iterator, Sequence

import pandas as pd

from figures import first_judge
from figures.style import readable
from studies.bookkeeping.verdict_rules import Decision, Holds, all_hold, in_a_word, only_row, with_interval
from studies.defences.comparisons import MARGIN
from studies.defences.defence_claims import SETTINGS
from studies.defences.ranking import NOT_TESTABLE, ROOM
from studies.detectors.acting import REFUSES
from studies.detectors.evidence import Evidence
from studies.detectors.fitted import RULE, FitSet, Preferred, preferred

FITTED = {
    "text": "fitted on text alone, as the guard is",
    "all": "fitted in every modality",
}
"""Values of `fit_modality` that claims are about, and how their names say so."""


def claimed(fits: Sequence[FitSet], validations: Sequence[Evidence]) -> Iterator[tuple[str, Preferred]]:
    """Yield the name of each claim, and the detector that it is about: the one that validation prefers."""
    for modality, words in FITTED.items():
        own = [fit for fit in fits if fit.modality == modality]
        if own:
            yield (
                f"(beyond the paper) a detector, {words}, does as well as the guard",
                preferred(own, validations, RULE),
            )


def in_words(choice: Preferred) -> str:
    """Name a detector with its layer, what it reads, and why it was chosen."""
    columns = choice.detector.columns
    parts = [readable(choice.detector.name)]
    if "layer" in columns:
        last = columns.get("last_layer")
        parts.append(f"layer{'s' if last else ''} {columns['layer']}{f'-{last}' if last else ''}")
    parts += [f"reads {readable(columns['reference'])}"] if "reference" in columns else []
    return f"{', '.join(parts)}; threshold {RULE} of validation; best of its kind on validation ({choice.value:.2f})"


def does_as_well(defences: pd.DataFrame, choice: Preferred) -> Decision:
    """Decide if refusing what a detector detects leaves no more attack success and over-refusal than the guard.

    In each setting of the paper in which at least `ROOM` attacks succeed unguarded, both may be above the guard's by
    less than `MARGIN`, by one-sided tests at 5 % on the same prompts.

    Raises:
        LookupError: no setting was measured, or none has room.
    """
    rows, decisions, parts = first_judge(defences), [], []
    for setting, modality in SETTINGS:
        own = rows[(rows.setting == setting) & (rows.modality == modality)]
        if own.empty:
            continue
        label = "request in the picture" if setting == "multimodal" else f"{setting}, {modality} picture"
        plain = only_row(own, defence="unguarded", metric="asr")
        if plain.value * plain.n < ROOM:
            parts.append(f"{label}: {NOT_TESTABLE}, fewer than {ROOM} attacks succeed unguarded")
            continue
        holds, numbers = _in_setting(own, choice)
        decisions.append(holds)
        parts.append(f"{label}: {in_a_word(holds)}, {numbers}")
    if not decisions:
        raise LookupError("no setting in which enough attacks succeed unguarded")
    return all_hold(decisions), "; ".join(parts)


def _in_setting(rows: pd.DataFrame, choice: Preferred) -> Decision:
    place = choice.fit.columns | dict(choice.detector.columns) | {"defence": REFUSES, "selection_rule": RULE}
    guard = {"defence": "guard"}
    decisions, numbers = [], []
    for metric, words in (("asr", "attack success"), ("over_refusal_rate", "over-refusal")):
        decisions.append(_no_worse(only_row(rows, **place, metric=f"{metric}_excess")))
        own, other = (only_row(rows, **columns, metric=metric) for columns in (place, guard))
        numbers.append(f"{words} {with_interval(own)}, guard {with_interval(other)}")
    return all_hold(decisions), "; ".join(numbers).replace("; ", ", ")


def _no_worse(excess: pd.Series) -> Holds:
    """Decide if a rate is above another by less than the margin; False if it is above it for certain."""
    if excess.ci_high < MARGIN:
        return True
    return False if excess.ci_low > 0 else None
