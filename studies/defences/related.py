"""Related methods as rivals of the guard: their published settings, and grids to tune them on validation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from interp import Guard, SafetyDirection
from interp.display import layers_in_words
from interp.related_methods import astra, cmrm, infer_aligner, shift_dc
from studies.defences.defence import UNTUNED
from studies.guards.choice_rule import FALLBACK_RULE, Finalist
from studies.guards.configuration import GuardConfiguration

OWN_REFERENCE = {"shift_dc": "prompt_text+caption"}
"""References of the methods that don't read the guard's."""
SIGNED = ("cmrm", "astra")
"""Methods whose sign is tuned too: CMRM's is printed both ways, and ASTRA's direction is fitted on other data here."""
STRENGTHS = (0.125, 8.0)
"""Least and greatest strength that is tried; the published one is 1."""
MOST_STRENGTHS = 8
"""Most strengths at the same layers, for each sign: then the next one is at most 1.8 times as strong."""
Layers = tuple[int, ...]


@dataclass(frozen=True)
class RelatedMethod:
    """A method from another paper, as a guard."""

    name: str
    guard: Guard
    tuning: str = UNTUNED
    """Settings that were chosen on validation, and from how many configurations."""


def published(n_layers: int, text: xr.Dataset, blank: xr.Dataset) -> list[RelatedMethod]:
    """Fit ShiftDC, CMRM, InferAligner and ASTRA at the layers of their papers, with strength 1; nothing is tuned.

    Args:
        n_layers: number of layers of the model.
        text: traced anchors as text; all but CMRM use their mean difference.
        blank: the same anchors with a meaningless picture, which CMRM uses.
    """
    methods, own_layers = _methods(text, blank), _published_layers(n_layers)
    return [RelatedMethod(name, method(own_layers[name])) for name, method in methods.items()]


def grids(
    text: xr.Dataset, blank: xr.Dataset, windows: Sequence[Layers], n_configurations: int
) -> Mapping[str, list[GuardConfiguration]]:
    """Return configurations of each method, by its name, the published one first.

    The budget is the guard's: layers are those that it was tried at, and strengths, evenly spaced in their logarithm,
    are as many as give its number of configurations, up to `MOST_STRENGTHS`. Rules and gates are part of a method, so
    where the guard had several of them it was tried in more configurations. ASTRA acts at one layer.

    Args:
        text: traced anchors as text.
        blank: the same anchors with a meaningless picture.
        windows: layers of each configuration of the guard, without repetitions.
        n_configurations: number of configurations that the guard was chosen from.
    """
    n_layers, by_name = text.sizes["layer"], {}
    for name, method in _methods(text, blank).items():
        own = [layers for layers in windows if name != "astra" or len(layers) == 1]
        guards = [method(_published_layers(n_layers)[name])]
        for layers in own:
            guard = method(layers)
            strengths = _strengths(name, round(n_configurations / len(own)))
            guards += [replace(guard, strength=strength) for strength in strengths]
        by_identity: dict[tuple, GuardConfiguration] = {}
        for guard in guards:
            configuration = GuardConfiguration("tuned", guard, OWN_REFERENCE.get(name))
            # The published setting may be in the grid too.
            by_identity.setdefault(configuration.identity, configuration)
        by_name[name] = list(by_identity.values())
    return by_name


def tuned(name: str, best: Finalist, n_configurations: int) -> RelatedMethod:
    """Return a method with the configuration that was chosen for it on validation, from so many."""
    guard = best.configuration.guard
    chosen = f"{layers_in_words(guard.layers)}, strength {guard.strength:.3g}: {best_of(n_configurations)}"
    is_beyond = (best.mark or "").startswith(FALLBACK_RULE)
    return RelatedMethod(name, guard, f"{chosen}, none within the limits" if is_beyond else chosen)


def best_of(n_configurations: int) -> str:
    """Say what was chosen from how many configurations, for the column `tuning`."""
    return f"best of {n_configurations} on validation"


def _methods(text: xr.Dataset, blank: xr.Dataset) -> dict[str, Callable[[Layers], Guard]]:
    """Return the methods as functions of their layers."""
    direction = SafetyDirection.fit(text, "mean_diff")
    return {
        "shift_dc": lambda layers: shift_dc(direction, layers),
        "cmrm": lambda layers: cmrm(text, blank, layers),
        "infer_aligner": lambda layers: infer_aligner(direction, layers),
        "astra": lambda layers: astra(direction, layers[0]),
    }


def _published_layers(n_layers: int) -> dict[str, Layers]:
    upper = tuple(range(n_layers // 2, n_layers))
    return {
        "shift_dc": upper,
        "cmrm": tuple(range(n_layers)),
        "infer_aligner": upper,
        "astra": (n_layers // 2,),
    }


def _strengths(name: str, n: int) -> list[float]:
    """Return about n strengths, half of them negative for methods whose sign is tuned."""
    n_each = min(MOST_STRENGTHS, max(1, round(n / 2) if name in SIGNED else n))
    sizes = np.geomspace(*STRENGTHS, n_each).tolist() if n_each > 1 else [1.0]
    return [sign * size for sign in ((1, -1) if name in SIGNED else (1,)) for size in sizes]
