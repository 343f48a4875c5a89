"""Related methods as rivals of the guard: their published settings, and grids to tune them on validation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import xarray as xr
from torch import Tensor

from interp import Guard, SafetyDirection
from interp.display import layers_in_words
from interp.related_directions import angular_plane, drift_direction, modality_shift, null_space_direction
from interp.related_methods import (
    alpha_steer,
    angular_steering,
    astra,
    cmrm,
    infer_aligner,
    re_gap,
    refusal_cone,
    shift_dc,
    tbop,
)
from studies.defences.defence import UNTUNED
from studies.guards.choice_rule import FALLBACK_RULE, Finalist
from studies.guards.configuration import GuardConfiguration

OWN_REFERENCE = {"shift_dc": "prompt_text+caption"}
"""References of the methods that don't read the guard's."""
SIGNED = ("cmrm", "astra")
"""Methods whose sign is tuned too: CMRM's is printed both ways, and ASTRA's direction is fitted on other data here."""
STRENGTHS = (0.125, 8.0)
"""Least and greatest strength that is tried; the published one is 1."""
TURNS = (0.125, 1.0)
"""The same for angular steering, whose strength is a share of an angle."""
ONE_LAYER = ("astra", "tbop")
"""Methods that act at one layer."""
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


def published(
    n_layers: int,
    text: xr.Dataset,
    blank: xr.Dataset,
    cone: Tensor | None = None,
    names: Sequence[str] = (),
) -> list[RelatedMethod]:
    """Fit related methods at the layers of their papers, with strength 1; nothing is tuned.

    Args:
        n_layers: number of layers of the model.
        text: traced anchors as text.
        blank: the same anchors with a meaningless picture, for methods that are about pictures.
        cone: vectors of a refusal cone, see `SafetyDirection.from_basis`; None leaves that method out.
        names: names of methods, other names are passed over; all methods if there are none.
    """
    methods, own_layers = _methods(text, blank, cone, names), _published_layers(n_layers)
    return [RelatedMethod(name, method(own_layers[name])) for name, method in methods.items()]


def grids(
    text: xr.Dataset,
    blank: xr.Dataset,
    windows: Sequence[Layers],
    n_configurations: int,
    cone: Tensor | None = None,
    names: Sequence[str] = (),
) -> Mapping[str, list[GuardConfiguration]]:
    """Return configurations of each method, by its name, the published one first.

    The budget is the guard's: layers are those that it was tried at, and strengths, evenly spaced in their logarithm,
    are as many as give its number of configurations, up to `MOST_STRENGTHS`. Rules and gates are part of a method, so
    where the guard had several of them it was tried in more configurations. ASTRA and TBOP act at one layer, and TBOP
    has no strength.

    Args:
        text: traced anchors as text.
        blank: the same anchors with a meaningless picture.
        windows: layers of each configuration of the guard, without repetitions.
        n_configurations: number of configurations that the guard was chosen from.
        cone: see `published`.
        names: see `published`.
    """
    n_layers, by_name = text.sizes["layer"], {}
    for name, method in _methods(text, blank, cone, names).items():
        own = [layers for layers in windows if name not in ONE_LAYER or len(layers) == 1]
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


def _methods(
    text: xr.Dataset, blank: xr.Dataset, cone: Tensor | None, names: Sequence[str]
) -> dict[str, Callable[[Layers], Guard]]:
    """Return methods as functions of their layers.

    A direction is fitted once, when a method first needs it: anchors that allow no fit for one method allow others.
    """
    direction = cache(lambda: SafetyDirection.fit(text, "mean_diff"))
    shift = cache(lambda: modality_shift(blank, text))
    on_text = cache(lambda: null_space_direction(text, text))
    on_pictures = cache(lambda: null_space_direction(text, blank))
    drift = cache(lambda: drift_direction(text, blank))
    plane = cache(lambda: angular_plane(text))
    methods = {
        "shift_dc": lambda layers: shift_dc(direction(), layers),
        "cmrm": lambda layers: cmrm(text, blank, layers),
        "infer_aligner": lambda layers: infer_aligner(direction(), layers),
        "astra": lambda layers: astra(direction(), layers[0]),
        "tbop": lambda layers: tbop(shift(), layers[0]),
        "alpha_steer": lambda layers: alpha_steer(on_text(), layers),
        "null_steer": lambda layers: alpha_steer(on_pictures(), layers),
        "re_gap": lambda layers: re_gap(drift(), layers),
        "angular_steering": lambda layers: angular_steering(plane(), layers),
    }
    if cone is not None:
        loaded = SafetyDirection.from_basis(text, cone, "refusal cone")
        methods["refusal_cone"] = lambda layers: refusal_cone(loaded, layers)
    return {name: method for name, method in methods.items() if not names or name in names}


def _published_layers(n_layers: int) -> dict[str, Layers]:
    upper, middle = tuple(range(n_layers // 2, n_layers)), tuple(range(n_layers // 4, max(1, 2 * n_layers // 3)))
    return {
        "shift_dc": upper,
        "cmrm": tuple(range(n_layers)),
        "infer_aligner": upper,
        "astra": (n_layers // 2,),
        "tbop": (max(0, n_layers - 2),),
        "alpha_steer": middle,
        "null_steer": middle,
        "re_gap": upper,
        "angular_steering": tuple(range(n_layers)),
        "refusal_cone": (n_layers // 2,),
    }


def _strengths(name: str, n: int) -> list[float]:
    """Return about n strengths, half of them negative for methods whose sign is tuned."""
    n_each = min(MOST_STRENGTHS, max(1, round(n / 2) if name in SIGNED else n))
    tried = TURNS if name == "angular_steering" else STRENGTHS
    sizes = np.geomspace(*tried, n_each).tolist() if n_each > 1 else [1.0]
    return [sign * size for sign in ((1, -1) if name in SIGNED else (1,)) for size in sizes]
