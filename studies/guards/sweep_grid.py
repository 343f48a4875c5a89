"""Axes of a sweep -> its configurations."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, product
from math import inf

from interp.directions import ESTIMATORS, SINGLE
from interp.guard import POSITIONS, Guard
from interp.projection import GATE_SCOPES, GATES, RULES
from interp.token_positions import TraceError
from interp.vlm import LLM
from studies.bookkeeping.typed_lists import numbers, words
from studies.experiment.experiment import Experiment
from studies.guards.anchor_fits import AnchorFits, gated, known_estimators
from studies.guards.configuration import GuardConfiguration

SOURCES = ("vlm_text", "llm")
OWN = "own"
"""In words: directions of the layer that they are applied at."""
FIT_TOKENS = ("last", "instruction")
"""Where directions are fitted."""
Axis = tuple | list | str | int | float | None
"""What stands on an axis; one value by itself is an axis too."""


class GridError(ValueError):
    """A sweep of these axes can't be run; says why."""


@dataclass(frozen=True)
class Grid:
    """What is varied, all with all. What does not exist (rank 2 of a mean difference) is left out, and counted."""

    layers: Axis = ("single",)
    """`single` layers, `every:N`-th of them, `windows:N` of N neighbours, `start-to-end` (from each to the last),
    `middle-to-last`, or single layers by number, as `0,5,8-12`."""
    direction_layers: Axis = (None,)
    """Where the direction is fitted; None for the layer that it is applied at."""
    rules: Axis = ("ablate", "substitute")
    gates: Axis = ("sign",)
    scopes: Axis = ("change",)
    ranks: Axis = (1,)
    estimators: Axis = (None,)
    """None for the paper's, or the mean difference where anchors are not paired."""
    sources: Axis = ("vlm_text",)
    tokens: Axis = ("last",)
    positions: Axis = ("last_prefill",)
    strengths: Axis = (1.0,)

    def __post_init__(self) -> None:
        """One value by itself becomes an axis.

        Raises:
            GridError: an axis with nothing on it, or something on it that does not exist.
        """
        known = {
            "rules": RULES,
            "gates": GATES,
            "scopes": GATE_SCOPES,
            "estimators": (None, *ESTIMATORS),
            "sources": SOURCES,
            "tokens": FIT_TOKENS,
            "positions": POSITIONS,
        }
        for axis in fields(self):
            given = _as_axis(axis.name, getattr(self, axis.name))
            object.__setattr__(self, axis.name, given)
            if not given:
                raise GridError(f"a grid with no {axis.name}; expected one at least")
            strange = [one for one in given if one not in known.get(axis.name, given)]
            if strange:
                expected = ", ".join(str(one) for one in known[axis.name] if one is not None)
                raise GridError(f"{axis.name} {strange} do not exist; expected some of {expected}")
        if any(rank < 1 for rank in self.ranks) or any(not 0 <= strength < inf for strength in self.strengths):
            raise GridError(f"ranks {self.ranks}, strengths {self.strengths}; expected ranks from 1, strengths from 0")

    @classmethod
    def of(cls, given: Mapping[str, str], base: "Grid") -> "Grid":
        """A grid in words, as `substitute,ablate`; axes that are not given are those of another.

        Raises:
            GridError: numbers that are none, or what `Grid` raises.
        """
        read = {"ranks": int, "strengths": float}
        made = {}
        for axis, text in given.items():
            try:
                if axis == "layers":
                    made[axis] = tuple(text.split())
                elif axis == "direction_layers":
                    by_word = ((None,) if word == OWN else numbers(word) for word in words(text))
                    made[axis] = tuple(chain.from_iterable(by_word))
                else:
                    made[axis] = tuple(read.get(axis, str)(word) for word in words(text))
            except ValueError as error:
                raise GridError(f"{axis} {text!r}: {error}") from error
        return replace(base, **made)

    def windows(self, n_layers: int) -> list[tuple[int, ...]]:
        """Layers of each guard.

        Raises:
            GridError: layers that the model does not have, or words that mean none.
        """
        every, found = range(n_layers), []
        for word in self.layers:
            kind, _, size = word.partition(":")
            if kind == "single":
                found += [(layer,) for layer in every]
            elif kind == "every" and size.isdecimal() and int(size) > 0:
                found += [(layer,) for layer in every[:: int(size)]]
            elif kind == "windows" and size.isdecimal() and 0 < int(size) <= n_layers:
                found += [tuple(range(start, start + int(size))) for start in range(n_layers - int(size) + 1)]
            elif word == "start-to-end":
                found += [tuple(range(start, n_layers)) for start in every]
            elif word == "middle-to-last":
                found.append(tuple(range(n_layers // 2, n_layers)))
            else:
                found += [(layer,) for layer in _numbered(word, n_layers)]
        return list(dict.fromkeys(found))

    def check(self, material: Experiment) -> None:
        """Whether anything of it can be run on this model, before anything is.

        Raises:
            GridError: layers that do not exist, or nothing is left.
        """
        sources = ("vlm_text", "llm") if isinstance(material.scorer, LLM) else ("vlm_text",)
        estimators = known_estimators(material.vlm.d_model, material.is_paired)
        self._combinations(material.vlm.n_layers, estimators, sources)

    def configurations(self, made: AnchorFits) -> tuple[list[GuardConfiguration], Counter]:
        """Each once, and how many combinations were left out for which reason.

        Args:
            made: directions, and what they are fitted on.

        Raises:
            GridError: layers that do not exist, or nothing is left.
        """
        n_layers, found = made.anchors["vlm_text"].sizes["layer"], {}
        combinations, left_out = self._combinations(n_layers, made.estimators, tuple(made.anchors))
        for layers, fitted_at, rule, gate, scope, rank, estimator, source, token, positions, strength in combinations:
            guard = Guard(
                made.direction(estimator, rank, token, source),
                layers,
                rule,
                gate_scope=scope if gate != "always" else "change",
                positions=positions,
                direction_layer=None if layers == (fitted_at,) else fitted_at,
                strength=strength if RULES[rule].has_strength else 1.0,
            )
            reading = GuardConfiguration("ranked", gated(guard, gate, made, source), source=source)
            found.setdefault(reading.key("blank"), reading)
        return list(found.values()), left_out

    def _combinations(self, n_layers: int, estimators: Sequence[str], sources: Sequence[str]) -> tuple[list, Counter]:
        """All with all, less what does not exist.

        Raises:
            GridError: layers that do not exist, or nothing is left.
        """
        for fitted_at in self.direction_layers:
            if fitted_at is not None and not 0 <= fitted_at < n_layers:
                raise GridError(f"direction_layer {fitted_at} does not exist; layers go from 0 to {n_layers - 1}")
        kept, left_out = [], Counter()
        for one in product(self.windows(n_layers), *(getattr(self, axis.name) for axis in fields(self)[1:])):
            layers, fitted_at, rule, gate, scope, rank, estimator, source, *others = one
            estimator = estimator or estimators[0]
            if reason := _why_not(estimators, sources, rule, rank, estimator, source):
                left_out[reason] += 1
            else:
                kept.append((layers, fitted_at, rule, gate, scope, rank, estimator, source, *others))
        if not kept:
            raise GridError(f"nothing is left of the grid: {', '.join(left_out)}")
        return kept, left_out


def _as_axis(name: str, given: object) -> tuple:
    """One value by itself is an axis too; layers may be numbers."""
    several = given if isinstance(given, (tuple, list, range)) else (given,)
    return tuple(str(one) for one in several) if name == "layers" else tuple(several)


def _numbered(word: str, n_layers: int) -> list[int]:
    try:
        layers = numbers(word)
    except TraceError:
        layers = []
    if not layers:
        raise GridError(
            f"layers {word!r}; expected single, every:N, windows:N (N up to {n_layers}), start-to-end, middle-to-last, "
            "or numbers as 0,5,8-12"
        )
    absent = [layer for layer in layers if layer >= n_layers]
    if absent:
        raise GridError(f"layers {absent} do not exist; layers go from 0 to {n_layers - 1}")
    return layers


def _why_not(
    estimators: Sequence[str], sources: Sequence[str], rule: str, rank: int, estimator: str, source: str
) -> str | None:
    if rank > 1 and estimator in SINGLE:
        return f"{estimator} has one direction"
    if rank > 1 and "cosine" in RULES[rule].needs:
        return f"{rule} is for one direction"
    if estimator not in estimators:
        return f"{estimator} needs pairs of anchors" if estimator == "paired_svd" else f"{estimator} is too wide here"
    if source not in sources:
        return f"no checkpoint is known for source {source}"
    return None


def counted(left_out: Counter) -> str:
    return "; ".join(f"{n} left out: {reason}" for reason, n in left_out.items())
