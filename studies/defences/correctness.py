"""Whether an answer is right, where right answers are known."""

import re

from studies.defences.answer_log import AnswerRecord

LETTERS = "ABCDEFGHIJ"


def is_right(one: AnswerRecord) -> bool:
    """Of a multiple choice: names the right option first; else contains what is expected.

    Multiple choice is scored as in ScienceQA's and lmms-eval's public scripts: by letter, else by the option's words.
    Open questions are scored by containment, with `<AND>` and `<OR>` of MM-Vet's answer column: MM-Vet's own score is
    given by GPT-4, so figures by this rule are no MM-Vet scores.
    """
    return _picks(one.answer, one.choices, one.right) if one.choices else any(_says(one.answer, r) for r in one.right)


# A letter by itself: alone, before a mark, or said to be the answer. "A dog" begins with an article.
LETTER = re.compile(
    r"^\W*([A-J])\W*$|^\W*([A-J])[.):]|\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\W+(?:is\W+)?([A-J])\b|\bis\W+([A-J])\W*$"
)


def _picks(answer: str, choices: list[str], right: list[str]) -> bool:
    found = LETTER.search(answer.strip())
    letter = next(filter(None, found.groups())) if found else ""
    if letter and LETTERS.index(letter) < len(choices):
        return choices[LETTERS.index(letter)] in right
    named = [choice for choice in choices if _words(choice) and f" {_words(choice)} " in f" {_words(answer)} "]
    return len(named) == 1 and named[0] in right


def _says(answer: str, expected: str) -> bool:
    said = f" {_words(answer)} "
    return any(all(f" {_words(part)} " in said for part in option.split("<AND>")) for option in expected.split("<OR>"))


def _words(text: str) -> str:
    """In lower case, without the marks of sentences and of thousands; symbols stay, since answers may be formulas."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.lower())
    return " ".join(word.strip(".,;:!?\"'()[]") for word in text.split()).strip()
