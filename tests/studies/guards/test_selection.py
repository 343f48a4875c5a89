import numpy as np
import pandas as pd
import pytest

from studies.guards.selection import FALLBACK_RULE, SELECTION_RULE, pareto_front, rank, selection_metrics


def one(place, refusal, over_refusal, kl, coherence=1.0, n=120):
    as_series = [pd.Series(np.atleast_1d(values).astype(float)) for values in (refusal, over_refusal, coherence, kl)]
    return {"place": place} | selection_metrics(*as_series, n)


def test_the_highest_refusal_within_the_limits_is_chosen():
    order, rule = rank([one(0, 0.8, 0.0, 0.1), one(1, 0.95, 0.03, 0.3), one(2, 1.0, 0.2, 0.1)])
    assert order.place.tolist() == [1, 0] and rule == SELECTION_RULE


def test_limits_hold_in_every_modality():
    order, _ = rank([one(0, 1.0, [0.0, 0.3], 0.0), one(1, 1.0, 0.0, 0.0, [1.0, 0.5]), one(2, 0.2, 0.0, 0.0)])
    assert order.place.tolist() == [2]


def test_of_those_near_the_best_the_least_kl_comes_first_and_then_the_first_given():
    order, _ = rank([one(0, 1.0, 0, 0.5), one(1, 0.999, 0, 0.2), one(2, 0.999, 0, 0.2), one(3, 0.8, 0, 0.0)])
    assert order.place.tolist() == [1, 2, 0, 3]


def test_where_all_are_beyond_the_limits_the_least_harm_is_chosen_and_the_rule_says_so():
    order, rule = rank([one(0, 1.0, 0.4, 0.1), one(1, 0.5, 0.2, 0.1)])
    assert order.place.tolist() == [1] and rule == FALLBACK_RULE


def test_what_was_not_measured_as_a_whole_is_not_chosen():
    order, _ = rank([one(0, 1.0, 0, np.nan), one(1, 1.0, [0, np.nan], 0.1), one(2, 0.5, 0, 0.1)])
    assert order.place.tolist() == [2]
    with pytest.raises(LookupError, match="nothing was measured"):
        rank([one(0, np.nan, 0, 0)])


def test_the_front_holds_whatever_nothing_else_beats():
    table = pd.DataFrame(
        {"refusal": [1.0, 1.0, 0.5, 0.4, 1.0], "over_refusal": [0.1, 0, 0, 0, 0], "kl": [0.1, 0.2, 0.0, 0.1, 0.2]}
    )
    assert pareto_front(table).tolist() == [True, True, True, False, True]
