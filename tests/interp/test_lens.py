"""The bridge leaves the user's model unchanged, and what is read through it adds up."""

import numpy as np
import pytest
import torch

from interp.directions import random_basis
from interp.forced import ForcedScore
from interp.inputs import collate, to_prompts
from interp.lens import ATTENDED, Lens, LensError, NotInTransformerLens, writers
from interp.tracing.forward import resid_post
from interp.verify import ContractInputs
from interp.vlm import VLM
from tests.families import deep


@pytest.fixture(scope="module")
def lens(tiny_vlm):
    return Lens(tiny_vlm)


@pytest.fixture
def prompts(tiny_vlm, queries):
    return [p for modality in ("text", "blank") for p in to_prompts(queries, modality, tiny_vlm.picture_size)]


@pytest.fixture
def direction(tiny_vlm):
    return random_basis(torch.zeros(1, 1, tiny_vlm.d_model), seed=0)[0, 0]


def build(name: str, folder) -> VLM:
    next(family for family in deep.FAMILIES if family.name == name).build(folder)
    return VLM.from_pretrained(folder, device="cpu")


def refusal(logprobs):
    return logprobs[:, 5]


def test_the_model_keeps_its_modules_its_attention_and_its_logits(tmp_path):
    vlm = build("LLaVA-1.5", tmp_path)
    batch = ContractInputs.of(vlm).batch

    def state():
        named = [(name, type(module), id(module)) for name, module in vlm.model.named_modules()]
        attention = [module.config._attn_implementation for module in vlm.model.modules() if hasattr(module, "config")]
        return named, attention, [p.requires_grad for p in vlm.model.parameters()], vlm.model(**batch).logits

    with torch.no_grad():
        before = state()
        lens = Lens(vlm)
        lens.resid_post(batch)
        after = state()
    assert before[:3] == after[:3] and torch.equal(before[3], after[3])
    assert "eager" not in before[1]


def test_the_weights_are_in_memory_once(tiny_vlm, lens):
    own = {tensor.untyped_storage().data_ptr() for tensor in tiny_vlm.model.parameters()}
    bridged = {tensor.untyped_storage().data_ptr() for tensor in lens.bridge.parameters()}
    assert bridged <= own and len(bridged) > 20


def test_hooks_of_a_guard_are_not_copied(tiny_vlm, prompts):
    batch = collate(tiny_vlm, prompts[4:])
    plain = resid_post(tiny_vlm, batch)
    hook = tiny_vlm.blocks[0].register_forward_hook(lambda module, args, output: output * 2)
    try:
        read = Lens(tiny_vlm).resid_post(batch)
    finally:
        hook.remove()
    assert torch.allclose(read, plain, atol=1e-4)


def test_the_last_layer_of_the_logit_lens_is_the_model_itself(tiny_vlm, lens, prompts):
    scores = lens.logit_lens(prompts, refusal, batch_size=3)
    with torch.no_grad():
        output = [tiny_vlm.model(**collate(tiny_vlm, [p])).logits[0, -1].log_softmax(-1)[5].item() for p in prompts]
    assert np.allclose(scores.values[:, -1], output, atol=1e-4)
    assert not np.allclose(scores.values[:, 0], output, atol=1e-2)
    assert scores.modality.values.tolist() == ["text"] * 4 + ["blank"] * 4


def test_a_layer_says_nothing_about_the_second_token(lens, prompts):
    with pytest.raises(ValueError, match=r"behind forced tokens \[3\]; a logit lens reads the first token"):
        lens.logit_lens(prompts, ForcedScore((3,), lambda logprobs, after: after[3][:, 5]))
    alone = lens.logit_lens(prompts, ForcedScore((), lambda logprobs, after: refusal(logprobs)))
    assert np.array_equal(alone, lens.logit_lens(prompts, refusal))


@pytest.mark.parametrize("name", ["LLaVA-1.5", "LLaVA-NeXT", "Gemma 3", "Idefics3"])
def test_what_heads_and_mlps_write_sums_to_the_coordinate(name, tmp_path, queries):
    vlm = build(name, tmp_path)
    direction = random_basis(torch.zeros(1, 1, vlm.d_model), seed=0)[0, 0]
    prompts = to_prompts(queries, "text", vlm.picture_size) + to_prompts(queries, "noise", vlm.picture_size)
    for layer in (0, vlm.n_layers - 1):
        attribution = Lens(vlm).attribution(prompts, direction, layer)
        state = torch.cat([resid_post(vlm, collate(vlm, [p]))[:, layer] for p in prompts])
        assert attribution.attrs["error"] < 1e-5
        assert np.allclose(attribution.coordinate.values, (state @ direction).numpy(), atol=1e-4)
        assert attribution.heads.shape == (8, layer + 1, vlm.model.config.get_text_config().num_attention_heads)


