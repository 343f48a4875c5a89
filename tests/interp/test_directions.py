import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interp.directions import SafetyDirection, alignment, fit_gate, orient, random_basis, stability
from interp.estimators import ESTIMATORS, paired_svd


@pytest.fixture
def anchors():
    """40 pairs, 2 layers, d = 12; harm lies along axis 0, and a nuisance that partners share along axis 1."""
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
        coords={
            "token": ["last"],
            "layer": np.arange(states.shape[1]),
            "harmful": ("prompt", harmful),
            "pair": ("prompt", pair.astype(object)),
            "text": ("prompt", np.array([f"request {i}" for i in range(len(states))], dtype=object)),
            "prompt_hash": ("prompt", np.array([f"{i:04}" for i in range(len(states))], dtype=object)),
        },
    )


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "pca"])
def test_the_planted_axis_is_recovered_and_points_to_harm(anchors, estimator):
    """Principal components have a test of their own: their first row is the larger nuisance."""
    basis = SafetyDirection.fit(anchors, estimator).basis
    assert basis.shape == (2, 1, 12)
    # Standardising shrinks the nuisance to the size of harm, and logistic regression then uses some of it.
    assert (basis[:, 0, 0] > (0.8 if estimator == "logistic" else 0.97)).all()
    torch.testing.assert_close(basis.norm(dim=-1), torch.ones(2, 1))


def test_pca_needs_two_rows_because_the_nuisance_varies_more_than_harm(anchors):
    direction = SafetyDirection.fit(anchors, "pca", rank=2)
    assert (direction.basis[:, 0, 1].abs() > 0.97).all() and (direction.basis[:, 1, 0] > 0.97).all()
    assert (direction.explained[:, 0] > 0.8).all()


@pytest.mark.parametrize("estimator", ["paired_svd", "pca"])
def test_a_basis_of_any_rank_is_orthonormal(anchors, estimator):
    basis = SafetyDirection.fit(anchors, estimator, rank=3).basis
    torch.testing.assert_close(basis @ basis.transpose(1, 2), torch.eye(3).expand(2, 3, 3), atol=1e-5, rtol=0)


def test_a_fitted_direction_has_class_means_and_explained_variance(anchors):
    direction = SafetyDirection.fit(anchors, "mean_diff")
    states, harmful = anchors.resid_post.values[:, :, 0].astype(float), anchors.harmful.values
    for layer in range(2):
        own = states[:, layer] @ direction.basis[layer, 0].double().numpy()
        assert direction.harmful[layer, 0].item() == pytest.approx(own[harmful].mean(), abs=1e-4)
        assert direction.harmless[layer, 0].item() == pytest.approx(own[~harmful].mean(), abs=1e-4)
        share = own.var() / states[:, layer].var(axis=0).sum()
        assert direction.explained[layer, 0].item() == pytest.approx(share, rel=1e-4)
        midpoint = (states[harmful, layer].mean(0) + states[~harmful, layer].mean(0)) / 2
        np.testing.assert_allclose(direction.centre[layer].numpy(), midpoint, atol=1e-5)
    assert direction.anchors == SafetyDirection.fit(anchors.isel(prompt=slice(None, None, -1)), "mean_diff").anchors
    assert direction.anchors != SafetyDirection.fit(anchors.isel(prompt=slice(2, None)), "mean_diff").anchors


def test_a_direction_moves_with_all_of_its_tensors(anchors):
    direction = SafetyDirection.fit(anchors, "mean_diff")
    assert set(direction.tensors) == {"basis", "harmful", "harmless", "centre", "explained"}
    double = direction.to(torch.float64)
    for name, tensor in direction.tensors.items():
        assert tensor.dtype == torch.float32 and torch.equal(double.tensors[name], tensor.double())
    assert {tensor.device.type for tensor in direction.to("meta").tensors.values()} == {"meta"}
    assert (double.estimator, double.token, double.anchors) == ("mean_diff", "last", direction.anchors)
    basis_only = SafetyDirection(direction.basis, "random").to(torch.float64)
    assert basis_only.basis.dtype == torch.float64 and basis_only.harmful is None


