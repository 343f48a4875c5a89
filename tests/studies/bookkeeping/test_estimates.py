import numpy as np
import pytest

from studies.bookkeeping.estimates import mean, mean_share, rate


def test_the_interval_of_a_mean_kl_covers_what_it_says():
    """Sixty KL divergences, log-normal with sigma 2: the percentile bootstrap covers 0.73."""
    rng, n_simulated, truth = np.random.default_rng(1), 1000, 1e-4 * np.exp(2.0)
    rows = [mean("kl", 1e-4 * np.exp(2 * rng.normal(size=60))) for _ in range(n_simulated)]
    assert 0.925 <= np.mean([row["ci_low"] <= truth <= row["ci_high"] for row in rows]) <= 0.98


def test_values_that_are_not_finite_are_left_out():
    row = mean("kl", [1.0, np.nan, 3.0, np.inf])
    assert (row["value"], row["n"]) == (2.0, 2) and row["ci_low"] <= 2 <= row["ci_high"]
    empty = mean("kl", [np.nan])
    assert empty["n"] == 0 and np.isnan([empty["value"], empty["ci_low"], empty["ci_high"]]).all()
    equal = mean("tokens", np.array([7, 7, 7]))
    assert equal["ci_low"] == equal["value"] == equal["ci_high"] == 7
    assert mean("seconds", [0.1] * 60)["value"] == pytest.approx(0.1)


def test_a_rate_of_nothing_is_nan():
    assert rate("asr", [])["n"] == 0 and np.isnan(rate("asr", [])["value"])
    assert rate("asr", [True, False])["value"] == 0.5


def test_the_interval_of_a_mean_share_covers_and_has_a_width_at_its_limits():
    rng, n_simulated = np.random.default_rng(2), 1000
    # Of each of 40 requests, 5 draws that succeed with a probability of the request's own, 0.3 on average.
    shares = rng.binomial(5, rng.beta(0.3, 0.7, (n_simulated, 40))) / 5
    rows = [mean_share("asr", own) for own in shares]
    assert np.mean([row["ci_low"] <= 0.3 <= row["ci_high"] for row in rows]) >= 0.94
    assert mean_share("asr", np.zeros(10))["ci_high"] == pytest.approx(rate("asr", [False] * 10)["ci_high"])
    assert mean_share("asr", np.full(60, 0.2))["ci_high"] == rate("asr", [True] * 12 + [False] * 48)["ci_high"]
    assert mean_share("asr", np.zeros(0))["n"] == 0