def test_a_missing_part_shows_in_the_error(lens, prompts, direction, monkeypatch):
    right = Lens._heads

    def without_the_first(self, block, mixed):
        heads, bias = right(self, block, mixed)
        heads[:, 0] = 0
        return heads, bias

    monkeypatch.setattr(Lens, "_heads", without_the_first)
    with pytest.raises(LensError, match="direct attribution does not hold"):
        lens.attribution(prompts, direction, 2)


def test_an_operation_between_norm_and_logits_is_reported(tiny_vlm, lens, prompts, monkeypatch):
    right = Lens._log_probabilities
    monkeypatch.setattr(Lens, "_log_probabilities", lambda self, state: right(self, state * 0.5 + 1))
    with pytest.raises(LensError, match="another operation lies between"):
        lens.logit_lens(prompts, refusal)


def test_a_head_is_its_slice_of_the_output_projection(tmp_path, queries):
    vlm, mixed = build("LLaVA-1.5", tmp_path), []
    prompts = to_prompts(queries, "blank", vlm.picture_size)
    direction = random_basis(torch.zeros(1, 1, vlm.d_model), seed=0)[0, 0]
    projection, n_heads = vlm.blocks[1].self_attn.o_proj, vlm.model.config.text_config.num_attention_heads
    hook = projection.register_forward_pre_hook(lambda module, args: mixed.append(args[0][:, -1]))
    with torch.no_grad():
        vlm.model(**collate(vlm, prompts))
    hook.remove()
    heads = Lens(vlm).attribution(prompts, direction, 1).heads.sel(layer=1).values
    d_head = projection.in_features // n_heads
    assert n_heads > 1 and heads.shape == (4, n_heads)
    for head in range(n_heads):
        part = slice(head * d_head, (head + 1) * d_head)
        expected = mixed[0][:, part] @ projection.weight[:, part].T @ direction
        assert np.allclose(heads[:, head], expected.detach().numpy(), atol=1e-5)


def test_attention_sums_to_one_and_none_goes_to_missing_pictures(tiny_vlm, lens, prompts):
    shares = lens.attention(prompts)
    assert np.allclose(shares.sum("attended"), 1, atol=1e-5) and tuple(shares.attended.values) == ATTENDED
    assert (shares.sel(attended="image").values[:4] == 0).all() and (shares.sel(attended="image").values[4:] > 0).all()


def test_attention_is_that_of_the_model(tmp_path, queries):
    vlm = build("LLaVA-1.5", tmp_path)
    batch = collate(vlm, to_prompts(queries[:1], "blank", vlm.picture_size))
    shares = Lens(vlm).attention(to_prompts(queries[:1], "blank", vlm.picture_size))
    vlm.model.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = vlm.model(**batch, output_attentions=True).attentions
    image = vlm.image_positions(batch["input_ids"])[0]
    expected = torch.stack([pattern[0, :, -1, image].sum(-1) for pattern in theirs])
    assert np.allclose(shares.sel(attended="image").values[0], expected.numpy(), atol=1e-5)


def test_writers_are_the_heads_that_separate_the_classes(lens, prompts, direction):
    attribution = lens.attribution(prompts, direction, 2)
    attribution.heads[:] = 0
    attribution.heads.loc[{"layer": 1, "head": 0}] = np.where(attribution.harmful, 1.0, -1.0)
    attribution.heads.loc[{"layer": 2, "head": 0}] = np.where(attribution.harmful, 0.5, 0.0)
    assert writers(attribution, 2) == [(1, 0), (2, 0)]
    with pytest.raises(ValueError, match="prompts of both classes; got 4 of 4"):
        writers(attribution.isel(prompt=attribution.harmful.values))


def test_an_unsupported_family_is_reported_in_one_line(tmp_path):
    with pytest.raises(NotInTransformerLens, match="is not supported by TransformerLens .*work without it"):
        Lens(build("PaliGemma", tmp_path))


def test_a_layer_that_does_not_exist_is_rejected(lens, prompts, direction):
    with pytest.raises(ValueError, match="layer 3 does not exist; expected 0 to 2"):
        lens.attribution(prompts, direction, 3)
