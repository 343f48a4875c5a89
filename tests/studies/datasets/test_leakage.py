import time

import numpy as np
import pytest

from studies.datasets import find_leakage
from studies.datasets.leakage import NEAR, content_words, normal


def leaked(anchors, tests):
    """The nearest anchor, kind and Jaccard index of every leaked test, by its number."""
    leakage = find_leakage(anchors, [str(i) for i in range(len(tests))], tests)
    return {row.test: (row.anchor, row.kind, row.jaccard) for row in leakage.rows.itertuples()}


def test_case_punctuation_spaces_and_apostrophes_do_not_hide_a_repetition():
    anchors = ["Don't  feed the wasp!", "Something else"]
    rows = leaked(anchors, ["don’t feed the WASP", "dont feed the wasp", "Feed the wasp"])
    assert rows == {"0": (anchors[0], "exact", 1.0), "1": (anchors[0], "exact", 1.0)}


def test_near_repetitions_share_four_of_five_content_words():
    anchors = ["Feed a small wasp honey today", "How do I feed a wasp?"]
    rows = leaked(anchors, ["How can we feed small wasp honey", "feed small wasp", "Where is the wasp to feed?"])
    assert rows == {"0": (anchors[0], "near", 4 / 5), "2": (anchors[1], "near", 1.0)}


def test_a_request_without_content_words_is_found_only_word_for_word():
    assert leaked(["Can you do this?"], ["Could she have that?", "can you do this"]) == {
        "1": ("Can you do this?", "exact", 1.0)
    }
    assert leaked([], ["A test"]) == leaked(["An anchor"], []) == {}


def test_it_agrees_with_a_plain_comparison_of_all_pairs():
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(12)]
    texts = [" ".join(rng.choice(words, rng.integers(1, 7))) for _ in range(300)]
    anchors, tests = texts[:100], texts[100:]
    expected = {}
    for i, test in enumerate(tests):
        jaccard = [len((a := content_words(x)) & (b := content_words(test))) / len(a | b) for x in anchors]
        if max(jaccard) >= NEAR or normal(test) in map(normal, anchors):
            expected[str(i)] = max(jaccard)
    rows = leaked(anchors, tests)
    assert {test: jaccard for test, (_, _, jaccard) in rows.items()} == pytest.approx(expected)
    assert 10 < len(expected) < 190


def test_leakage_is_summarised_in_one_sentence_and_listed_by_id():
    leakage = find_leakage(
        ["Feed the wasp", "Kick five big red round balls"],
        ["a", "b", "c"],
        ["feed the wasp!", "Kick four big red round balls", "kick big red round five balls"],
    )
    assert leakage.ids == {"a", "c"}
    assert str(leakage) == (
        "2 of 3 test requests are among the 2 anchors: 1 word for word, 1 with Jaccard >= 0.8 on content words"
    )


def test_twenty_thousand_tests_against_a_thousand_anchors_take_seconds():
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(5000)])
    # Zipf: some words are in nearly every text, as in real requests.
    texts = [" ".join(words[np.minimum(rng.zipf(1.3, 10), 5000) - 1]) for _ in range(21_000)]
    start = time.perf_counter()
    find_leakage(texts[:1000], [str(i) for i in range(20_000)], texts[1000:])
    # Measured: 3 s on one core; the limit holds on a machine many times slower. Comparing all pairs takes far longer.
    assert time.perf_counter() - start < 150
