import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from probes import cohen_kappa, holm, mcnemar
from probes.paired import tango_interval


def paired(n_both, n_first, n_second, n_neither):
    first = np.repeat([True, True, False, False], [n_both, n_first, n_second, n_neither])
    second = np.repeat([True, False, True, False], [n_both, n_first, n_second, n_neither])
    return first, second


def test_mcnemar_is_a_sign_test_of_what_differs():
    result = mcnemar(*paired(20, 12, 2, 16))
    assert (result.n_first, result.n_second, result.n, result.difference) == (12, 2, 50, 0.2)
    assert result.p_value == pytest.approx(binomtest(12, 14).pvalue)
    swapped = mcnemar(*reversed(paired(20, 12, 2, 16)))
    assert swapped.p_value == result.p_value and swapped.low == pytest.approx(-result.high)


def test_the_limits_are_where_the_score_test_starts_to_reject():
    """A fine search over differences, with the nuisance rate estimated by brute force, gives the same limits."""
    n_first, n_second, n, z = 9, 4, 40, 1.959964
    rates = np.linspace(1e-6, 1, 4001)
    kept = []
    for difference in np.linspace(-0.5, 0.7, 601):
        p_second = rates[(rates + difference >= 0) & (2 * rates + difference <= 1)]
        p_first, same = p_second + difference, 1 - 2 * p_second - difference
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = (
                n_first * np.log(p_first) + n_second * np.log(p_second) + (n - n_first - n_second) * np.log(same)
            )
        best = p_second[np.nanargmax(likelihood)]
        variance = (2 * best + difference - difference**2) / n
        if abs((n_first - n_second) / n - difference) <= z * np.sqrt(variance):
            kept.append(difference)
    assert tango_interval(n_first, n_second, n) == pytest.approx((kept[0], kept[-1]), abs=0.003)


def test_where_nothing_differs_there_is_still_an_interval():
    result = mcnemar(*paired(5, 0, 0, 15))
    assert result.p_value == 1 and result.difference == 0
    # Closed form of the score test: z^2 / (n + z^2).
    assert (result.low, result.high) == pytest.approx((-3.8415 / 23.8415, 3.8415 / 23.8415), abs=1e-4)


def test_limits_stay_between_minus_one_and_one():
    result = mcnemar(*paired(0, 20, 0, 0))
    # Closed form of the score test: (n - z^2) / (n + z^2).
    assert result.high == 1 and result.low == pytest.approx((20 - 3.8415) / (20 + 3.8415), abs=1e-4)
    assert tango_interval(0, 20, 20) == (-1, pytest.approx(-result.low))


@pytest.mark.parametrize("rates", [(0.4, 0.2, 0.05, 0.35), (0.05, 0.02, 0.02, 0.91), (0.0, 0.5, 0.1, 0.4)])
@pytest.mark.parametrize("n", [30, 120])
def test_the_interval_of_the_difference_covers(rates, n):
    draws = np.random.default_rng(0).multinomial(n, rates, 600)
    limits = {(int(b), int(c)): tango_interval(int(b), int(c), n) for _, b, c, _ in draws}
    intervals = [limits[int(b), int(c)] for _, b, c, _ in draws]
    covered = np.mean([low <= rates[1] - rates[2] <= high for low, high in intervals])
    # Three standard errors of 600 draws below 0.95.
    assert covered > 0.92


def test_holm_is_bonferroni_for_the_smallest_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and len(holm([])) == 0
    with_gap = holm([0.01, np.nan, 0.03])
    assert with_gap[[0, 2]] == pytest.approx([0.02, 0.03]) and np.isnan(with_gap[1])


def test_holm_controls_the_chance_of_a_false_alarm():
    p_values = np.random.default_rng(0).random((2000, 8))
    # Three standard errors of 2000 draws above 0.05.
    assert np.mean([holm(row).min() < 0.05 for row in p_values]) < 0.065
    assert np.mean(p_values.min(axis=1) < 0.05) > 0.3


def test_kappa_equals_scikit_learns():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 3, 80), rng.integers(0, 3, 80)
    second[:40] = first[:40]
    value, low, high = cohen_kappa(first, second)
    assert value == pytest.approx(cohen_kappa_score(first, second)) and low < value < high


def test_kappa_of_identical_judges_has_an_interval_and_of_one_class_no_value():
    same = np.array([True] * 10 + [False] * 10)
    assert cohen_kappa(same, same)[::2] == (1, 1) and 0.6 < cohen_kappa(same, same)[1] < 0.8
    assert np.isnan(cohen_kappa(np.ones(5), np.ones(5))).all()


@pytest.mark.parametrize(("agreement", "share"), [(0.9, 0.5), (0.8, 0.2), (0.97, 0.5)])
def test_the_interval_of_kappa_covers(agreement, share):
    rng, n = np.random.default_rng(0), 100
    truth = rng.random((800, n)) < share
    other = np.where(rng.random((800, n)) < agreement, truth, ~truth)
    share_of_other = share * agreement + (1 - share) * (1 - agreement)
    by_chance = share * share_of_other + (1 - share) * (1 - share_of_other)
    kappa = (agreement - by_chance) / (1 - by_chance)
    results = [cohen_kappa(first, second) for first, second in zip(truth, other, strict=True)]
    assert np.mean([low <= kappa <= high for _, low, high in results]) > 0.92


@pytest.mark.parametrize("compare", [mcnemar, cohen_kappa])
def test_zero_cases_are_rejected(compare):
    with pytest.raises(ValueError, match="0 cases; .* on at least one"):
        compare(np.ones(0, bool), np.ones(0, bool))
