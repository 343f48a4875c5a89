"""Verdicts find planted outcomes: equal rates are reproduced, others differ, and other judges are named."""

import numpy as np
import pytest

from probes import newcombe_interval
from studies.presets.preset import PublishedTarget
from studies.presets.verdicts import (
    DIFFERS,
    JUDGE_DIFFERS,
    NOT_MEASURED,
    QUICK,
    REPRODUCED,
    OurResult,
    verdict_on,
)

N_RUNS, N = 200, 572


ABOUT = {"id": "t", "data": "d", "source": "tests", "read_in": "P"}


def rate(value, n=N):
    return PublishedTarget(**ABOUT, measure="rate", value=value, n=n, judge="keywords")


def cosine(value, at_least=None):
    return PublishedTarget(**ABOUT, measure="cosine", value=value, at_least=at_least)


def runs(value, shift, n=N):
    """Verdicts on simulated runs of a model whose rate is `value + shift`."""
    hits = np.random.default_rng(0).binomial(n, value + shift, N_RUNS)
    return [verdict_on(rate(value), OurResult(h / n, 0.0, 1.0, n, "keywords@2")).verdict for h in hits]


@pytest.mark.parametrize("value", [0.02, 0.253, 0.5, 0.9])
def test_a_target_that_agrees_is_reproduced(value):
    assert np.mean([verdict == REPRODUCED for verdict in runs(value, 0)]) >= 0.95


@pytest.mark.parametrize("value", [0.253, 0.5, 0.7])
def test_a_target_that_is_off_by_a_fifth_differs(value):
    assert np.mean([verdict == DIFFERS for verdict in runs(value, 0.2)]) >= 0.95
    assert np.mean([verdict == DIFFERS for verdict in runs(value, -0.2)]) >= 0.95


def test_another_judge_a_part_of_the_requests_and_another_model_are_not_compared():
    same = OurResult(0.5, 0.4, 0.6, N, "keywords@2")
    assert verdict_on(rate(0.5), same).verdict == REPRODUCED
    other = verdict_on(rate(0.5), OurResult(0.5, 0.4, 0.6, N, "xstest@1"))
    assert other.verdict == JUDGE_DIFFERS and "keywords" in other.reason
    quick = verdict_on(rate(0.5), same, (QUICK, ""))
    assert quick.verdict == QUICK and quick.ours == 0.5
    missing = verdict_on(rate(0.5), None, (NOT_MEASURED, "data 'd' is missing"))
    assert (missing.verdict, missing.reason) == (NOT_MEASURED, "data 'd' is missing") and np.isnan(missing.ours)


def test_the_same_rubric_with_another_model_is_another_judge():
    target = rate(0.5).model_copy(update={"judge": "llama_guard", "judge_model": "meta-llama/Meta-Llama-Guard-2-8B"})
    by_model = {
        name: verdict_on(target, OurResult(0.5, 0.4, 0.6, N, f"llama_guard@2:{name}")).verdict
        for name in ("Meta-Llama-Guard-2-8B", "Llama-Guard-3-8B")
    }
    assert by_model == {"Meta-Llama-Guard-2-8B": REPRODUCED, "Llama-Guard-3-8B": JUDGE_DIFFERS}


@pytest.mark.parametrize(("value", "unjudged"), [(0.5, 0.5), (float("nan"), 1.0)])
def test_a_rate_over_answers_that_nobody_judged_is_not_compared(value, unjudged):
    verdict = verdict_on(rate(0.5), OurResult(value, 0.4, 0.6, N, "keywords@2", unjudged))
    assert verdict.verdict == NOT_MEASURED and f"{unjudged:.0%} of the answers have no verdict" in verdict.reason


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (cosine(1.0, at_least=0.99), 0.995, REPRODUCED),
        (cosine(1.0, at_least=0.99), 0.98, DIFFERS),
        (cosine(0.9), 0.87, REPRODUCED),
        (cosine(0.9), 0.7, DIFFERS),
    ],
)
def test_cosines_reach_what_was_asked_or_are_near(target, value, verdict):
    assert verdict_on(target, OurResult(value, value - 0.02, value + 0.02, 20)).verdict == verdict


def test_newcombes_interval_is_that_of_his_paper():
    # Newcombe 1998, table II, example a: 56/70 and 48/80, method 10.
    assert newcombe_interval((56, 70), (48, 80)) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    # Example e: 10/10 and 0/20.
    assert newcombe_interval((10, 10), (0, 20)) == pytest.approx((0.6791, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="0 observations"):
        newcombe_interval((0, 0), (1, 2))
