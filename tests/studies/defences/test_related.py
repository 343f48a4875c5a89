"""Rivals get the budget of the guard, and their published setting is among what is tried."""

from collections import Counter

import pytest
import torch

from interp.guard import Guard
from interp.inputs import to_prompts
from interp.trace import trace
from studies.defences.lineup import CONE, RELATED_METHODS
from studies.defences.related import MOST_STRENGTHS, ONE_LAYER, SIGNED, TURNS, grids, published, tuned
from studies.guards.choice_rule import FALLBACK_RULE, SELECTION_RULE, Finalist
from studies.guards.configuration import GuardConfiguration

WINDOWS = ((0,), (1,), (2,), (1, 2), (0, 1, 2))


@pytest.fixture
def anchors(tiny_vlm, queries):
    return [trace(tiny_vlm, to_prompts(queries, name, tiny_vlm.picture_size)) for name in ("text", "blank")]


@pytest.mark.parametrize("n", [10, 30, 280])
def test_every_method_gets_about_as_many_configurations_as_the_guard(anchors, n):
    for name, configurations in grids(*anchors, WINDOWS, n).items():
        if name == "tbop":
            # The published layer, and every single one: an ablation has no strength.
            assert len(configurations) == 3
            continue
        n_windows = 3 if name in ONE_LAYER else len(WINDOWS)
        most = n_windows * MOST_STRENGTHS * (2 if name in SIGNED else 1)
        assert abs(len(configurations) - min(n, most)) <= 5, name
        assert len({configuration.identity for configuration in configurations}) == len(configurations)


def test_the_published_setting_comes_first(anchors):
    by_name, own = grids(*anchors, WINDOWS, 30), published(3, *anchors)
    assert tuple(by_name) == tuple(method.name for method in own) == RELATED_METHODS
    for method in own:
        first = by_name[method.name][0]
        assert first.guard.layers == method.guard.layers and first.guard.strength == method.guard.strength == 1
        assert first.guard.rule == method.guard.rule and method.tuning == "untuned"


def test_layers_strengths_and_open_signs_are_tuned_and_nothing_else(anchors):
    for name, configurations in grids(*anchors, WINDOWS, 60).items():
        guards = [configuration.guard for configuration in configurations]
        published_layers = {configurations[0].guard.layers}
        assert {guard.layers for guard in guards} == published_layers | set(
            WINDOWS[:3] if name in ONE_LAYER else WINDOWS
        )
        assert {guard.strength < 0 for guard in guards} == ({True, False} if name in ("cmrm", "astra") else {False})
        assert max(abs(guard.strength) for guard in guards) >= 1 >= min(abs(guard.strength) for guard in guards)
        if name == "angular_steering":
            assert max(guard.strength for guard in guards) == TURNS[1] == 1.0
        fixed = [(guard.rule, guard.gate, guard.positions, guard.frozen_shift) for guard in guards]
        assert len(Counter(fixed)) == 1
        references = {configuration.reference for configuration in configurations}
        assert references == {"prompt_text+caption" if name == "shift_dc" else None}


@pytest.mark.parametrize(
    "mark, note", [(SELECTION_RULE, ""), (f"{FALLBACK_RULE}, single layer", ", none within the limits")]
)
def test_the_tuning_says_what_was_chosen_from_how_many(anchors, mark, note):
    (method, *_) = published(3, *anchors)
    for layers, words in (((1,), "layer 1"), ((1, 2), "layers 1 to 2")):
        guard = Guard(method.guard.direction, layers, gate="always", strength=0.51234)
        best = Finalist(GuardConfiguration("tuned", guard), {}, mark)
        found = tuned("shift_dc", best, 31)
        assert found.tuning == f"{words}, strength 0.512: best of 31 on validation{note}" and found.guard is guard


def test_a_loaded_cone_is_one_of_the_methods(tiny_vlm, anchors):
    vectors = torch.randn(2, tiny_vlm.d_model, generator=torch.Generator().manual_seed(0))
    methods = {method.name: method.guard for method in published(3, *anchors, vectors)}
    assert tuple(methods) == (*RELATED_METHODS, CONE)
    assert methods[CONE].direction.rank == 2 and methods[CONE].direction.estimator == "refusal cone"
    assert {each.guard.direction.rank for each in grids(*anchors, WINDOWS, 30, vectors)[CONE]} == {2}
