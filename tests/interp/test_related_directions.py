"""Rivals of 2025 and 2026 on a model, compared with their formulas written with hooks of the test's own."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import related_directions, related_methods
from interp.directions import SafetyDirection
from interp.estimators import AnchorError
from interp.guard import Guard
from interp.guard_batches import run_guards
from interp.inputs import collate, to_prompts
from interp.null_space import null_space_readout
from interp.projection import RELATED_RULES, RuleInputs, set_coordinates, target_coordinates
from interp.trace import trace

LAYER = 1


@pytest.fixture
def prompts(queries):
    return {modality: to_prompts(queries, modality, 96) for modality in ("text", "blank")}


@pytest.fixture
def states(tiny_vlm, prompts):
    return {modality: trace(tiny_vlm, prompts[modality]) for modality in prompts}


@pytest.fixture
def batch(tiny_vlm, prompts):
    return collate(tiny_vlm, prompts["blank"])


def at_layer(states, modality):
    """The traced states of a modality at `LAYER`, in float64."""
    return torch.from_numpy(states[modality].resid_post.values[:, LAYER, 0]).double()


def mean_difference(states, modality="text"):
    own, harmful = at_layer(states, modality), torch.tensor(states[modality].harmful.values)
    return own[harmful].mean(0) - own[~harmful].mean(0)


def last_logits(vlm, batch):
    with torch.no_grad():
        return vlm.model(**batch, use_cache=False).logits[:, -1]


@contextmanager
def edited(vlm, edit):
    """Replace the last token's state after `LAYER`, inside the block."""

    def hook(module, args, out):
        resid = (out[0] if isinstance(out, tuple) else out).clone()
        resid[:, -1] = torch.stack([edit(h.double()) for h in resid[:, -1]]).float()
        return (resid, *out[1:]) if isinstance(out, tuple) else resid

    handle = vlm.blocks[LAYER].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def check(vlm, prompts, batch, guard, edit, tmp_path):
    """Compare a guard with a rewrite of its formula; then the same guard loaded, and among others on one prefill."""
    before = last_logits(vlm, batch)
    with edited(vlm, edit):
        expected = last_logits(vlm, batch)
    assert (expected - before).abs().max() > 1e-4
    guard.save_pretrained(tmp_path, vlm)
    for own in (guard, Guard.from_pretrained(tmp_path, vlm)):
        with own.on(vlm):
            torch.testing.assert_close(last_logits(vlm, batch), expected, atol=1e-4, rtol=1e-4)
    first = {"first": lambda logprobs, unguarded: logprobs[..., 3]}
    others = [None, guard, replace(guard, layers=(LAYER + 1,))]
    together = run_guards(vlm, prompts["blank"], others, scores=first, together=True)
    assert not together.not_batched
    torch.testing.assert_close(together.scores["first"][1], expected.log_softmax(-1)[:, 3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 2])
def test_tbop_projects_out_the_first_components_of_the_shift(tiny_vlm, prompts, batch, states, tmp_path, rank):
    shifts = at_layer(states, "blank") - at_layer(states, "text")
    rows = torch.linalg.svd(shifts, full_matrices=False).Vh[:rank]
    shift = related_directions.modality_shift(states["blank"], states["text"], rank=rank)
    guard = related_methods.tbop(shift, LAYER)
    check(tiny_vlm, prompts, batch, guard, lambda h: h - rows.T @ (rows @ h), tmp_path)


@pytest.mark.parametrize("modality", ["text", "blank"])
def test_null_space_steering_is_the_matrix_of_its_paper(tiny_vlm, prompts, batch, states, tmp_path, modality):
    """H, P and Delta as matrices of d_model x d_model, with a pseudo-inverse, as in the released code of AlphaSteer."""
    own, harmful = at_layer(states, modality), torch.tensor(states[modality].harmful.values)
    H, r = own[harmful], mean_difference(states)
    U, S, Vh = torch.linalg.svd(own[~harmful].T @ own[~harmful])
    empty = Vh[(S.sqrt() <= S.sqrt()[0] * 1e-6)]
    assert len(empty) == own.shape[1] - int((~harmful).sum())
    P = empty.T @ empty
    delta = torch.linalg.pinv(P @ H.T @ H @ P + 10.0 * P @ P.T, rtol=1e-9) @ P @ H.T @ r.expand(len(H), -1)
    steering = P @ delta
    guard = related_methods.alpha_steer(
        related_directions.null_space_direction(states["text"], states[modality]), (LAYER,), 30.0
    )
    check(tiny_vlm, prompts, batch, guard, lambda h: h + 30.0 * h @ steering, tmp_path)


