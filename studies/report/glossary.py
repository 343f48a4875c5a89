"""Words of the page for names in the tables, and the terms that it explains."""

import re
from collections.abc import Iterable, Mapping

import pandas as pd
from markupsafe import Markup, escape

from figures.words import NAMES as FIGURE_NAMES

DEFENCES = FIGURE_NAMES["defence"]
"""Names of defences, as the figures have them."""
NAMES: Mapping[str, str] = {
    # measures
    "asr": "attack success",
    "harm_rate": "harmful answers, by a rubric",
    "over_refusal_rate": "over-refusal",
    "refusal_rate": "refusal rate",
    "late_refusal_rate": "refused late in the answer",
    "late_compliance": "refused first, complied with later",
    "looping_rate": "answers that repeat themselves",
    "paired_rate": "harmful refused and harmless answered, per pair",
    "refusal_score": "refusal score of the first token (nats)",
    "refusal_score_gain": "gain in refusal score (nats)",
    "kl": "shift of the first token (KL, nats)",
    "auroc": "AUROC, 1 is perfect separation",
    "coherence": "coherent answers",
    "changed_share": "share of answers changed",
    "gate_true_positive_rate": "gate open, harmful",
    "gate_false_positive_rate": "gate open, harmless",
    "delta_norm": "size of the change, relative to the state",
    "asr_change": "change of attack success",
    "over_refusal_rate_change": "change of over-refusal",
    "kappa": "agreement of judges (Cohen's kappa)",
    **DEFENCES,
    "unguarded": "no defence",
    "guard": "guard",
    # how a request reaches the model, and what the guard reads
    "text": "text only",
    "blank": "blank picture",
    "noise": "picture of noise",
    "scene": "picture of a scene",
    "typographic": "written in the picture",
    "typographic_scene": "written on a scene",
    "plain": "request as it is",
    "jailbreak": "jailbreak wording",
    "multimodal": "request in the picture",
    "prompt_text": "the prompt's text",
    "transcription": "a transcription of the picture",
    "oracle": "the true request",
}
"""Words of users for names in the tables. Search finds either."""

TERMS: Mapping[str, str] = {
    "attack success": "Share of harmful requests that the model answers instead of refusing. Lower is better.",
    "over-refusal": "Share of harmless requests that the model refuses. Lower is better.",
    "direction": "The safety direction: the axis of the hidden states along which the aligned language model "
    "separates harmful from harmless requests. A state's place on it is its safety coordinate.",
    "reference": "The text that the language model alone is shown. Its safety coordinate is what the guard puts back.",
    "gate": "The test that decides, request by request, if the guard acts at all.",
}
"""The five terms that readers need, and what they mean here."""

_TERM = re.compile(rf"\b({'|'.join(map(re.escape, TERMS))})\b", re.IGNORECASE)


def way_in_words(setting: str, modality: str) -> str:
    """Name how requests reach the model, as the end of a sentence: `with a blank picture`."""
    by_modality = {
        "text": "as text",
        "blank": "with a blank picture",
        "noise": "with a picture of noise",
        "scene": "with a picture of a scene",
        "typographic": "written in the picture",
        "typographic_scene": "written on a picture of a scene",
    }
    words = by_modality.get(modality, f"as {modality}")
    if setting in ("plain", "multimodal"):
        return words
    return f"in a jailbreak, {words}" if setting == "jailbreak" else f"in {setting.replace('_', ' ')}, {words}"


def all_places(tables: Iterable[pd.DataFrame]) -> dict[str, str]:
    """Name every setting and modality that occurs in tables, by both separated by a space."""
    pairs = {
        pair
        for table in tables
        if {"setting", "modality"} <= set(table)
        for pair in table[["setting", "modality"]].dropna().drop_duplicates().itertuples(index=False, name=None)
    }
    return {f"{setting} {modality}": way_in_words(setting, modality) for setting, modality in sorted(pairs)}


def with_terms(text: str) -> Markup:
    """Mark the first occurrence of each of `TERMS` in a text, with its meaning; the rest is escaped."""
    parts, seen, end = [], set(), 0
    for match in _TERM.finditer(text):
        term = match[0].lower()
        if term not in seen:
            seen.add(term)
            parts += [escape(text[end : match.start()]), _marked(match[0])]
            end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def _marked(word: str) -> Markup:
    return Markup('<abbr class="term" tabindex="0" title="{}">{}</abbr>').format(TERMS[word.lower()], word)
