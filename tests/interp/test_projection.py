import pytest
import torch

from interp.directions import random_basis
from interp.projection import coordinates, set_coordinates, sign_gate, target_coordinates


@pytest.fixture
def resid(generator):
    return torch.randn(7, 16, generator=generator)


@pytest.fixture
def basis():
    return random_basis(torch.zeros(1, 3, 16), seed=0)[0]


def test_ablation_removes_the_coordinates_and_nothing_else(resid, basis):
    assert coordinates(resid, basis).abs().max() > 0.5
    ablated = set_coordinates(resid, basis, torch.zeros(7, 3))
    complement = torch.eye(16) - basis.T @ basis
    assert coordinates(ablated, basis).abs().max() < 1e-5
    torch.testing.assert_close(ablated, resid @ complement, atol=1e-5, rtol=0)


def test_ablation_twice_equals_once(resid, basis):
    once = set_coordinates(resid, basis, torch.zeros(7, 3))
    torch.testing.assert_close(set_coordinates(once, basis, torch.zeros(7, 3)), once, atol=1e-6, rtol=0)


def test_writing_back_own_coordinates_is_the_identity_bit_for_bit(resid, basis):
    assert torch.equal(set_coordinates(resid, basis, coordinates(resid, basis)), resid)


def test_substitution_puts_the_reference_in_place(resid, basis):
    reference = torch.tensor([[1.0, -2.0, 3.0]])
    target = target_coordinates("substitute", coordinates(resid, basis), reference, strength=1.5)
    changed = set_coordinates(resid, basis, target)
    torch.testing.assert_close(coordinates(changed, basis), 1.5 * reference.expand(7, 3), atol=1e-5, rtol=0)


def test_substitution_at_strength_zero_is_ablation(resid, basis):
    own = coordinates(resid, basis)
    substituted = target_coordinates("substitute", own, torch.ones(1, 3), strength=0.0)
    assert torch.equal(set_coordinates(resid, basis, substituted), set_coordinates(resid, basis, own * 0))


def test_rank_one_substitution_is_shiftdc_with_its_sign_flipped(resid, generator):
    """x_vl - proj_s(x_vl - x_tt), s = -V (Zou et al., arXiv:2502.13095), the caption left out."""
    text = torch.randn(7, 16, generator=generator)
    v = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    s = -v
    shiftdc = resid - ((resid - text) @ s)[:, None] * s / (s @ s)
    reference = coordinates(text, v[None])
    ours = set_coordinates(resid, v[None], target_coordinates("substitute", resid @ v[:, None], reference))
    torch.testing.assert_close(ours, shiftdc, atol=1e-5, rtol=0)


def test_zero_rows_pad_a_smaller_rank(resid, basis):
    padded = torch.cat([basis, torch.zeros(2, 16)])
    target = torch.cat([torch.ones(7, 3), torch.full((7, 2), 9.0)], dim=1)
    torch.testing.assert_close(
        set_coordinates(resid, padded, target), set_coordinates(resid, basis, torch.ones(7, 3)), atol=1e-6, rtol=0
    )


def test_sign_gate_reads_the_first_coordinate():
    assert sign_gate(torch.tensor([[0.1, -5.0], [-0.1, 5.0], [0.0, 5.0]])).tolist() == [True, False, False]


def test_an_unknown_rule_and_a_missing_reference_are_named():
    with pytest.raises(ValueError, match="rule 'steal' does not exist; expected one of ablate, substitute"):
        target_coordinates("steal", torch.zeros(1, 1))
    with pytest.raises(ValueError, match="no reference was given"):
        target_coordinates("substitute", torch.zeros(1, 1))
