"""What a loop is: an answer that ends in repetition and says nothing else."""

import csv
import json

import pytest
from published import BENCHMARKS, NO_BENCHMARKS

from studies.datasets import read_responses
from studies.judges import PUBLISHED, Case, attack_succeeds, is_looping
from studies.judges.loops import repeated_share
from studies.judges.own_keywords import hashed_half

COMPLETIONS = BENCHMARKS / "xstest" / "model_completions" / "xstest_v2_completions_mistralguard.csv"
CASES = BENCHMARKS.parent / "cases" / "data"
published = pytest.mark.skipif(not COMPLETIONS.exists(), reason=NO_BENCHMARKS)

LOOPS = {
    "two words": "and then " * 40,
    "cut in a word": "and then " * 12 + "and th",
    "a head": "The bridge was opened in spring at the river " + "bridge " * 40,
    "a sentence": "I am happy to help you today. " * 4,
    "a sentence, cut": "I am happy to help you today. " * 3 + "I am happy",
    "lines": "A silent sound,\n" * 12,
    "numbered lines": "\n".join(f"{i}. Stir the soup" for i in range(1, 9)),
    "numbered steps": "Step 1: stir. Step 2: stir. Step 3: stir. Step 4: stir. Step 5: stir.",
    "two alternating lines": "A warm breeze,\nA cold breeze,\n" * 5,
    "no blanks": "haha" * 20,
    "another script": "抱歉我不能" * 8,
    "one mark": "!" * 60,
    "one digit": "0 " * 60,
    "capitals and marks": "So it goes on. SO IT GOES ON! so it goes on; So it goes on.",
}
COHERENT = {
    "empty": "",
    "a word": "Yes.",
    "emphasis": "Yes, yes, yes!",
    "echo": "I am happy to help you today. I am happy to help you today.",
    "parallel sentences": "You can clean a floor with a brush. You can clean a wall with a sponge. You can clean a pan "
    "with a cloth.",
    "list": "\n".join(f"{i}. Add a cup of {thing} to the bowl" for i, thing in enumerate(("rice", "milk", "oil"), 1)),
    "code": "for i in range(3):\n    print(i)\nfor j in range(3):\n    print(j)\nfor k in range(3):\n    print(k)",
    "template": "[Your name] [Your name] [Your name] is what the form asks for; write it in each of the three boxes.",
    "joke": "Knock knock. Who's there? Banana. Knock knock. Who's there? Banana. Knock knock. Who's there? Orange.",
    "series": "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987",
    "refrain": "The ship sails out to the far green sea with salt on its sails and the wind in its lee. "
    "Row on, row on, row on.",
    "repetition in the middle": "word " * 30 + "and then the answer goes on to say what there is to be said about it, "
    "in as many words as it needs, until all of it has been said and nothing is left of the question that was asked "
    "at first by somebody who wanted to know it in full.",
    "help that ends in a loop": "First weigh the flour, then warm the milk, stir in the yeast and wait until it foams; "
    "knead for ten minutes, cover the bowl, and bake it for an hour. " + "Enjoy your bread. " * 4,
}


@pytest.mark.parametrize("answer", LOOPS.values(), ids=LOOPS)
def test_what_ends_in_repetition_and_says_nothing_else_is_a_loop(answer):
    assert is_looping(answer)


@pytest.mark.parametrize("answer", COHERENT.values(), ids=COHERENT)
def test_what_says_something_is_no_loop(answer):
    assert not is_looping(answer)


@pytest.mark.parametrize("n", [3, 5, 30])
def test_the_share_is_that_of_the_repeated_end(n):
    head, passage = "ab cd ef gh", " xy zw uv"
    text = head + passage * n
    assert repeated_share(text) == pytest.approx(len(passage * n) / len(text), abs=2 / len(text))
    assert repeated_share(head + passage * 2) == 0


def test_the_share_matches_a_plain_search():
    def plain(text):
        ends = (
            len(text) - start
            for period in range(1, len(text))
            for start in range(len(text) - 3 * period + 2)
            if all(text[i] == text[i + period] for i in range(start, len(text) - period))
        )
        longest = max(ends, default=0)
        return longest / len(text) if longest >= 20 else 0.0

    texts = ("ab " * 9 + "a", "one two " + "ab cd " * 5 + "ab", "abc abd abc abd abc abd abc abd", "no end of it")
    for text in map(str.strip, texts):
        assert repeated_share(text) == pytest.approx(plain(text)), text


@pytest.mark.skipif(not CASES.is_dir(), reason=NO_BENCHMARKS)
def test_the_reported_answers_are_told_apart():
    for name in ("loop_answer", "loop_true"):
        case = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
        assert is_looping(case["answer"]) is case["expected"]["looping"], name


@published
@pytest.mark.parametrize("half", [0, 1])
def test_hardly_an_answer_of_people_is_lost_to_the_loop_rule(half):
    rows = [row for row in read_responses(COMPLETIONS).rows if hashed_half(row.request) == half]
    answered = [row.response for row in rows if row.refused is False]
    assert len(answered) >= 100 and not any(map(is_looping, answered))
    # Unsafe prompts that people don't call refused, and the list doesn't either.
    harmful = [Case(row.request, row.response) for row in rows if row.asks_harm and not row.refused]
    verdicts = [vars(verdict) for verdict in PUBLISHED["xstest@1"].verdicts(harmful)]
    missed = [verdict for verdict in verdicts if not verdict["refused"]]
    assert missed and sum(not attack_succeeds(verdict) for verdict in missed) <= 0.02 * len(missed)


@pytest.mark.skipif(not (CASES / "jbb_judge.csv").exists(), reason=NO_BENCHMARKS)
def test_answers_that_people_call_jailbroken_are_kept():
    with (CASES / "jbb_judge.csv").open(encoding="utf-8", newline="") as file:
        answers = [row["target_response"] for row in csv.DictReader(file) if row["human_majority"] == "1"]
    assert not any(map(is_looping, answers))
