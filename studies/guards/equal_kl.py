"""The strength at which a guard moves the model as far as a target: equal KL, found for many guards at once.

Guards are tried at a few strengths, all on one prefill; then every target that lies between two of them is closed in
on, by interpolation and bisection, one round for all guards and targets that are left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from interp import Guard
from interp.projection import RELATED_RULES, RULES

TARGETS = (0.1, 0.3, 1.0)
"""Targets in nats."""
TOLERANCE = 0.05
"""Largest difference from a target, relative to it, that counts as reached."""
QUANTILE = 0.95
"""Quantile of the KL over all tokens of all prompts that has to reach the target."""
N_TRIED = 8
"""Strengths that every guard is tried at first."""
LEAST, MOST = 1 / 32, 128.0
"""Range of these strengths, evenly spaced in their logarithm."""
ROUNDS = 24
"""Most rounds of closing in."""
SHARES = ("ablate", "rotate")
"""Rules whose change can be made by a share of it only, up to all."""
NARROWEST = 1e-4
"""Relative width of a bracket in which a KL that still isn't near its target jumps over it."""
Measure = Callable[[Sequence[tuple[str, float]]], Sequence[float]]
"""KL of guards by name, each at a strength."""


@dataclass(frozen=True)
class Match:
    """The strength that came nearest to a target."""

    strength: float
    kl: float
    """KL at this strength, nats."""
    why_not: str = ""
    """Reason why the target can't be reached; empty if it is."""


def at_strength(guard: Guard, strength: float) -> Guard:
    """Return a guard with another strength, from 0 to 1 for rules of `SHARES`; the sign of its own strength is kept.

    `ablate` has no strength: a share of it is the rule `amplify` with a negative one, which takes away that share.
    """
    if guard.rule == "ablate":
        return replace(guard, rule="amplify", strength=-strength)
    return replace(guard, strength=float(np.copysign(strength, guard.strength)))


def tried_strengths(guard: Guard) -> tuple[float, ...]:
    """Return the strengths that a guard is tried at first, in ascending order."""
    low, high = (LEAST, 1.0) if guard.rule in SHARES else (LEAST, MOST)
    return tuple(np.geomspace(low, high, N_TRIED).tolist())


def changes_nothing_at_zero(guard: Guard) -> bool:
    """Tell whether the guard's rule leaves states as they are at strength 0; else its KL need not be small there."""
    if guard.rule in SHARES:
        return True
    return (RULES | RELATED_RULES)[guard.rule].formula.startswith(("c ", "(1 + α) c"))


def equal_kl(
    measure: Measure, tried: Mapping[str, Sequence[float]], targets: Sequence[float], from_zero: Sequence[str] = ()
) -> dict[tuple[str, float], Match]:
    """Find the strength at which the KL of each guard reaches each target, within `TOLERANCE`.

    Where the KL crosses a target several times, the strongest crossing from below counts.

    Args:
        measure: measures any number of guards at once, nats.
        tried: strengths by the name of the guard, positive and in ascending order.
        targets: in nats.
        from_zero: names of guards whose KL is 0 at strength 0.

    Returns:
        A match for each name and target.
    """
    curves = {name: _Curve({0.0: 0.0} if name in from_zero else {}) for name in tried}
    first = [(name, strength) for name, strengths in tried.items() for strength in strengths]
    _add(curves, first, measure(first))
    for i in range(ROUNDS):
        wanted = {
            (name, strength)
            for name, curve in curves.items()
            for target in targets
            if (strength := curve.next_strength(target, by_bisection=i % 3 == 2)) is not None
        }
        if not wanted:
            break
        _add(curves, sorted(wanted), measure(sorted(wanted)))
    return {(name, target): curve.match(target) for name, curve in curves.items() for target in targets}


@dataclass(frozen=True)
class _Curve:
    """KL of one guard by strength, as far as it has been measured."""

    points: dict[float, float] = field(default_factory=dict)

    def match(self, target: float) -> Match:
        """Return the point that is nearest to a target, and why it isn't near enough if it isn't."""
        # Of points that are equally near, the strongest: it is next to the place where the KL jumps.
        positive = sorted((each for each in self.points if each > 0), reverse=True)
        strength = min(positive, key=lambda each: abs(self.points[each] - target))
        kl = self.points[strength]
        if abs(kl - target) <= TOLERANCE * target:
            return Match(strength, kl)
        values = [value for value in self.points.values() if np.isfinite(value)]
        tried = f"at strengths up to {max(self.points):.3g}"
        if not values or max(values) < target:
            return Match(strength, kl, f"at most {max(values, default=np.nan):.2g} nats {tried}")
        if min(values) > target:
            return Match(strength, kl, f"at least {min(values):.2g} nats {tried}")
        return Match(strength, kl, f"jumps over it near strength {strength:.3g}")

    def next_strength(self, target: float, by_bisection: bool) -> float | None:
        """Return the strength to measure next for a target; None if it is reached, or can't be."""
        if not self.match(target).why_not:
            return None
        if (bracket := self._bracket(target)) is None:
            return None
        low, high = bracket
        if high - low <= NARROWEST * high:
            return None
        below, above = self.points[low], self.points[high]
        if low == 0:
            # Near 0 the KL grows with the square of a change.
            return high / 2 if by_bisection else high * max(0.1, min(0.9, np.sqrt(target / above)))
        if by_bisection or below <= 0:
            return float(np.sqrt(low * high))
        share = np.log(target / below) / np.log(above / below)
        return float(low * (high / low) ** min(0.98, max(0.02, share)))

    def _bracket(self, target: float) -> tuple[float, float] | None:
        """Return the strongest two neighbours of which the first is below the target and the second above it."""
        strengths = sorted(self.points)
        pairs = list(zip(strengths, strengths[1:], strict=False))
        return next((pair for pair in reversed(pairs) if self.points[pair[0]] < target <= self.points[pair[1]]), None)


def _add(curves: Mapping[str, _Curve], asked: Sequence[tuple[str, float]], measured: Sequence[float]) -> None:
    for (name, strength), kl in zip(asked, measured, strict=True):
        curves[name].points[strength] = float(kl)
