import pytest

from interp.inputs import Query, to_prompt
from studies.datasets.attacks import ATTACKS, Attack, AttackError, apply

KINDS = ("prefix_injection", "refusal_suppression", "role_play", "style_injection", "distractor")


def test_there_is_one_named_and_versioned_template_of_each_kind():
    assert tuple(ATTACKS) == KINDS
    for name, attack in ATTACKS.items():
        assert attack.label == f"{name}@{attack.version}" and attack.kind_source.startswith("arXiv:2307.02483")
        assert attack.origin == "own wording" and len(attack.template) < 300


@pytest.mark.parametrize("name", KINDS)
def test_a_request_is_unchanged_whatever_is_in_it(name):
    request = "Explain {request}, {0} and {{x}}: \\n 100% of it.\nAnd $this."
    before, after = ATTACKS[name].template.split("{request}")
    assert apply(request, name) == before + request + after


@pytest.mark.parametrize("name", KINDS)
def test_a_template_is_harmless_by_itself(name):
    """It names no picture either, so that it works with and without one."""
    words = set(ATTACKS[name].template.lower().replace(".", " ").replace(",", " ").split())
    named = {"kill", "weapon", "bomb", "drug", "hack", "illegal", "steal", "image", "picture", "photo"}
    assert not words & named


@pytest.mark.parametrize("modality", ["text", "blank", "typographic"])
def test_an_attacked_request_reaches_the_model_in_every_modality(modality):
    query = Query(apply("Fold a paper lantern.", "role_play"), harmful=False, written="Fold a paper lantern.")
    prompt = to_prompt(query, modality, 96)
    assert len(prompt.pictures) == (modality != "text")
    assert (prompt.text == query.text) == (modality != "typographic")


def test_a_template_of_the_users_own_can_be_used():
    own = Attack("mine", "2", "{request} Please, {name}!", "my own")
    assert apply("Fold it.", own) == "Fold it. Please, {name}!"


@pytest.mark.parametrize("template", ["no place", "{request} and {request}"])
def test_a_template_has_one_place_for_the_request(template):
    with pytest.raises(AttackError, match=r"holds \{request\} \d times; expected once"):
        Attack("mine", "1", template, "my own")


def test_an_unknown_attack_and_an_empty_request_are_named():
    with pytest.raises(AttackError, match="attack 'sugar' does not exist; expected one of prefix_injection, "):
        apply("Fold it.", "sugar")
    with pytest.raises(AttackError, match="the request is empty"):
        apply(" \n", "role_play")
