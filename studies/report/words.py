"""What the page says about its parts."""

from dataclasses import dataclass

from studies.bookkeeping.verdict_words import NOT_SHOWN, NOT_TESTABLE, REPRODUCED, SHOWN, UNDECIDED

HEADINGS = {
    "claims": ("Claims", "What the paper says, what was measured here, and the verdict that follows by rule."),
    "points": (
        "Hidden states",
        "Where every prompt lies, layer by layer: read at its last token, on the two principal components of the "
        "text-only states. Each panel is one way for the same requests to reach the model.",
    ),
    "separability": (
        "Separability",
        "Can a probe tell harmful from harmless requests, and what does a picture take from it?",
    ),
    "layer_sweep": (
        "Layer sweep",
        "What the guard does wherever it can be put: refusals, over-refusals, and how far the first word moves.",
    ),
    "layer_selection": (
        "Choosing the layer",
        "Which layer each rule would have picked, and what the guard is worth there.",
    ),
    "readings": (
        "Readings of the method",
        "The published descriptions disagree, so every reading was run, beside its controls and bounds.",
    ),
    "signal_path": ("Path of the signal", "At which layer refusal shows, what writes it, and what carries it."),
    "defence": (
        "Defences",
        "Attack success and over-refusal of the guard, its controls and its rivals, setting by setting.",
    ),
    "judges": ("Judges", "Whether those that decide what is a refusal agree."),
    "changes": ("What the guard changed", "Prompt by prompt: the coordinate and the answer, without and with it."),
    "bench": ("Speed", "Time and memory beside what one would write instead, on a model of its own."),
}
"""By table: heading, and the question in one sentence."""

STANDINGS = {SHOWN: "yes", REPRODUCED: "yes", NOT_SHOWN: "no", UNDECIDED: "open", NOT_TESTABLE: "none"}
"""Verdict -> the icon beside it."""


@dataclass(frozen=True)
class ClaimShown:
    """A row of claims.csv as a person reads it."""

    sentence: str
    aside: str
    """What stood in brackets before it: beyond the paper, against its wording."""
    theirs: str
    ours: tuple[str, ...]
    """Long findings part by part."""
    verdict: str

    @classmethod
    def of(cls, claim: str, theirs: str, ours: str, verdict: str) -> "ClaimShown":
        aside, sentence = "", claim.strip()
        if sentence.startswith("(") and ")" in sentence:
            aside, _, sentence = sentence[1:].partition(")")
        parts = tuple(ours.split("; "))
        return cls(_as_sentence(sentence), _upper(aside), theirs, parts, verdict)

    @property
    def standing(self) -> str:
        return STANDINGS.get(self.verdict, "open")


def summary_lines(verdicts: list[str]) -> str:
    """How many claims of each verdict: `Of 8 claims, 7 are shown on the built-in model and 1 is not shown.`"""
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys([*STANDINGS, *verdicts])}
    told = [f"{n} {'is' if n == 1 else 'are'} {verdict}" for verdict, n in counts.items() if n]
    listed = " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
    return f"Of {len(verdicts)} claim{'s' if len(verdicts) != 1 else ''}, {listed}."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _as_sentence(text: str) -> str:
    text = _upper(text.strip())
    return text if text.endswith((".", "?", "!")) else f"{text}."
