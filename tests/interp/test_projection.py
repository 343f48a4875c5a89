import pytest
import torch

from interp.directions import random_basis
from interp.projection import (
    RULES,
    ProbeGate,
    RuleInputs,
    centred_cosine,
    check_rule,
    coordinates,
    delta_norm,
    restore_norm,
    set_coordinates,
    sign_gate,
    target_coordinates,
)

ANY_RANK = [name for name, rule in RULES.items() if rule.any_rank]


@pytest.fixture
def resid(generator):
    return torch.randn(7, 16, generator=generator)


@pytest.fixture
def basis():
    return random_basis(torch.zeros(1, 3, 16), seed=0)[0]


@pytest.fixture
def centre(generator):
    return torch.randn(16, generator=generator)


@pytest.fixture
def inputs(resid, basis, centre, generator):
    """Everything that a rule may need."""
    reference, harmful, harmless = (torch.randn(1, 3, generator=generator) for _ in range(3))
    return RuleInputs(
        reference, harmful, harmless, resid.norm(dim=-1, keepdim=True), centred_cosine(resid, basis, centre)
    )


def first_row(inputs: RuleInputs) -> RuleInputs:
    """Return the inputs for the first row of the basis only."""
    return RuleInputs(
        inputs.reference[:, :1], inputs.harmful[:, :1], inputs.harmless[:, :1], inputs.length, inputs.cosine
    )


def changed(rule, resid, basis, inputs, strength=1.0):
    return set_coordinates(resid, basis, target_coordinates(rule, coordinates(resid, basis), inputs, strength))


def test_ablation_removes_only_the_coordinates(resid, basis):
    assert coordinates(resid, basis).abs().max() > 0.5
    ablated = changed("ablate", resid, basis, RuleInputs())
    complement = torch.eye(16) - basis.T @ basis
    assert coordinates(ablated, basis).abs().max() < 1e-5
    torch.testing.assert_close(ablated, resid @ complement, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["ablate", "substitute", "class_mean"])
def test_rules_that_set_coordinates_are_idempotent(resid, basis, inputs, rule):
    once = changed(rule, resid, basis, inputs)
    torch.testing.assert_close(changed(rule, once, basis, inputs), once, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ANY_RANK)
def test_no_rule_touches_the_orthogonal_complement(resid, basis, inputs, rule):
    complement = torch.eye(16) - basis.T @ basis
    after = changed(rule, resid, basis, inputs, 1.7)
    torch.testing.assert_close(after @ complement, resid @ complement, atol=1e-5, rtol=0)


def test_writing_back_own_coordinates_is_the_identity_bit_for_bit(resid, basis):
    assert torch.equal(set_coordinates(resid, basis, coordinates(resid, basis)), resid)


@pytest.mark.parametrize("rule", ["add_reference", "amplify", "steer", "adaptive", "adaptive_mirror"])
def test_strength_zero_is_the_identity_bit_for_bit(resid, basis, inputs, rule):
    basis, inputs = (basis, inputs) if RULES[rule].any_rank else (basis[:1], first_row(inputs))
    assert torch.equal(changed(rule, resid, basis, inputs, 0.0), resid)
    half = resid.bfloat16()
    assert torch.equal(changed(rule, half.float(), basis, inputs, 0.0).bfloat16(), half)


@pytest.mark.parametrize(
    "rule, by_hand",
    [
        ("substitute", lambda c, k, a: a * k.reference),
        ("add_reference", lambda c, k, a: c + a * k.reference),
        ("amplify", lambda c, k, a: c + a * c),
        ("class_mean", lambda c, k, a: (1 - a) * k.harmless + a * k.harmful),
        ("steer", lambda c, k, a: c + a * k.harmful - a * k.harmless),
    ],
)
def test_each_rule_gives_the_coordinates_of_its_formula(resid, basis, inputs, rule, by_hand):
    expected = by_hand(coordinates(resid, basis), inputs, 1.5).expand(7, 3)
    torch.testing.assert_close(
        coordinates(changed(rule, resid, basis, inputs, 1.5), basis), expected, atol=1e-5, rtol=0
    )


def test_substitution_at_strength_zero_is_ablation(resid, basis, inputs):
    assert torch.equal(changed("substitute", resid, basis, inputs, 0.0), changed("ablate", resid, basis, inputs))


def test_class_mean_reaches_both_class_means(resid, basis, inputs):
    for strength, mean in ((0.0, inputs.harmless), (1.0, inputs.harmful)):
        after = coordinates(changed("class_mean", resid, basis, inputs, strength), basis)
        torch.testing.assert_close(after, mean.expand(7, 3), atol=1e-5, rtol=0)