def test_null_space_maps_leave_benign_states_alone_and_move_harmful_ones(tiny_vlm, states):
    direction = related_directions.null_space_direction(states["text"], states["text"], ridge=1e-3)
    guard = Guard(direction, (LAYER,), "linear", gate="always", strength=1.0)
    resid = at_layer(states, "text").float()[:, None]
    moved = guard.change(resid, LAYER, None, torch.ones(resid.shape[:2], dtype=torch.bool)) - resid
    relative = (moved.norm(dim=-1) / resid.norm(dim=-1))[:, 0]
    harmful = torch.tensor(states["text"].harmful.values)
    assert relative[~harmful].max() < 1e-5
    torch.testing.assert_close(
        moved[harmful, 0].double(), mean_difference(states).expand(int(harmful.sum()), -1), atol=1e-2, rtol=1e-2
    )


def test_null_space_maps_of_wide_states_leave_many_benign_ones_alone():
    generator = torch.Generator().manual_seed(0)
    benign, harmful = (3 + torch.randn(100, 2, 256, generator=generator) for _ in range(2))
    row = null_space_readout(harmful, benign, ridge=1e-6)
    length = benign.norm(dim=-1)
    assert ((benign.double() * row).sum(-1).abs() / length).max() < 1e-5
    torch.testing.assert_close((harmful.double() * row).sum(-1), torch.ones(100, 2).double(), atol=1e-4, rtol=0)


def test_without_a_null_space_the_directions_with_least_benign_states_take_its_place():
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(1, 0.01, 20)
    benign, harmful = (torch.randn(200, 1, 20, generator=generator) * scales for _ in range(2))
    row = null_space_readout(harmful + 1, benign, ridge=1e-6, least_share=0.25)[0]
    occupied = torch.linalg.svd(benign[:, 0].double(), full_matrices=False).Vh[:15]
    assert (occupied @ row).abs().max() < 1e-9 < row.norm()
    with pytest.raises(AnchorError, match="nothing in the null space"):
        null_space_readout(benign[:5], benign[:10])


def test_re_gap_takes_the_drift_back_as_far_as_the_state_then_looks_harmful(tiny_vlm, prompts, batch, states, tmp_path):
    text, harmful = at_layer(states, "text"), torch.tensor(states["text"].harmful.values)
    d, r = (at_layer(states, "blank") - text).mean(0), mean_difference(states)
    signals = []

    def edit(h):
        signals.append(float(((h - d - text[~harmful].mean(0)) @ r) / (r @ r)))
        return h - 2.0 * min(1.0, max(0.0, signals[-1])) * d

    guard = related_methods.re_gap(related_directions.drift_direction(states["text"], states["blank"]), (LAYER,), 2.0)
    check(tiny_vlm, prompts, batch, guard, edit, tmp_path)
    assert len(set(np.clip(signals, 0, 1))) > 1


