"""Searches on planted objectives, where it is known what can be found."""

import numpy as np
import pytest

from studies.attacks.search import AttackSetupError, best_of, random_search, remembered
from studies.attacks.suffixes import N_WORDS, one_word_changed, random_suffix
from studies.bookkeeping.checkpoints import Checkpoints

WORDS = tuple(f"w{i}" for i in range(300))
WEAK = set(WORDS[:15])
"""One word in twenty weakens the planted guard, which refuses until four of the five words are weak."""
BUDGET = 500


def planted(suffixes):
    return np.array([3.5 - sum(word in WEAK for word in suffix) for suffix in suffixes])


def oracle(suffixes):
    return np.full(len(suffixes), 3.5)


def attack(objective, seed, budget=BUDGET):
    rng = np.random.default_rng(seed)
    return random_search(objective, random_suffix(WORDS, rng), one_word_changed(WORDS), budget, rng)


def test_a_planted_weakness_is_found_in_nearly_every_run():
    broken = [attack(planted, seed).trace[-1].score < 0 for seed in range(100)]
    assert np.mean(broken) >= 0.95
    # Chance alone does not: a random suffix has four weak words once in 33,000.
    rng = np.random.default_rng(0)
    assert not any((planted([random_suffix(WORDS, rng) for _ in range(BUDGET)]) < 0).tolist())


def test_a_perfect_refuser_is_broken_in_no_run():
    for seed in range(20):
        found = attack(oracle, seed)
        assert len(found.trace) == 1 and found.trace[0].score > 0 and found.n_queries == BUDGET


def test_a_search_spends_its_budget_and_not_more():
    asked = []

    def counted(suffixes):
        asked.extend(suffixes)
        return planted(suffixes)

    for budget in (1, 2, 6, 50):
        asked.clear()
        assert attack(counted, 0, budget).n_queries == len(asked) == budget
    # Every candidate differs from the best one before it in one place at most.
    assert all(len(suffix) == N_WORDS for suffix in asked)


def test_what_was_best_after_some_queries_does_not_look_ahead():
    found = attack(planted, 0)
    scores = [step.score for step in found.trace]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores)
    for n_queries in (1, 10, 100, 500):
        step = found.after(n_queries)
        assert step.n_queries <= n_queries
        assert step.score == min(each.score for each in found.trace if each.n_queries <= n_queries)


def test_the_best_of_given_candidates_starts_with_the_first_and_ends_with_them():
    rng = np.random.default_rng(0)
    found = best_of(lambda numbers: np.array(numbers, dtype=float), [5, 3, 4, 1, 2], 100, rng)
    assert found.trace[0].candidate == 5 and found.best == 1 and found.n_queries == 5
    assert best_of(lambda numbers: np.array(numbers, dtype=float), [5, 1, 2], 1, rng).best == 5


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_of_nothing_is_an_error(budget):
    with pytest.raises(AttackSetupError, match="expected at least 1"):
        attack(planted, 0, budget)
    with pytest.raises(AttackSetupError, match="expected at least 1"):
        best_of(planted, [("a",)], budget, np.random.default_rng(0))


def test_a_stopped_search_resumes_with_the_scores_that_it_has(tmp_path):
    n_asked = 0

    def stops(suffixes):
        nonlocal n_asked
        if n_asked >= 101:
            raise KeyboardInterrupt
        n_asked += len(suffixes)
        return planted(suffixes)

    checkpoints = Checkpoints(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        attack(remembered(stops, checkpoints, "search"), 0)
    asked = []

    def counted(suffixes):
        asked.extend(suffixes)
        return planted(suffixes)

    resumed = attack(remembered(counted, checkpoints, "search"), 0)
    assert resumed == attack(planted, 0) and len(asked) == BUDGET - n_asked
    # Finished, it asks nothing; with a larger budget it goes on.
    asked.clear()
    assert attack(remembered(counted, checkpoints, "search"), 0) == resumed and not asked
    longer = attack(remembered(counted, checkpoints, "search"), 0, 2 * BUDGET)
    assert longer == attack(planted, 0, 2 * BUDGET) and len(asked) <= BUDGET + 3
