"""Each related method on a model, compared with its formula written with hooks of the test's own."""

from contextlib import contextmanager

import pytest
import torch

from interp import related_methods
from interp.directions import SafetyDirection
from interp.inputs import collate, to_prompts
from interp.trace import trace


@pytest.fixture
def prompts(tiny_vlm, queries):
    return {modality: to_prompts(queries, modality, 96) for modality in ("text", "blank")}


@pytest.fixture
def states(tiny_vlm, prompts):
    return {modality: trace(tiny_vlm, prompts[modality]) for modality in prompts}


@pytest.fixture
def direction(states):
    return SafetyDirection.fit(states["text"], "mean_diff")


@pytest.fixture
def batch(tiny_vlm, prompts):
    return collate(tiny_vlm, prompts["blank"])


def logits(vlm, batch):
    with torch.no_grad():
        return vlm.model(**batch, use_cache=False).logits


def stream(vlm, batch):
    """Return the output of each block."""
    seen = []
    hooks = [block.register_forward_hook(lambda m, args, out: seen.append(out.clone())) for block in vlm.blocks]
    logits(vlm, batch)
    for hook in hooks:
        hook.remove()
    return seen


@contextmanager
def edited(modules, edit):
    """Replace the output of module i by `edit(i, output)`, inside the block."""

    def hook(i):
        return lambda m, args, out: (edit(i, out[0]), *out[1:]) if isinstance(out, tuple) else edit(i, out)

    hooks = [module.register_forward_hook(hook(i)) for i, module in modules.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def is_token(batch):
    return batch["attention_mask"].bool()[..., None]


def check(vlm, batch, guard, expected, references=None):
    """Compare logits at the last token only: those of the padding in front are arbitrary."""
    before = logits(vlm, batch)[:, -1]
    with guard.on(vlm, references):
        ours = logits(vlm, batch)[:, -1]
    assert (expected[:, -1] - before).abs().max() > 1e-3
    torch.testing.assert_close(ours, expected[:, -1], atol=1e-4, rtol=0)


def test_shiftdc_measures_its_shifts_on_unguarded_runs(tiny_vlm, prompts, batch, states, direction):
    """Released form: m_l = x_l(picture) - x_l(text) of unguarded runs, then x_l <- x_l - (m_l . s) s at each layer."""
    layers = (1, 2)
    pictured = [out[:, -1] for out in stream(tiny_vlm, batch)]
    text = torch.from_numpy(states["text"].resid_post.values[:, :, 0])

    def edit(layer, out):
        s = -direction.basis[layer, 0]
        m = pictured[layer] - text[:, layer]
        out = out.clone()
        out[:, -1] = out[:, -1] - ((m @ s) / (s @ s))[:, None] * s
        return out

    with edited({layer: tiny_vlm.blocks[layer] for layer in layers}, edit):
        expected = logits(tiny_vlm, batch)
    guard = related_methods.shift_dc(direction, layers)
    check(tiny_vlm, batch, guard, expected, [prompt.text for prompt in prompts["text"]])
    # At a single layer, freezing the shift makes no difference.
    single = related_methods.shift_dc(direction, (1,))
    with single.on(tiny_vlm):
        frozen = logits(tiny_vlm, batch)
    with type(single)(direction, (1,), "substitute", gate="always").on(tiny_vlm):
        torch.testing.assert_close(logits(tiny_vlm, batch), frozen, atol=1e-4, rtol=0)


def test_layers_that_see_each_others_changes_give_a_different_guard(tiny_vlm, batch, direction):
    frozen = related_methods.shift_dc(direction, (0, 1, 2))
    thawed = type(frozen)(direction, (0, 1, 2), "substitute", gate="always")
    guarded = []
    for guard in (frozen, thawed):
        with guard.on(tiny_vlm):
            guarded.append(logits(tiny_vlm, batch)[:, -1])
    assert (guarded[0] - guarded[1]).abs().max() > 1e-4


def test_a_frozen_shift_gives_the_same_answers_with_and_without_cache(tiny_vlm, batch, direction):
    sequences = []
    for use_cache in (True, False):
        with related_methods.shift_dc(direction, (1, 2)).on(tiny_vlm):
            sequences.append(tiny_vlm.model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=use_cache))
    assert torch.equal(*sequences)


