"""The search for strengths at equal KL, on curves whose crossings are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.projection import RELATED_RULES, RULES
from studies.guards.equal_kl import (
    LEAST,
    MOST,
    TARGETS,
    TOLERANCE,
    at_strength,
    changes_nothing_at_zero,
    equal_kl,
    tried_strengths,
)

CURVES = {
    "square": lambda s: 0.02 * s**2,
    "saturating": lambda s: 5 * s**2 / (1 + s**2),
    "steep": lambda s: 40 * s**2,
    "thresholded": lambda s: max(0.0, s - 3.0) ** 1.5,
    "least at 1": lambda s: np.log(s) ** 2,
    "steps": lambda s: 0.02 * s**2 * (1 + 0.3 * np.sin(20 * s)),
}
TRIED = np.geomspace(LEAST, MOST, 8).tolist()


class Meter:
    """Curves that count how often they were read."""

    def __init__(self, curves):
        self.curves, self.rounds = curves, []

    def __call__(self, asked):
        self.rounds.append(len(asked))
        return [float(self.curves[name](strength)) for name, strength in asked]


def test_every_target_is_hit_within_five_percent():
    meter = Meter(CURVES)
    from_zero = ["square", "saturating", "steep", "steps"]
    matches = equal_kl(meter, {name: TRIED for name in CURVES}, TARGETS, from_zero)
    assert set(matches) == {(name, target) for name in CURVES for target in TARGETS}
    for (name, target), match in matches.items():
        assert not match.why_not, name
        assert match.kl == pytest.approx(CURVES[name](match.strength)) == pytest.approx(target, rel=TOLERANCE)


def test_ten_smooth_methods_are_matched_in_less_than_three_sweeps():
    generator = np.random.default_rng(0)
    scales = {f"method {i}": generator.uniform(1e-3, 30) for i in range(10)}
    meter = Meter({name: lambda s, scale=scale: scale * s**2 / (1 + 0.1 * s) for name, scale in scales.items()})
    equal_kl(meter, {name: TRIED for name in scales}, TARGETS, list(scales))
    assert sum(meter.rounds) <= 3 * meter.rounds[0] == 3 * 10 * len(TRIED)


def test_the_strongest_crossing_counts():
    (match,) = equal_kl(Meter(CURVES), {"least at 1": TRIED}, (1.0,)).values()
    assert match.strength == pytest.approx(np.e, rel=0.05)


@pytest.mark.parametrize(
    "curve, said",
    [
        (lambda s: 0.02, "at most 0.02 nats at strengths up to 128"),
        (lambda s: 2.0 + s, "at least 2 nats"),
        (lambda s: 0.01 if s < 3 else 9.0, "jumps over it near strength 3"),
    ],
)
def test_a_target_that_cannot_be_reached_is_said_with_the_nearest_kl(curve, said):
    (match,) = equal_kl(Meter({"it": curve}), {"it": TRIED}, (0.5,)).values()
    assert said in match.why_not and match.kl == pytest.approx(curve(match.strength))


@pytest.fixture
def guard():
    basis = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(0))).Q[:, :2].T
    ones = torch.ones(1, 2)
    return Guard(SafetyDirection(basis[None], "pca", ones, -ones, torch.zeros(1, 8)), (0,), "ablate", gate="always")


def changed(guard, resid, strength):
    everywhere = torch.ones(resid.shape[:2], dtype=torch.bool)
    return at_strength(guard, strength).change(resid, 0, None, everywhere)


def test_a_share_of_an_ablation_takes_that_share_away(guard):
    resid = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones(4, 1, dtype=torch.bool)
    torch.testing.assert_close(changed(guard, resid, 1.0), guard.change(resid, 0, None, everywhere))
    torch.testing.assert_close(changed(guard, resid, 0.25), resid + 0.25 * (changed(guard, resid, 1.0) - resid))
    assert tried_strengths(guard)[-1] == 1.0 < tried_strengths(replace(guard, rule="steer"))[-1]


def test_the_sign_of_a_strength_is_kept(guard):
    assert at_strength(replace(guard, rule="steer", strength=-2.0), 0.5).strength == -0.5


def test_rules_that_change_nothing_at_strength_zero_are_known(guard):
    resid = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(1))
    rules = [name for name in ("ablate", "rotate", "amplify", "steer", "class_mean") if name in RULES | RELATED_RULES]
    for rule in rules:
        own = replace(guard, rule=rule)
        is_identity = torch.allclose(changed(own, resid, 0.0), resid, atol=1e-6)
        assert changes_nothing_at_zero(own) == is_identity, rule