def test_rank_one_substitution_is_shiftdc_with_its_sign_flipped(resid, generator):
    """x_vl - proj_s(x_vl - x_tt), s = -V (Zou et al., arXiv:2502.13095), without the caption."""
    text = torch.randn(7, 16, generator=generator)
    v = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    s = -v
    shiftdc = resid - ((resid - text) @ s)[:, None] * s / (s @ s)
    ours = changed("substitute", resid, v[None], RuleInputs(reference=coordinates(text, v[None])))
    torch.testing.assert_close(ours, shiftdc, atol=1e-5, rtol=0)


def test_adaptive_is_astras_formula(resid, basis, centre, inputs):
    """h - a * clamp(cos(h - h_ref, v), 0, 1) * ||h|| * v / ||v|| (Wang et al., arXiv:2411.16721: their code)."""
    v, rows = basis[0], []
    for h in resid:
        cosine = torch.nn.functional.cosine_similarity(h - centre, v, dim=0)
        rows.append(h - 0.7 * cosine.clamp(0, 1) * h.norm() * v / v.norm())
    astra = torch.stack(rows)
    torch.testing.assert_close(changed("adaptive", resid, basis[:1], first_row(inputs), 0.7), astra, atol=1e-5, rtol=0)
    moved = (astra != resid).any(-1)
    mirrored = changed("adaptive_mirror", resid, basis[:1], first_row(inputs), 0.7)
    assert moved.any() and not moved.all() and torch.equal((mirrored != resid).any(-1), ~moved)
    assert (coordinates(mirrored, basis[:1]) >= coordinates(resid, basis[:1])).all()


def test_each_row_may_have_its_own_basis_and_strength(resid, generator):
    """This is what lets a sweep run as one batch."""
    bases = random_basis(torch.zeros(7, 2, 16), seed=1)
    strength, references = torch.rand(7, 1, generator=generator), torch.randn(7, 2, generator=generator)
    together = changed("substitute", resid, bases, RuleInputs(reference=references), strength)
    for i in range(7):
        alone = changed("substitute", resid[i], bases[i], RuleInputs(reference=references[i]), strength[i].item())
        torch.testing.assert_close(together[i], alone, atol=1e-6, rtol=0)


def test_zero_rows_pad_a_smaller_rank(resid, basis):
    padded = torch.cat([basis, torch.zeros(2, 16)])
    target = torch.cat([torch.ones(7, 3), torch.full((7, 2), 9.0)], dim=1)
    torch.testing.assert_close(
        set_coordinates(resid, padded, target), set_coordinates(resid, basis, torch.ones(7, 3)), atol=1e-6, rtol=0
    )


def test_gates_open_above_their_thresholds():
    reference = torch.tensor([[0.1, -5.0], [-0.1, 5.0], [0.0, 5.0]])
    assert sign_gate(reference).tolist() == [True, False, False]
    assert sign_gate(reference, -0.05).tolist() == [True, False, True]
    assert sign_gate(reference, 0.1).tolist() == [False, False, False]
    probe = ProbeGate(torch.tensor([0.0, 1.0]), bias=-1.0, threshold=3.0)
    assert probe(reference).tolist() == [False, True, True]


def test_norms_are_measured_and_restored(resid, basis, inputs):
    after = changed("amplify", resid, basis, inputs, 2.0)
    torch.testing.assert_close(delta_norm(after, resid), (after - resid).norm(dim=1) / resid.norm(dim=1))
    kept = restore_norm(after, resid)
    torch.testing.assert_close(kept.norm(dim=1), resid.norm(dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cosine_similarity(kept, after), torch.ones(7), atol=1e-5, rtol=0)


def test_unknown_rules_and_missing_inputs_are_named():
    own = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="rule 'steal' does not exist; expected one of ablate, substitute"):
        target_coordinates("steal", own, RuleInputs())
    with pytest.raises(
        ValueError, match="'add_reference' needs the coordinates of a reference, but no reference was given"
    ):
        target_coordinates("add_reference", own, RuleInputs())
    with pytest.raises(ValueError, match="rule 'steer' needs harmless; given: harmful"):
        target_coordinates("steer", own, RuleInputs(harmful=own))
    with pytest.raises(ValueError, match="rule 'adaptive' is defined for rank 1; got rank 2"):
        check_rule("adaptive", 2)
