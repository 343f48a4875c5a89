"""Texts of the page: headings, questions, claims and the summary of verdicts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from studies.bookkeeping.verdict_words import (
    CEILING,
    NOT_SHOWN,
    NOT_TESTABLE,
    REPRODUCED,
    SHOWN,
    SHOWN_ALIGNED,
    UNDECIDED,
)
from studies.report.glossary import DEFENCES

HEADINGS = {
    "claims": ("Claims", "The paper's claims, what was measured here, and the verdict that follows from fixed rules."),
    "points": (
        "Hidden states",
        "The state of every prompt at its last token, layer by layer, on the first two principal components of the "
        "text-only states. Each panel shows the same requests in another modality.",
    ),
    "separability": (
        "Separability",
        "Can a probe tell harmful from harmless requests? What does a picture take away: their order, their distance, "
        "the border between them?",
    ),
    "layer_sweep": (
        "Layer sweep",
        "The effect of the guard at every layer: refusals, over-refusals, and the shift of the first answer token.",
    ),
    "layer_selection": (
        "Choosing the layer",
        "Which layer does each rule pick, and how well does the guard work there?",
    ),
    "readings": (
        "Readings of the method",
        "The method is described in ways that disagree, so every reading was run, with controls and bounds.",
    ),
    "random_directions": (
        "Random directions",
        "Does the guard do more than changes of the same size along any other direction?",
    ),
    "signal_path": (
        "Path of the signal",
        "At which layer does refusal appear, what writes it, and which tokens carry it?",
    ),
    "defence": (
        "Defences",
        "Attack success and over-refusal under the guard, its controls and other defences, in each setting.",
    ),
    "adaptive": (
        "Under attack",
        "Does the guard hold against an attacker who knows it? Attack success against queries spent.",
    ),
    "stress": (
        "Other ways of answering",
        "Does the guard hold when answers are sampled, longer, or come later in a conversation?",
    ),
    "detection": (
        "Detectors",
        "Which requests does a detector find, where it was fitted and elsewhere? Defences that rest on one are "
        "in detector_defences.csv.",
    ),
    "judges": ("Judges", "Do the judges agree on what counts as a refusal?"),
    "changes": (
        "What the guard changed",
        "The coordinate and the answer of each prompt, without and with the guard.",
    ),
    "targets": ("Published numbers", "Which published numbers come out on their own model?"),
    "bench": ("Speed", "Time and memory compared with straightforward alternatives, on a separate model."),
}
"""Heading and question of each table's section."""

ICONS = {
    SHOWN: "yes",
    SHOWN_ALIGNED: "yes",
    REPRODUCED: "yes",
    NOT_SHOWN: "no",
    UNDECIDED: "open",
    CEILING: "open",
    NOT_TESTABLE: "none",
}
"""Icon next to each verdict."""
ORDER = ("no", "open", "yes", "none")
"""Order of the claims on the page, by icon: what contradicts the paper is said first."""
SHORT = {
    SHOWN: "shown",
    SHOWN_ALIGNED: "shown",
    CEILING: "at its limit",
    NOT_TESTABLE: "not testable",
}
"""Verdicts of more than two words, as they stand next to a claim. The model is named at the top of the page."""
COUNTED = {CEILING: "undecided because the measure is at its limit"}
"""Verdicts in the sentence that counts them, where they need more words."""
ABOUT_THE_PAPER = (
    "Only the abstract and the first paragraphs of the paper could be read. The paper's numbers below come from one "
    "third-party note, which does not state the data set; its formulas come from two such notes. A claim about several "
    "settings has to hold in all of them."
)
"""Sources of the claims, in one line."""


@dataclass(frozen=True)
class ClaimEvidence:
    """A figure and rows of a table that a claim rests on."""

    figure: str
    """Name of a figure of the gallery."""
    table: str
    rows: Mapping[str, str]
    """Columns of the table, and the value of each in the rows that count."""

    @property
    def link(self) -> str:
        """Address of these rows on the page."""
        return f"#{self.table}?{urlencode(self.rows)}"


