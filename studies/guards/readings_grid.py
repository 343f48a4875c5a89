"""The grid of readings: the configurations of the guard that `studies.readings` measures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from interp import POSITIONS, REFERENCES, Guard
from interp.projection import GATE_SCOPES, GATES, RULES
from studies.experiment.experiment import Experiment
from studies.guards.anchor_fits import FIT_TOKENS, AnchorFits, with_gate
from studies.guards.configuration import GuardConfiguration
from studies.guards.sweep_grid import Grid

RANKS = (1, 2, 4, 8)
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
SHUFFLES = (0, 1, 2, 3, 4)
"""Seeds of the shuffled labels."""


def readings_grid(experiment: Experiment, fits: AnchorFits, base: Guard) -> Iterator[GuardConfiguration]:
    """Yield every configuration, part by part in the order of the docstring of `studies.readings`."""
    for rule, scope, control in product(RULES, GATE_SCOPES, (None, "sign_flipped")):
        yield GuardConfiguration("factorial", replace(base, rule=rule, gate_scope=scope, control=control))
    gated_guards = [with_gate(base, gate, fits, "vlm_text") for gate in GATES]
    yield from (GuardConfiguration("gate", guard) for guard in gated_guards)
    for positions in POSITIONS:
        yield GuardConfiguration("positions", replace(base, positions=positions))
    yield from _directions(fits, base)
    layers = [layer for (layer,) in Grid(layers=experiment.sizes.layers).windows(experiment.vlm.n_layers)]
    for direction_layer in layers:
        yield GuardConfiguration("direction_layer", replace(base, direction_layer=direction_layer))
    for layer in layers:
        yield GuardConfiguration("layer", replace(base, layers=(layer,)))
    for strength in STRENGTHS:
        yield GuardConfiguration("strength", replace(base, strength=strength))
    for reference in REFERENCES:
        yield GuardConfiguration("reference", base, reference)
    # Two factors at once: the gate decides which prompts are changed, the strength by how much.
    for guard, strength in product(gated_guards, STRENGTHS):
        if strength >= 1:
            yield GuardConfiguration("gate x strength", replace(guard, strength=strength))
    yield from _controls(fits, base)


def _directions(fits: AnchorFits, base: Guard) -> Iterator[GuardConfiguration]:
    """Vary how the direction is fitted, one factor at a time."""
    for source in fits.anchors:
        yield GuardConfiguration("source", replace(base, direction=fits.direction(source=source)), source=source)
    for estimator in fits.estimators:
        yield GuardConfiguration("estimator", replace(base, direction=fits.direction(estimator)))
    for rank in RANKS if fits.estimator == "paired_svd" else ():
        yield GuardConfiguration("rank", replace(base, direction=fits.direction(rank=rank)))
    for token in FIT_TOKENS:
        yield GuardConfiguration("token", replace(base, direction=fits.direction(token=token)))


def _controls(fits: AnchorFits, base: Guard) -> Iterator[GuardConfiguration]:
    for seed in SHUFFLES:
        for estimator in dict.fromkeys((fits.estimator, "mean_diff")):
            shuffled = replace(base, direction=fits.shuffled(seed, estimator))
            yield GuardConfiguration("control", shuffled, control="shuffled_labels", seed=seed)
    # With the gate always open: otherwise the other prompt's reference would also decide who is changed.
    always = replace(base, gate="always")
    yield GuardConfiguration("control", always, control="shuffled_reference, same class", reference_from="same")
    yield GuardConfiguration("control", always, control="shuffled_reference, other class", reference_from="other")
    yield GuardConfiguration("control", replace(base, control="full_state"))


def compared_configurations(base: Guard) -> list[GuardConfiguration]:
    """Return the readings that the chosen guard is compared with on the reported split."""
    guards = [
        base,
        replace(base, rule="ablate", gate="always"),
        replace(base, rule="add_reference"),
        replace(base, control="sign_flipped"),
        replace(base, control="full_state"),
    ]
    return [GuardConfiguration("compared", guard) for guard in guards]


def part_sizes(configurations: Sequence[GuardConfiguration]) -> str:
    """Say how many configurations each part of the grid has."""
    counts = Counter(configuration.setting for configuration in configurations)
    return ", ".join(f"{setting} {n}" for setting, n in counts.items())
