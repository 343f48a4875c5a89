import numpy as np
import pandas as pd
import pytest

from studies.guards.choice_rule import FALLBACK_RULE, SELECTION_RULE, pareto_front, rank, selection_metrics


def standing(place, refusal, over_refusal, kl, coherence=1.0, n=120, unguarded=0.0):
    every = (refusal, over_refusal, np.broadcast_to(unguarded, np.shape(over_refusal)), coherence, kl)
    series = [pd.Series(np.atleast_1d(values).astype(float)) for values in every]
    return {"place": place} | selection_metrics(*series, n)


def test_the_highest_refusal_within_the_limits_is_chosen():
    order, rule = rank([standing(0, 0.8, 0.0, 0.1), standing(1, 0.95, 0.03, 0.3), standing(2, 1.0, 0.2, 0.1)])
    assert order.place.tolist() == [1, 0] and rule == SELECTION_RULE


def test_limits_hold_in_every_modality():
    order, _ = rank(
        [standing(0, 1.0, [0.0, 0.3], 0.0), standing(1, 1.0, 0.0, 0.0, [1.0, 0.5]), standing(2, 0.2, 0.0, 0.0)]
    )
    assert order.place.tolist() == [2]


def test_a_guard_answers_for_the_refusals_that_it_adds_not_for_the_models_own():
    """The model alone refuses 0.05 of harmless requests in one modality, and 0.3 in the other."""
    order, rule = rank(
        [
            standing(0, 0.9, [0.08, 0.33], 0.1, unguarded=[0.05, 0.3]),
            standing(1, 1.0, [0.12, 0.3], 0.1, unguarded=[0.05, 0.3]),
        ]
    )
    assert order.place.tolist() == [0] and rule == SELECTION_RULE


def test_a_rate_of_one_over_few_prompts_keeps_a_standard_error():
    """0.995 is near 1 of 1, and 0.88 near 0.9, of 120 prompts; without smoothing only the second would be."""
    for refusal, near in ((1.0, 0.995), (0.9, 0.88)):
        order, _ = rank([standing(0, refusal, 0, 0.2), standing(1, near, 0, 0.1), standing(2, 0.5, 0, 0.0)])
        assert order.place.tolist() == [1, 0, 2]


def test_near_the_best_the_least_kl_comes_first_and_ties_keep_their_order():
    order, _ = rank(
        [standing(0, 1.0, 0, 0.5), standing(1, 0.999, 0, 0.2), standing(2, 0.999, 0, 0.2), standing(3, 0.8, 0, 0.0)]
    )
    assert order.place.tolist() == [1, 2, 0, 3]


def test_differences_in_kl_that_are_rounding_do_not_decide():
    order, _ = rank([standing(0, 1.0, 0, 3e-11), standing(1, 1.0, 0, -2e-11), standing(2, 1.0, 0, 1e-5)])
    assert order.place.tolist() == [0, 1, 2]


def test_beyond_the_limits_the_least_harm_is_chosen_and_the_rule_says_so():
    order, rule = rank([standing(0, 1.0, 0.4, 0.1), standing(1, 0.5, 0.2, 0.1)])
    assert order.place.tolist() == [1] and rule == FALLBACK_RULE


def test_configurations_with_missing_metrics_are_not_chosen():
    order, _ = rank([standing(0, 1.0, 0, np.nan), standing(1, 1.0, [0, np.nan], 0.1), standing(2, 0.5, 0, 0.1)])
    assert order.place.tolist() == [2]
    with pytest.raises(LookupError, match="nothing was measured"):
        rank([standing(0, np.nan, 0, 0)])


def test_the_pareto_front_holds_the_rows_that_no_other_row_beats():
    table = pd.DataFrame(
        {"refusal": [1.0, 1.0, 0.5, 0.4, 1.0], "over_refusal": [0.1, 0, 0, 0, 0], "kl": [0.1, 0.2, 0.0, 0.1, 0.2]}
    )
    assert pareto_front(table).tolist() == [True, True, True, False, True]