def test_cmrm_adds_the_mean_shift_along_its_first_component(tiny_vlm, batch, states):
    shifts = torch.from_numpy(states["text"].resid_post.values - states["blank"].resid_post.values)[:, :, 0].double()

    def edit(layer, out):
        v = torch.linalg.svd(shifts[:, layer], full_matrices=False).Vh[0]
        out = out.clone()
        out[:, -1] = out[:, -1] + 0.5 * ((shifts[:, layer].mean(0) @ v) * v).float()
        return out

    with edited(dict(enumerate(tiny_vlm.blocks)), edit):
        expected = logits(tiny_vlm, batch)
    check(tiny_vlm, batch, related_methods.cmrm(states["text"], states["blank"], range(3), 0.5), expected)
    with pytest.raises(ValueError, match="the same prompts, in the same order"):
        related_methods.cmrm(states["text"], states["blank"].isel(prompt=[1, 0, 2, 3]), (0,))


def test_inferaligner_adds_the_mean_difference_where_its_gate_is_open(tiny_vlm, batch, states, direction):
    text = torch.from_numpy(states["text"].resid_post.values[:, :, 0])
    harmful = torch.tensor(states["text"].harmful.values)
    theta = text[harmful].mean(0) - text[~harmful].mean(0)
    threshold = (text.mean(0) @ direction.basis[1, 0])[1]
    is_open = text[:, 1] @ direction.basis[1, 0] > threshold
    assert is_open.any() and not is_open.all()

    def edit(layer, out):
        return torch.where(is_token(batch) & is_open[:, None, None], out + 3.0 * theta[layer], out)

    with edited({1: tiny_vlm.blocks[1]}, edit):
        expected = logits(tiny_vlm, batch)
    check(tiny_vlm, batch, related_methods.infer_aligner(direction, (1,), 3.0), expected)


def test_astra_subtracts_by_the_angle(tiny_vlm, batch, direction):
    v, h_ref = direction.basis[1, 0], direction.centre[1]

    def edit(layer, out):
        out = out.clone()
        for row in range(len(out)):
            h = out[row, -1]
            cosine = torch.nn.functional.cosine_similarity(h - h_ref, v, dim=0).clamp(0, 1)
            out[row, -1] = h - 4.0 * cosine * h.norm() * v / v.norm()
        return out

    with edited({1: tiny_vlm.blocks[1]}, edit):
        expected = logits(tiny_vlm, batch)
    check(tiny_vlm, batch, related_methods.astra(direction, 1, 4.0), expected)


def test_arditis_ablation_removes_the_direction_everywhere(tiny_vlm, prompts, batch, direction):
    r = direction.basis[1, 0]

    def ablate(layer, out):
        return torch.where(is_token(batch), out - (out @ r)[..., None] * r, out)

    def ablate_input(module, args, kwargs):
        return args, kwargs | {"inputs_embeds": ablate(0, kwargs["inputs_embeds"])}

    # The input of the first block, and everything that is added to it.
    writers = [tiny_vlm.model.model.language_model.embed_tokens]
    writers += [part for block in tiny_vlm.blocks for part in (block.self_attn, block.mlp)]
    first = tiny_vlm.model.model.language_model.register_forward_pre_hook(ablate_input, with_kwargs=True)
    try:
        with edited(dict(enumerate(writers[1:])), ablate):
            expected = logits(tiny_vlm, batch)
    finally:
        first.remove()
    guard = related_methods.arditi_ablation(direction, 1)
    check(tiny_vlm, batch, guard, expected)
    with guard.on(tiny_vlm):
        for out in stream(tiny_vlm, batch):
            assert (out[is_token(batch)[..., 0]] @ r).abs().max() < 1e-4
    with pytest.raises(ValueError, match="can't be explained layer by layer"):
        guard.explain(tiny_vlm, prompts["blank"][0])


def test_arditis_addition_adds_the_mean_difference_everywhere(tiny_vlm, batch, states, direction):
    text = torch.from_numpy(states["text"].resid_post.values[:, :, 0])
    harmful = torch.tensor(states["text"].harmful.values)
    r = text[harmful].mean(0) - text[~harmful].mean(0)
    with edited({1: tiny_vlm.blocks[1]}, lambda layer, out: torch.where(is_token(batch), out + 2.0 * r[1], out)):
        expected = logits(tiny_vlm, batch)
    check(tiny_vlm, batch, related_methods.arditi_addition(direction, 1, 2.0), expected)
