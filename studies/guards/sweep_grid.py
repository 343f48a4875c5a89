"""The grid of a layer sweep: its axes, and the configurations that they combine to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from math import inf

from interp import ESTIMATORS, LLM, POSITIONS, SOURCES, Guard
from interp.projection import GATE_SCOPES, GATES, RULES
from studies.experiment.experiment import Experiment
from studies.guards.anchor_fits import FIT_TOKENS, AnchorFits, available_estimators, with_gate
from studies.guards.configuration import GuardConfiguration

Axis = tuple | list | str | int | float | None
"""Values of an axis; a single value is an axis too."""


class GridError(ValueError):
    """The axes do not make a sweep that can be run; the message says why."""


@dataclass(frozen=True)
class Grid:
    """Axes whose values are combined each with each.

    Combinations that do not exist, such as rank 2 of a mean difference, are left out and counted.
    """

    layers: Axis = ("single",)
    """`single` layers, `every:N` (each N-th layer), `spread:N` (N of them, at equal distances up to the last),
    `windows:N` of N adjacent layers, `start-to-end` (from each layer to the last), `middle-to-last`, or single layers
    by number such as `0,5,8-12`."""
    direction_layers: Axis = (None,)
    """Layers at which directions are fitted; None for the layer at which they are applied."""
    rules: Axis = ("ablate", "substitute")
    gates: Axis = ("sign",)
    scopes: Axis = ("change",)
    ranks: Axis = (1,)
    estimators: Axis = (None,)
    """Estimators of the direction; None for the paper's, or for the mean difference if anchors are not paired."""
    sources: Axis = ("vlm_text",)
    tokens: Axis = ("last",)
    positions: Axis = ("last_prefill",)
    strengths: Axis = (1.0,)

    def __post_init__(self) -> None:
        """Turn single values into axes, and check every value.

        Raises:
            GridError: an axis is empty or has a value that does not exist.
        """
        options = {
            "rules": RULES,
            "gates": GATES,
            "scopes": GATE_SCOPES,
            "estimators": (None, *ESTIMATORS),
            "sources": SOURCES,
            "tokens": FIT_TOKENS,
            "positions": POSITIONS,
        }
        for axis in fields(self):
            values = _as_axis(axis.name, getattr(self, axis.name))
            object.__setattr__(self, axis.name, values)
            if not values:
                raise GridError(f"a grid with no {axis.name}; expected one at least")
            unknown = [value for value in values if value not in options.get(axis.name, values)]
            if unknown:
                expected = ", ".join(str(value) for value in options[axis.name] if value is not None)
                raise GridError(f"{axis.name} {unknown} do not exist; expected some of {expected}")
        if any(rank < 1 for rank in self.ranks) or any(not 0 <= strength < inf for strength in self.strengths):
            raise GridError(f"ranks {self.ranks}, strengths {self.strengths}; expected ranks from 1, strengths from 0")

    def windows(self, n_layers: int) -> list[tuple[int, ...]]:
        """Return the layers of each guard, without repetitions.

        Raises:
            GridError: a layer does not exist, or a word is not understood.
        """
        every, windows = range(n_layers), []
        for word in self.layers:
            kind, _, size = word.partition(":")
            if kind == "single":
                windows += [(layer,) for layer in every]
            elif kind == "every" and size.isdecimal() and int(size) > 0:
                windows += [(layer,) for layer in every[:: int(size)]]
            elif kind == "spread" and size.isdecimal() and int(size) > 0:
                windows += [(layer,) for layer in _spread(n_layers, int(size))]
            elif kind == "windows" and size.isdecimal() and 0 < int(size) <= n_layers:
                windows += [tuple(range(start, start + int(size))) for start in range(n_layers - int(size) + 1)]
            elif word == "start-to-end":
                windows += [tuple(range(start, n_layers)) for start in every]
            elif word == "middle-to-last":
                windows.append(tuple(range(n_layers // 2, n_layers)))
            else:
                windows += [(layer,) for layer in _numbered_layers(word, n_layers)]
        return list(dict.fromkeys(windows))

    def check(self, experiment: Experiment) -> None:
        """Check that something of the grid can be run on this model, before anything is run.

        Raises:
            GridError: a layer does not exist, or no combination is left.
        """
        sources = SOURCES if isinstance(experiment.scorer, LLM) else ("vlm_text",)
        estimators = available_estimators(experiment.vlm.d_model, experiment.is_paired)
        self._combinations(experiment.vlm.n_layers, estimators, sources)

    def configurations(self, fits: AnchorFits) -> tuple[list[GuardConfiguration], Counter]:
        """Fit the directions of the grid and build its configurations.

        Returns:
            Each configuration once, and how many combinations were left out for which reason.

        Raises:
            GridError: a layer does not exist, or no combination is left.
        """
        n_layers, by_key = fits.anchors["vlm_text"].sizes["layer"], {}
        combinations, left_out = self._combinations(n_layers, fits.estimators, tuple(fits.anchors))
        for layers, fitted_at, rule, gate, scope, rank, estimator, source, token, positions, strength in combinations:
            guard = Guard(
                fits.direction(estimator, rank, token, source),
                layers,
                rule,
                gate_scope=scope if gate != "always" else "change",
                positions=positions,
                direction_layer=None if layers == (fitted_at,) else fitted_at,
                strength=strength if RULES[rule].has_strength else 1.0,
            )
            configuration = GuardConfiguration("ranked", with_gate(guard, gate, fits, source), source=source)
            # A rule without a strength, or a gate without a scope, gives the same guard several times.
            by_key.setdefault(configuration.key("blank"), configuration)
        return list(by_key.values()), left_out

    def _combinations(self, n_layers: int, estimators: Sequence[str], sources: Sequence[str]) -> tuple[list, Counter]:
        """Combine each value with each, without the combinations that do not exist.

        Raises:
            GridError: a layer does not exist, or no combination is left.
        """
        for fitted_at in self.direction_layers:
            if fitted_at is not None and not 0 <= fitted_at < n_layers:
                raise GridError(f"direction_layer {fitted_at} does not exist; layers go from 0 to {n_layers - 1}")
        kept, left_out = [], Counter()
        for values in product(self.windows(n_layers), *(getattr(self, axis.name) for axis in fields(self)[1:])):
            layers, fitted_at, rule, gate, scope, rank, estimator, source, *rest = values
            estimator = estimator or estimators[0]
            if reason := _why_impossible(estimators, sources, rule, rank, estimator, source):
                left_out[reason] += 1
            else:
                kept.append((layers, fitted_at, rule, gate, scope, rank, estimator, source, *rest))
        if not kept:
            raise GridError(f"nothing is left of the grid: {', '.join(left_out)}")
        return kept, left_out


def _as_axis(name: str, values: object) -> tuple:
    """Return the values of an axis as a tuple; layers may be numbers and become words."""
    several = values if isinstance(values, (tuple, list, range)) else (values,)
    return tuple(str(value) for value in several) if name == "layers" else tuple(several)


def layer_numbers(text: str) -> list[int]:
    """Return the layers that `0,5,8-12` lists.

    Raises:
        ValueError: a part is neither a number nor a range from a lower to a higher one, or there is none.
    """
    bounds = [part.strip().partition("-") for part in text.split(",") if part.strip()]
    layers = []
    for first, hyphen, last in bounds:
        if not (first.isdecimal() and (last.isdecimal() or not hyphen)) or int(last or first) < int(first):
            raise ValueError(f"layers {text!r}; expected numbers and ranges, as 0,5,8-12")
        layers += range(int(first), int(last or first) + 1)
    if not layers:
        raise ValueError(f"layers {text!r}; expected numbers and ranges, as 0,5,8-12")
    return layers


def _spread(n_layers: int, n: int) -> list[int]:
    """Return `n` layers at equal distances up to the last one; all of them if there are no more."""
    return [(i + 1) * n_layers // min(n, n_layers) - 1 for i in range(min(n, n_layers))]


def _numbered_layers(word: str, n_layers: int) -> list[int]:
    """Return the layers of a word such as `0,5,8-12`.

    Raises:
        GridError: the word is not understood, or a layer does not exist.
    """
    try:
        layers = layer_numbers(word)
    except ValueError:
        raise GridError(
            f"layers {word!r}; expected single, every:N, spread:N, windows:N (N up to {n_layers}), start-to-end, "
            "middle-to-last, or numbers as 0,5,8-12"
        ) from None
    absent = [layer for layer in layers if layer >= n_layers]
    if absent:
        raise GridError(f"layers {absent} do not exist; layers go from 0 to {n_layers - 1}")
    return layers


def _why_impossible(
    estimators: Sequence[str], sources: Sequence[str], rule: str, rank: int, estimator: str, source: str
) -> str | None:
    """Say why a combination does not exist; None if it does."""
    if rank > 1 and not ESTIMATORS[estimator].any_rank:
        return f"{estimator} has one direction"
    if rank > 1 and "cosine" in RULES[rule].needs:
        return f"{rule} is for one direction"
    if estimator not in estimators:
        lacks_pairs = ESTIMATORS[estimator].needs_pairs
        return f"{estimator} needs pairs of anchors" if lacks_pairs else f"{estimator} is too wide here"
    if source not in sources:
        return f"no checkpoint is known for source {source}"
    return None


def summary_of(left_out: Counter) -> str:
    """Say how many combinations were left out, and why."""
    return "; ".join(f"{n} left out: {reason}" for reason, n in left_out.items())
