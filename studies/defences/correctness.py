"""Scoring of answers whose correct answers are known."""

import re

from studies.defences.answer_log import AnswerRecord

LETTERS = "ABCDEFGHIJ"


def is_right(record: AnswerRecord) -> bool:
    """Return whether an answer is correct.

    Multiple choice is scored as in ScienceQA's and lmms-eval's public scripts: by letter, else by the option's words.
    Open questions are scored by containment, with `<AND>` and `<OR>` of MM-Vet's answer column. MM-Vet's own score is
    given by GPT-4, so accuracies by this rule are not MM-Vet scores.
    """
    if record.choices:
        return _picks(record.answer, record.choices, record.right)
    return any(_contains(record.answer, expected) for expected in record.right)


# A letter by itself: alone, before a mark, or called the answer. "A dog" begins with an article.
LETTER = re.compile(
    r"^\W*([A-J])\W*$|^\W*([A-J])[.):]|\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\W+(?:is\W+)?([A-J])\b|\bis\W+([A-J])\W*$"
)


def _picks(answer: str, choices: list[str], right: list[str]) -> bool:
    match = LETTER.search(answer.strip())
    letter = next(filter(None, match.groups())) if match else ""
    if letter and LETTERS.index(letter) < len(choices):
        return choices[LETTERS.index(letter)] in right
    named = [choice for choice in choices if _words(choice) and f" {_words(choice)} " in f" {_words(answer)} "]
    return len(named) == 1 and named[0] in right


def _contains(answer: str, expected: str) -> bool:
    words = f" {_words(answer)} "
    return any(all(f" {_words(part)} " in words for part in option.split("<AND>")) for option in expected.split("<OR>"))


def _words(text: str) -> str:
    """Lower-case the text and drop punctuation and thousands separators; symbols stay, as answers may be formulas."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.lower())
    return " ".join(word.strip(".,;:!?\"'()[]") for word in text.split()).strip()
