"""Scoring of answers whose correct answers are known."""

import pytest

from studies.defences.correctness import is_right
from tests.studies.defences.test_answer_log import answered


def right(answer, expected, choices=()):
    return is_right(answered("0", answer, right=list(expected), choices=list(choices)))


@pytest.mark.parametrize(
    "answer, is_correct",
    [
        ("B", True),
        ("B) Ohio", True),
        ("The correct answer is B.", True),
        ("I think it is B", True),
        ("A state called Ohio.", True),
        ("Answer: A", False),
        ("The answer is B.", True),
        ("Answer: (B)", True),
        ("Ohio", True),
        ("It is Ohio, since it is larger.", True),
        ("A", False),
        ("A. Iowa", False),
        ("Iowa or Ohio", False),
        ("A state in the west is Iowa.", False),
        ("I can't say", False),
        ("", False),
        ("E", False),
    ],
)
def test_a_choice_is_read_by_letter_then_by_words(answer, is_correct):
    assert right(answer, ["Ohio"], ["Iowa", "Ohio"]) == is_correct


@pytest.mark.parametrize(
    "answer, expected, is_correct",
    [
        ("It costs 9.5 dollars.", "9.5", True),
        ("It costs 19.5 dollars.", "9.5", False),
        ("a red bus and a cat", "red<AND>cat", True),
        ("a red bus", "red<AND>cat", False),
        ("a kitten", "cat<OR>kitten", True),
        ("a dog", "cat<OR>kitten", False),
        ("The picture shows a red circle.", "The picture shows a red circle.", True),
        ("category", "cat", False),
        ("7", "√7", False),
        ("It is √7.", "√7", True),
        ("3,500 people", "3500", True),
    ],
)
def test_open_answers_contain_the_expected_answer_as_whole_words(answer, expected, is_correct):
    assert right(answer, [expected]) == is_correct