EVIDENCE = {
    "separable as text": ClaimEvidence("probe_auroc", "separability", {"metric": "auroc", "modality": "text"}),
    "an image blurs": ClaimEvidence("degradation", "separability", {"probe": "ssd", "modality": "blank"}),
    "inside a picture is blurred": ClaimEvidence(
        "degradation", "separability", {"probe": "ssd", "modality": "typographic"}
    ),
    "an image lowers refusal": ClaimEvidence("defence", "defence", {"metric": "asr", "defence": "unguarded"}),
    "the guard lowers attack success": ClaimEvidence(
        "defence", "defence", {"metric": "asr_change", "defence": "guard"}
    ),
    "below the baselines": ClaimEvidence("safety_tradeoff", "defence", {"metric": "asr", "standing": "ranked"}),
    "its null models": ClaimEvidence("defence", "defence", {"metric": "asr", "standing": "bound"}),
    "keeps fluency": ClaimEvidence("what_changed", "defence", {"metric": "changed_share", "defence": "guard"}),
    "projecting out alone": ClaimEvidence("readings", "readings", {"metric": "refusal_score_gain", "rule": "ablate"}),
    "own coordinate brings": ClaimEvidence(
        "readings", "readings", {"metric": "refusal_score_gain", "rule": "substitute"}
    ),
    "more than random directions": ClaimEvidence("random_directions", "random_directions", {"control": "random"}),
    "an attacker who knows it": ClaimEvidence("adaptive", "adaptive", {"metric": "asr"}),
    "sampled, longer and later": ClaimEvidence("stress", "stress", {"metric": "asr_change"}),
    "a detector": ClaimEvidence("detection_auroc", "detection", {"metric": "auroc"}),
}
"""ClaimEvidence for each claim, by words in it."""


def evidence_for(claim: str) -> ClaimEvidence | None:
    """Return where to look for what a claim rests on; None for a claim that is not known here."""
    return next((evidence for words, evidence in EVIDENCE.items() if words in claim), None)


@dataclass(frozen=True)
class ClaimEntry:
    """A row of claims.csv, prepared for reading."""

    sentence: str
    aside: str
    """The note in brackets at the start of a claim, such as 'beyond the paper'."""
    theirs: str
    ours: tuple[str, ...]
    """Our numbers, split into parts."""
    verdict: str
    guard: str = ""
    """The guard that the claim is about, in full."""
    evidence: ClaimEvidence | None = None

    @classmethod
    def of(cls, claim: str, theirs: str, ours: str, verdict: str, guard: str = "") -> "ClaimEntry":
        """Split the columns of a row into readable parts.

        Args:
            claim: the claim, perhaps with a note in brackets at its start.
            theirs: the paper's number.
            ours: our numbers, separated by semicolons.
            verdict: the verdict.
            guard: the guard that the claim is about.
        """
        aside, sentence = "", claim.strip()
        if sentence.startswith("(") and ")" in sentence:
            aside, _, sentence = sentence[1:].partition(")")
        parts = tuple(_with_names(in_percent(part)) for part in ours.split("; "))
        return cls(_as_sentence(sentence), _upper(aside), theirs, parts, verdict, guard, evidence_for(claim))

    @property
    def short(self) -> str:
        """The verdict in one or two words."""
        return SHORT.get(self.verdict, self.verdict)

    @property
    def icon(self) -> str:
        """Name of the icon next to the verdict."""
        return ICONS.get(self.verdict, "open")


_NAMED = {name.replace("_", " "): words for name, words in DEFENCES.items() if name not in ("oracle", "own_text")}
_NAME = re.compile(rf"\b({'|'.join(sorted(map(re.escape, _NAMED), key=len, reverse=True))})\b")


def _with_names(text: str) -> str:
    """Name defences as the rest of the page does; tables have them as options of the command line."""
    return _NAME.sub(lambda match: _NAMED[match[1]], text)


ABOUT_RATES = ("attack success", "over-refusal", "refused of")
_RATE = r"(-?\d\.\d\d)(?: \[(-?\d\.\d\d), (-?\d\.\d\d)\])?(?![\d.])"
_DIFFERENCE = re.compile(rf"(change|of over-refusal|by) {_RATE}")


def in_percent(text: str) -> str:
    """Write the rates of a claim in per cent, as the paper does, and differences of rates in points.

    Only texts about attack success or refusals are changed, in which every number with two decimals is a rate.
    """
    if not any(words in text for words in ABOUT_RATES):
        return text
    text = _DIFFERENCE.sub(lambda match: f"{match[1]} {_percent(match.groups()[1:], 'points')}", text)
    return re.sub(_RATE, lambda match: _percent(match.groups(), "%"), text).replace("->", "→")


def _percent(numbers: tuple[str | None, ...], unit: str) -> str:
    value, *ends = (f"{100 * float(number):z.0f}".replace("-", "−") for number in numbers if number)
    return f"{value}\N{NO-BREAK SPACE}{unit}" + (f" [{', '.join(ends)}]" if ends else "")


def verdict_summary(verdicts: list[str]) -> str:
    """Count the verdicts in a sentence: `Of 8 claims, 7 are shown on the built-in model and 1 is not shown.`"""
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys([*ICONS, *verdicts])}
    parts = [f"{n} {'is' if n == 1 else 'are'} {COUNTED.get(verdict, verdict)}" for verdict, n in counts.items() if n]
    joined = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"Of {len(verdicts)} claim{'s' if len(verdicts) != 1 else ''}, {joined}."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _as_sentence(text: str) -> str:
    text = _upper(text.strip())
    return text if text.endswith((".", "?", "!")) else f"{text}."