@pytest.mark.parametrize("angle", [0.0, 90.0, 200.0])
def test_angular_steering_turns_the_plane_to_an_angle_and_keeps_the_norm(
    tiny_vlm, prompts, batch, states, tmp_path, angle
):
    """The released code's step: the part in the plane is replaced by one of its length, at the target angle."""
    text, is_harmful = states["text"].resid_post.values[:, :, 0], states["text"].harmful.values
    firsts = text[is_harmful].mean(0) - text[~is_harmful].mean(0)
    firsts = torch.from_numpy(firsts / np.linalg.norm(firsts, axis=1, keepdims=True)).double()
    b1 = firsts[LAYER]
    b2 = torch.linalg.svd(firsts - firsts.mean(0), full_matrices=False).Vh[0]
    b2 = b2 - (b2 @ b1) * b1
    b2 = b2 / b2.norm()
    theta = np.radians(angle)

    def edit(h):
        in_plane = (h @ b1) * b1 + (h @ b2) * b2
        turned = h - in_plane + in_plane.norm() * (np.cos(theta) * b1 + np.sin(theta) * b2)
        assert abs(turned.norm() - h.norm()) < 1e-6
        return turned

    guard = related_methods.angular_steering(related_directions.angular_plane(states["text"], angle), (LAYER,))
    check(tiny_vlm, prompts, batch, guard, edit, tmp_path)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_turning_goes_a_share_of_the_angle_and_keeps_lengths(rank, share):
    c = torch.randn(50, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = target_coordinates("rotate", c, RuleInputs(), share)
    torch.testing.assert_close(turned.norm(dim=-1), c.norm(dim=-1))
    before, after = (torch.acos((x[:, 0] / x.norm(dim=-1)).clamp(-1, 1)) for x in (c, turned))
    torch.testing.assert_close(after, (1 - share) * before, atol=1e-6, rtol=0)
    # The plane of turning is that of the state and the first row.
    across = torch.nn.functional.cosine_similarity(turned[:, 1:], c[:, 1:])
    assert share == 1 or (across > 0.999).all()


@pytest.mark.parametrize("per_layer", [True, False])
def test_a_loaded_cone_adds_the_mean_difference_within_its_span(tiny_vlm, prompts, batch, states, tmp_path, per_layer):
    generator = torch.Generator().manual_seed(1)
    vectors = 5 * torch.randn(tiny_vlm.n_layers, 3, tiny_vlm.d_model, generator=generator)
    vectors = vectors if per_layer else vectors[LAYER]
    own = (vectors[LAYER] if per_layer else vectors).double()
    span = own.T @ torch.linalg.pinv(own.T)
    direction = SafetyDirection.from_basis(states["text"], vectors)
    first = torch.nn.functional.cosine_similarity(direction.basis[LAYER, 0].double(), own[0], dim=0)
    assert abs(abs(first) - 1) < 1e-5 and (direction.harmful >= direction.harmless).all()
    guard = related_methods.refusal_cone(direction, (LAYER,), 2.0)
    check(tiny_vlm, prompts, batch, guard, lambda h: h + 2.0 * span @ mean_difference(states), tmp_path)


def test_cones_that_are_not_a_basis_of_the_model_are_refused(states):
    vectors = torch.ones(2, states["text"].sizes["d_model"])
    for basis, message in (
        (vectors[:, 1:], "expected \\(rank, "),
        (vectors, "depend on each other"),
        (vectors * float("nan"), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            SafetyDirection.from_basis(states["text"], basis)


@pytest.mark.parametrize("rule", ["linear", "drift"])
def test_rules_with_a_linear_map_need_a_direction_that_has_one(states, rule):
    with pytest.raises(ValueError, match=f"rule '{rule}' needs a direction with a readout"):
        Guard(SafetyDirection.fit(states["text"], "mean_diff"), (LAYER,), rule, gate="always")


@pytest.mark.parametrize("rule", RELATED_RULES)
def test_rules_of_related_methods_touch_nothing_outside_the_basis(rule):
    generator = torch.Generator().manual_seed(0)
    rank = 3 if RELATED_RULES[rule].any_rank else 1
    basis = torch.linalg.qr(torch.randn(16, rank, generator=generator)).Q.T
    resid, complement = torch.randn(7, 16, generator=generator), torch.eye(16) - basis.T @ basis
    inputs = RuleInputs(*torch.randn(3, 7, rank, generator=generator), readout=torch.rand(7, rank, generator=generator))
    after = set_coordinates(resid, basis, target_coordinates(rule, resid @ basis.T, inputs, 0.7))
    assert (after - resid).abs().max() > 1e-2
    torch.testing.assert_close(after @ complement, resid @ complement, atol=1e-5, rtol=0)