def test_alignment_of_subspaces_ignores_signs_and_rotations(generator):
    basis = random_basis(torch.zeros(3, 2, 9), seed=1)
    rotated = torch.linalg.qr(torch.randn(2, 2, generator=generator)).Q @ basis
    torch.testing.assert_close(alignment(basis, -rotated), torch.ones(3), atol=1e-6, rtol=0)
    axes = torch.eye(9)[None, :4]
    assert alignment(axes[:, :2], axes[:, 2:]).item() == pytest.approx(0)
    assert alignment(axes[:, :2], axes[:, 1:3]).item() == pytest.approx(0.5)


@pytest.mark.parametrize("estimator", ["paired_svd", "mean_diff"])
def test_stability_separates_signal_from_noise(anchors, estimator):
    noise = anchors.copy()
    noise["resid_post"] = anchors.resid_post.copy(
        data=np.random.default_rng(1).normal(size=(80, 2, 1, 12)).astype("f4")
    )
    of_signal, of_noise = stability(anchors, estimator), stability(noise, estimator)
    assert (of_signal > 0.98).all() and (of_noise < 0.9).all()
    assert torch.equal(of_signal, stability(anchors, estimator))


def test_anchors_of_the_test_split_are_refused_by_name(anchors):
    with pytest.raises(ValueError, match="1 anchors are in the test split: 'request 3'; a direction"):
        SafetyDirection.fit(anchors, apart_from=["request 3", "something else"])


def test_states_that_are_not_finite_are_named(anchors):
    broken = anchors.copy(deep=True)
    broken.resid_post[7, 1, 0, 5] = np.nan
    with pytest.raises(ValueError, match=r"state of prompt 7 \('request 7'\) at layer 1 is not finite; 1 such states"):
        SafetyDirection.fit(broken)


def test_paired_svd_matches_numpy_up_to_sign(generator):
    harmful, harmless = torch.randn(20, 2, 6, generator=generator), torch.randn(20, 2, 6, generator=generator)
    ours = paired_svd(harmful, harmless, rank=3)
    for layer in range(2):
        theirs = np.linalg.svd((harmful - harmless)[:, layer].double().numpy())[2][:3]
        np.testing.assert_allclose(np.abs((ours[layer].numpy() * theirs).sum(1)), 1, atol=1e-9)


def test_orientation_follows_the_labels_not_the_sign(generator):
    harmful, harmless = torch.randn(9, 2, 6, generator=generator) + 1, torch.randn(9, 2, 6, generator=generator)
    basis = random_basis(torch.zeros(2, 2, 6), seed=1).double()
    assert torch.equal(orient(basis, harmful, harmless), orient(-basis, harmful, harmless))
    assert torch.equal(orient(basis, harmful, harmless), -orient(basis, harmless, harmful))


def test_the_order_of_prompts_does_not_matter(anchors):
    shuffled = anchors.isel(prompt=np.random.default_rng(1).permutation(80))
    torch.testing.assert_close(SafetyDirection.fit(shuffled).basis, SafetyDirection.fit(anchors).basis)


def test_a_random_basis_is_orthonormal_and_reproducible():
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
    with pytest.raises(ValueError, match="estimator 'lda' of rank 2; .* rank 1 for mean_diff, lda, logistic"):
        SafetyDirection.fit(anchors, "lda", rank=2)
    with pytest.raises(ValueError, match="token 'instruction' was not traced; these were: last"):
        SafetyDirection.fit(anchors, token="instruction")


def test_a_fitted_gate_separates_the_classes_and_equals_sklearns(anchors):
    gate, states = fit_gate(anchors, 1), anchors.resid_post.values[:, 1, 0]
    assert torch.equal(gate(torch.from_numpy(states)), torch.tensor(anchors.harmful.values))
    plain = make_pipeline(StandardScaler(), LogisticRegression()).fit(states, anchors.harmful.values)
    logits = torch.from_numpy(states) @ gate.weight + gate.bias
    np.testing.assert_allclose(logits.numpy(), plain.decision_function(states), atol=1e-2)


def test_the_midpoint_lies_between_the_classes(anchors):
    direction = SafetyDirection.fit(anchors, "mean_diff")
    own = torch.from_numpy(anchors.resid_post.values[:, 1, 0]) @ direction.basis[1, 0]
    harmful = torch.tensor(anchors.harmful.values)
    assert direction.midpoint(1) == pytest.approx(((own[harmful].mean() + own[~harmful].mean()) / 2).item(), abs=1e-5)
