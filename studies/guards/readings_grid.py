"""The grid of readings: which configurations of the guard are measured, and what makes each of them up."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from interp.guard import POSITIONS, REFERENCES, Guard
from interp.projection import GATE_SCOPES, GATES, RULES
from studies.experiment.experiment import Experiment
from studies.guards.anchor_fits import AnchorFits, gated
from studies.guards.configuration import GuardConfiguration

RANKS = (1, 2, 4, 8)
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
SEEDS = (0, 1, 2, 3, 4)
"""Of the controls with chance in them."""


def readings_grid(material: Experiment, made: AnchorFits, base: Guard) -> Iterator[GuardConfiguration]:
    """Every configuration, in the order of the module's docstring."""
    n_layers = material.vlm.n_layers
    for rule, scope, control in product(RULES, GATE_SCOPES, (None, "sign_flipped")):
        yield GuardConfiguration("factorial", replace(base, rule=rule, gate_scope=scope, control=control))
    by_gate = [gated(base, gate, made, "vlm_text") for gate in GATES]
    yield from (GuardConfiguration("gate", one) for one in by_gate)
    for positions in POSITIONS:
        yield GuardConfiguration("positions", replace(base, positions=positions))
    for source in made.anchors:
        yield GuardConfiguration("source", replace(base, direction=made.direction(source=source)), source=source)
    for estimator in made.estimators:
        yield GuardConfiguration("estimator", replace(base, direction=made.direction(estimator)))
    for rank in RANKS if made.estimator == "paired_svd" else ():
        yield GuardConfiguration("rank", replace(base, direction=made.direction(rank=rank)))
    for token in ("last", "instruction"):
        yield GuardConfiguration("token", replace(base, direction=made.direction(token=token)))
    for fitted_at in range(0, n_layers, material.config.sizes.layer_step):
        yield GuardConfiguration("direction_layer", replace(base, direction_layer=fitted_at))
    for applied_at in range(0, n_layers, material.config.sizes.layer_step):
        yield GuardConfiguration("layer", replace(base, layers=(applied_at,)))
    for strength in STRENGTHS:
        yield GuardConfiguration("strength", replace(base, strength=strength))
    for reference in REFERENCES:
        yield GuardConfiguration("reference", base, reference)
    # Not one at a time: the gate says who is changed, the strength how much.
    for one, strength in product(by_gate, STRENGTHS):
        if strength >= 1:
            yield GuardConfiguration("gate x strength", replace(one, strength=strength))
    yield from _controls(made, base)


def _controls(made: AnchorFits, base: Guard) -> Iterator[GuardConfiguration]:
    for seed in SEEDS:
        yield GuardConfiguration("control", replace(base, control="random", control_seed=seed), seed=seed)
        for estimator in dict.fromkeys((made.estimator, "mean_diff")):
            shuffled = replace(base, direction=made.shuffled(seed, estimator))
            yield GuardConfiguration("control", shuffled, control="shuffled_labels", seed=seed)
    # Always open: else the dealt reference would decide who is changed, too.
    always = replace(base, gate="always")
    yield GuardConfiguration("control", always, control="shuffled_reference, same class", deal="same")
    yield GuardConfiguration("control", always, control="shuffled_reference, other class", deal="other")
    yield GuardConfiguration("control", replace(base, control="full_state"))


def compared_configurations(base: Guard) -> list[GuardConfiguration]:
    """What the finalists are read beside."""
    return [
        GuardConfiguration("compared", base),
        GuardConfiguration("compared", replace(base, rule="ablate", gate="always")),
        GuardConfiguration("compared", replace(base, rule="add_reference")),
        GuardConfiguration("compared", replace(base, control="sign_flipped")),
        *(
            GuardConfiguration("compared", replace(base, control="random", control_seed=seed), seed=seed)
            for seed in SEEDS
        ),
        GuardConfiguration("compared", replace(base, control="full_state")),
    ]


def parts(readings: Sequence[GuardConfiguration]) -> str:
    return ", ".join(f"{name} {n}" for name, n in Counter(one.setting for one in readings).items())
