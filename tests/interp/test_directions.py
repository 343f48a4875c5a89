import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interp.directions import SafetyDirection, alignment, fit_gate, orient, paired_svd, random_basis, stability


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
        coords={
            "token": ["last"],
            "layer": np.arange(states.shape[1]),
            "harmful": ("prompt", harmful),
            "pair": ("prompt", pair.astype(object)),
            "text": ("prompt", np.array([f"request {i}" for i in range(len(states))], dtype=object)),
            "prompt_hash": ("prompt", np.array([f"{i:04}" for i in range(len(states))], dtype=object)),
        },
    )


@pytest.mark.parametrize("estimator", ["paired_svd", "mean_diff", "lda", "logistic"])
def test_the_planted_axis_is_found_and_points_to_harm(anchors, estimator):
    basis = SafetyDirection.fit(anchors, estimator).basis
    assert basis.shape == (2, 1, 12)
    # Standardising shrinks the nuisance to the size of harm, and logistic weights take of it what they can use.
    assert (basis[:, 0, 0] > (0.8 if estimator == "logistic" else 0.97)).all()
    torch.testing.assert_close(basis.norm(dim=-1), torch.ones(2, 1))


def test_pca_takes_what_varies_most_and_needs_two_rows_to_hold_harm(anchors):
    """The nuisance is larger than harm: first comes the one, then the other."""
    direction = SafetyDirection.fit(anchors, "pca", rank=2)
    assert (direction.basis[:, 0, 1].abs() > 0.97).all() and (direction.basis[:, 1, 0] > 0.97).all()
    assert (direction.explained[:, 0] > 0.8).all()


@pytest.mark.parametrize("estimator", ["paired_svd", "pca"])
def test_a_basis_is_orthonormal_whatever_its_rank(anchors, estimator):
    basis = SafetyDirection.fit(anchors, estimator, rank=3).basis
    torch.testing.assert_close(basis @ basis.transpose(1, 2), torch.eye(3).expand(2, 3, 3), atol=1e-5, rtol=0)


def test_a_fitted_direction_knows_its_class_means_and_what_it_explains(anchors):
    direction = SafetyDirection.fit(anchors, "mean_diff")
    states, harmful = anchors.resid_post.values[:, :, 0].astype(float), anchors.harmful.values
    for layer in range(2):
        own = states[:, layer] @ direction.basis[layer, 0].double().numpy()
        assert direction.harmful[layer, 0].item() == pytest.approx(own[harmful].mean(), abs=1e-4)
        assert direction.harmless[layer, 0].item() == pytest.approx(own[~harmful].mean(), abs=1e-4)
        share = own.var() / states[:, layer].var(axis=0).sum()
        assert direction.explained[layer, 0].item() == pytest.approx(share, rel=1e-4)
        middle = (states[harmful, layer].mean(0) + states[~harmful, layer].mean(0)) / 2
        np.testing.assert_allclose(direction.centre[layer].numpy(), middle, atol=1e-5)
    assert direction.anchors == SafetyDirection.fit(anchors.isel(prompt=slice(None, None, -1)), "mean_diff").anchors
    assert direction.anchors != SafetyDirection.fit(anchors.isel(prompt=slice(2, None)), "mean_diff").anchors


def test_alignment_sees_subspaces_and_no_signs(generator):
    basis = random_basis(torch.zeros(3, 2, 9), seed=1)
    turned = torch.linalg.qr(torch.randn(2, 2, generator=generator)).Q @ basis
    torch.testing.assert_close(alignment(basis, -turned), torch.ones(3), atol=1e-6, rtol=0)
    apart = torch.eye(9)[None, :4]
    assert alignment(apart[:, :2], apart[:, 2:]).item() == pytest.approx(0)
    assert alignment(apart[:, :2], apart[:, 1:3]).item() == pytest.approx(0.5)


@pytest.mark.parametrize("estimator", ["paired_svd", "mean_diff"])
def test_stability_tells_signal_from_noise(anchors, estimator):
    noise = anchors.copy()
    noise["resid_post"] = anchors.resid_post.copy(
        data=np.random.default_rng(1).normal(size=(80, 2, 1, 12)).astype("f4")
    )
    firm, loose = stability(anchors, estimator), stability(noise, estimator)
    assert (firm > 0.98).all() and (loose < 0.9).all()
    assert torch.equal(firm, stability(anchors, estimator))


def test_anchors_of_the_test_split_are_refused_by_name(anchors):
    with pytest.raises(ValueError, match="1 anchors are in the test split: 'request 3'; a direction"):
        SafetyDirection.fit(anchors, apart_from=["request 3", "something else"])


def test_states_that_are_no_numbers_are_named(anchors):
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
    with pytest.raises(ValueError, match="estimator 'lda' of rank 2; .* rank 1 for mean_diff, lda, logistic"):
        SafetyDirection.fit(anchors, "lda", rank=2)
    with pytest.raises(ValueError, match="token 'instruction' was not traced; these were: last"):
        SafetyDirection.fit(anchors, token="instruction")


def test_a_fitted_gate_tells_the_classes_apart_and_is_sklearns(anchors):
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
