"""Texts of the page: headings, questions, claims and the summary of verdicts."""

from dataclasses import dataclass

from studies.bookkeeping.verdict_words import (
    CEILING,
    NOT_SHOWN,
    NOT_TESTABLE,
    REPRODUCED,
    SHOWN,
    SHOWN_ALIGNED,
    UNDECIDED,
)

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
ABOUT_THE_PAPER = (
    "Only the abstract and the first paragraphs of the paper could be read. 15 % and 34 % come from one third-party "
    "note, which does not state the data set; the formulas come from two."
)
"""Sources of the claims, in one line."""


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
        parts = tuple(ours.split("; "))
        return cls(_as_sentence(sentence), _upper(aside), theirs, parts, verdict, guard)

    @property
    def icon(self) -> str:
        """Name of the icon next to the verdict."""
        return ICONS.get(self.verdict, "open")


def verdict_summary(verdicts: list[str]) -> str:
    """Count the verdicts in a sentence: `Of 8 claims, 7 are shown on the built-in model and 1 is not shown.`"""
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys([*ICONS, *verdicts])}
    parts = [f"{n} {'is' if n == 1 else 'are'} {verdict}" for verdict, n in counts.items() if n]
    joined = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"Of {len(verdicts)} claim{'s' if len(verdicts) != 1 else ''}, {joined}."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _as_sentence(text: str) -> str:
    text = _upper(text.strip())
    return text if text.endswith((".", "?", "!")) else f"{text}."
