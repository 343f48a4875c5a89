import numpy as np
import pytest
import torch
import xarray as xr

from interp.directions import SafetyDirection, orient, paired_svd, random_basis


@pytest.fixture
def anchors():
    """40 pairs, 2 layers, d = 12. Harm lies along axis 0, a nuisance shared by partners along axis 1."""
    rng = np.random.default_rng(0)
    nuisance = rng.normal(0, 5, 40)
    states = rng.normal(0, 0.3, (80, 2, 1, 12))
    states[:, :, 0, 1] += np.repeat(nuisance, 2)[:, None]
    harmful = np.tile([True, False], 40)
    states[harmful, :, 0, 0] += 2.0
    return dataset(states, harmful, np.repeat([f"p{i}" for i in range(40)], 2))


def dataset(states, harmful, pair):
    return xr.Dataset(
        {"resid_post": (("prompt", "layer", "token", "d_model"), states.astype(np.float32))},
        coords={"token": ["last"], "harmful": ("prompt", harmful), "pair": ("prompt", pair)},
    )


@pytest.mark.parametrize("estimator", ["paired_svd", "mean_diff"])
def test_the_planted_axis_is_found_and_points_to_harm(anchors, estimator):
    basis = SafetyDirection.fit(anchors, estimator).basis
    assert basis.shape == (2, 1, 12)
    assert (basis[:, 0, 0] > 0.97).all()
    torch.testing.assert_close(basis.norm(dim=-1), torch.ones(2, 1))


def test_paired_svd_matches_numpy_up_to_sign(generator):
    harmful, harmless = torch.randn(20, 2, 6, generator=generator), torch.randn(20, 2, 6, generator=generator)
    ours = paired_svd(harmful, harmless, rank=3)
    for layer in range(2):
        theirs = np.linalg.svd((harmful - harmless)[:, layer].double().numpy())[2][:3]
        np.testing.assert_allclose(np.abs((ours[layer].numpy() * theirs).sum(1)), 1, atol=1e-9)


def test_orientation_follows_the_labels_under_any_sign(generator):
    harmful, harmless = torch.randn(9, 2, 6, generator=generator) + 1, torch.randn(9, 2, 6, generator=generator)
    basis = random_basis(torch.zeros(2, 2, 6), seed=1).double()
    assert torch.equal(orient(basis, harmful, harmless), orient(-basis, harmful, harmless))
    assert torch.equal(orient(basis, harmful, harmless), -orient(basis, harmless, harmful))


def test_the_order_of_prompts_does_not_matter(anchors):
    shuffled = anchors.isel(prompt=np.random.default_rng(1).permutation(80))
    torch.testing.assert_close(SafetyDirection.fit(shuffled).basis, SafetyDirection.fit(anchors).basis)


def test_a_random_basis_is_orthonormal_and_repeats():
    basis = random_basis(torch.zeros(4, 3, 10), seed=5)
    torch.testing.assert_close(basis @ basis.transpose(1, 2), torch.eye(3).expand(4, 3, 3), atol=1e-6, rtol=0)
    assert torch.equal(basis, random_basis(torch.zeros(4, 3, 10), seed=5))


def test_bad_anchors_are_named(anchors):
    with pytest.raises(ValueError, match="got 40 harmful, 0 harmless"):
        SafetyDirection.fit(anchors.isel(prompt=anchors.harmful.values))
    with pytest.raises(ValueError, match="exactly one harmful and one harmless anchor in each pair"):
        SafetyDirection.fit(anchors.isel(prompt=slice(1, None)))
    with pytest.raises(ValueError, match="expected one of paired_svd, mean_diff"):
        SafetyDirection.fit(anchors, "guess")
