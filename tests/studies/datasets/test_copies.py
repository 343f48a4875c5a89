"""Copies within a user's file: found however they are disguised, and never divided between splits."""

from itertools import combinations

import numpy as np
import pytest

from interp import Query
from studies.datasets import Copies, QueryFileError, find_leakage, is_paired, split_queries
from studies.datasets.copies import originals
from studies.datasets.leakage import NEAR, near_pairs

N_FILES, N_PAIRS = 200, 40
WORDS = np.array([f"{a}{b}{c}" for a in "bdfgk" for b in ("ani", "oru", "ute", "ela") for c in ("m", "n", "s", "t")])


def punctuation(words, rng):
    return " -- ".join(words) + "?!"


def case(words, rng):
    return " ".join(word.upper() if rng.random() < 0.5 else word for word in words)


def stop_word(words, rng):
    place = int(rng.integers(len(words)))
    return " ".join([*words[:place], "the", *words[place:]])


def one_word_of_ten(words, rng):
    return " ".join([*words[:-1], str(rng.choice([word for word in WORDS if word not in words]))])


def left_out_word(words, rng):
    return " ".join(words[1:])


def reordered(words, rng):
    return "Please " + " ".join(rng.permutation(words))


DISGUISES = (punctuation, case, stop_word, one_word_of_ten, left_out_word, reordered)
N_EXACT = 2
"""The first disguises are word for word the same, up to case and punctuation."""


def user_file(rng):
    """Pairs and single queries of ten words each, and a copy of six of them in every disguise, in pairs of its own."""
    texts = [rng.choice(WORDS, 10, replace=False).tolist() for _ in range(2 * N_PAIRS)]
    queries = [Query(" ".join(words), i % 2 == 0, pair=f"p{i // 2}") for i, words in enumerate(texts)]
    planted = rng.choice(len(texts), len(DISGUISES), replace=False)
    copies = []
    for place, disguise in zip(planted, DISGUISES, strict=True):
        other = " ".join(rng.choice(WORDS, 10, replace=False))
        copy = Query(disguise(texts[place], rng), queries[place].harmful, pair=f"copy {place}")
        copies += [copy, Query(other, not copy.harmful, pair=copy.pair)]
    order = rng.permutation(len(queries) + len(copies))
    return [[*queries, *copies][i] for i in order], [
        (queries[i].text, copies[2 * k].text) for k, i in enumerate(planted)
    ]


def texts_of(splits):
    return {split: [query.text for query in part] for split, part in splits.items()}


def leaks(splits):
    """Leakage between every two splits."""
    texts = texts_of(splits)
    return [find_leakage(texts[a], texts[b], texts[b]).rows for a, b in combinations(texts, 2)]


def test_planted_copies_are_found_and_kept_together_in_every_one_of_200_files():
    found = together = clean = 0
    for seed in range(N_FILES):
        queries, planted = user_file(np.random.default_rng(seed))
        copies, splits = Copies.among(queries), split_queries(queries, seed)
        named = {frozenset(group) for group in copies.groups}
        counts = (copies.n_exact, copies.n_near) == (N_EXACT, len(DISGUISES) - N_EXACT)
        found += counts and named == {frozenset(pair) for pair in planted}
        owner = {text: split for split, texts in texts_of(splits).items() for text in texts}
        together += all(owner[first] == owner[second] for first, second in planted)
        clean += all(rows.empty for rows in leaks(splits))
        assert sum(map(len, splits.values())) == len(queries) and all(map(is_paired, splits.values()))
    assert found == together == clean == N_FILES


def test_copies_of_copies_stay_together_although_the_ends_of_the_chain_differ():
    words = [str(word) for word in WORDS[:30]]
    chain = [" ".join(words[i : i + 10]) for i in range(0, 4)]
    assert find_leakage(chain[:1], ["end"], chain[-1:]).rows.empty
    assert originals([*chain, "another text"]) == [chain[0]] * 4 + ["another text"]


def test_near_pairs_agree_with_a_plain_comparison_of_all_pairs():
    rng, n_near = np.random.default_rng(0), 0
    for _ in range(20):
        sets = [frozenset(rng.choice(WORDS[:14], rng.integers(12), replace=False).tolist()) for _ in range(100)]
        plain = [
            (i, j)
            for i, j in combinations(range(100), 2)
            if sets[i] | sets[j] and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= NEAR
        ]
        assert sorted(near_pairs(sets)) == plain
        n_near += len(plain)
    assert n_near > 200


def test_a_harmless_partner_that_several_pairs_share_keeps_them_in_one_split():
    queries = []
    for i in range(60):
        shared = "What is a garden?" if i < 6 else f"What is a {WORDS[i]}?"
        queries += [Query(f"Break the {WORDS[i]}", True, pair=f"p{i}"), Query(shared, False, pair=f"p{i}")]
    splits = split_queries(queries)
    assert len({split for split, texts in texts_of(splits).items() if "What is a garden?" in texts}) == 1
    assert all(is_paired(part) for part in splits.values()) and all(rows.empty for rows in leaks(splits))
    copies = Copies.among(queries)
    assert (copies.n_exact, copies.n_near, len(copies.groups)) == (5, 0, 1)
    assert str(copies) == (
        "5 of 120 queries repeat another one: 5 word for word, 0 with Jaccard >= 0.8 on content words; each stays in "
        "one split with what it repeats (1 groups): 'What is a garden?' (6 queries)"
    )


def test_partners_that_are_nearly_the_same_are_not_counted():
    start = " ".join(WORDS[:9])
    pairs = [Query(f"{start} {word}", label, pair="p") for word, label in (("poison", True), ("feed", False))]
    assert str(Copies.among(pairs)) == "0 of 2 queries repeat another one"


def test_a_file_of_copies_is_refused_with_the_number_of_groups():
    queries = [
        Query(f"{word}!{'?' * i}", label) for label, word in ((True, "burn"), (False, "wash")) for i in range(60)
    ]
    with pytest.raises(QueryFileError, match="1 pairs or single queries .* never divides a pair, or copies of a text"):
        split_queries(queries)


def test_a_file_without_copies_is_divided_as_before():
    """Splits of earlier runs stay comparable."""
    queries = [Query(f"{WORDS[i]} {label}", label, f"c{i % 3}", f"p{i}") for i in range(40) for label in (True, False)]
    splits = split_queries(queries, seed=3)
    earlier = "p0 p2 p16 p36 p8 p37 p21 p20 p19 p15".split()
    assert [query.pair for query in splits["test"][::2]] == earlier
