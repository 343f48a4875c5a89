"""Maps over pictures find what was planted, and are the literal formulas."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from interp.directions import SafetyDirection
from interp.errors import ModelError
from interp.forced import ForcedScore
from interp.inputs import collate, text_prompt, to_prompts
from interp.patching import replaced
from interp.picture_maps import MEASURES, CoordinateScore, picture_map, to_table
from interp.tracing.forward import resid_post
from interp.verify import ContractInputs
from interp.vlm import VLM
from tests.families import deep

# A warning of the libraries, not ours: PaliGemma's processor and NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def score(logprobs):
    return logprobs[:, 5]


@contextmanager
def planted(vlm, token, vector):
    """Add a vector, as long as the token itself, to one image token of each picture that is not of one colour."""
    has_content = []

    def look(module, args, kwargs):
        channels = kwargs["pixel_values"].flatten(2)
        has_content[:] = (channels.amax(2) != channels.amin(2)).any(1).tolist()

    def plant(module, args, output):
        output = output.clone()
        output[torch.tensor(has_content), token] += vector * output[0, token].norm()
        return output

    hooks = [vlm.model.register_forward_pre_hook(look, with_kwargs=True), vlm.projector.register_forward_hook(plant)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("place", [(0, 1), (4, 2)])
@pytest.mark.parametrize("of", ["refusal", "coordinate"])
def test_a_planted_patch_is_found_where_it_is(tiny_vlm, queries, generator, place, of):
    """The picture differs from its donor in a shade of one pixel, which is where the hook plants the patch."""
    picture = Image.new("RGB", (tiny_vlm.picture_size,) * 2, (127, 127, 127))
    picture.putpixel((0, 0), (126, 127, 127))
    prompt = replace(to_prompts(queries[:1], "blank", tiny_vlm.picture_size)[0], pictures=(picture,))
    basis = torch.nn.functional.normalize(torch.randn(3, 1, tiny_vlm.d_model, generator=generator), dim=-1)
    explained = score if of == "refusal" else CoordinateScore(SafetyDirection(basis, "mean_diff"), 2)
    token = 6 * place[0] + place[1]
    with planted(tiny_vlm, token, basis[0, 0]):
        maps = picture_map(tiny_vlm, [prompt], explained)
    assert (maps.sizes["row"], maps.sizes["column"]) == (6, 6)
    for name in ("gradient", "patching"):
        found = np.abs(maps[name][0].sel(layer=0).values)
        assert np.unravel_index(found.argmax(), found.shape) == place, name
        # Later tokens have seen it in the first layer; earlier ones have not.
        assert found.ravel()[:token].max(initial=0) < 0.1 * found.max(), name
    # Nothing reads an image token after the last layer.
    assert not maps.gradient.sel(layer=2).any() and np.allclose(maps.patching.sel(layer=2), 0, atol=1e-6)
    assert not np.isclose(maps.score, maps.donor, atol=1e-6)
    table = to_table(maps)
    assert len(table) == 4 * 3 * 36 and set(table.measure) == set(MEASURES)
    (value,) = (
        table[(table.measure == "patching") & (table.layer == 0)].set_index(["row", "column"]).loc[place, ["value"]]
    )
    assert value == maps.patching[0, 0, place[0], place[1]]


def test_the_picture_itself_as_donor_explains_nothing(tiny_vlm, queries):
    prompts = to_prompts(queries[:2], "noise", tiny_vlm.picture_size)
    maps = picture_map(tiny_vlm, prompts, score, ["gradient", "patching"], donors=prompts, batch_size=3)
    assert not maps.gradient.any() and np.allclose(maps.patching, 0, atol=1e-5)
    assert np.allclose(maps.score, maps.donor) and maps.sizes["prompt"] == 2


def test_the_gradient_is_the_slope_of_patching(tiny_vlm, queries):
    (prompt,) = to_prompts(queries[:1], "noise", tiny_vlm.picture_size)
    donor = replace(prompt, pictures=(Image.new("RGB", (tiny_vlm.picture_size,) * 2, (127,) * 3),))
    maps = picture_map(tiny_vlm, [prompt], score, ["gradient"], donors=[donor], layers=[1])
    batch = collate(tiny_vlm, [prompt])
    image = tiny_vlm.image_positions(batch["input_ids"])[0].nonzero().flatten()
    states, donors = (resid_post(tiny_vlm, collate(tiny_vlm, [own]), image[None])[:, 1] for own in (prompt, donor))
    step, slopes = 0.05, []
    for i, position in enumerate(image):
        moved = [states[:, i : i + 1] + sign * step * (donors - states)[:, i : i + 1] for sign in (1, -1)]
        values = []
        for state in moved:
            with torch.no_grad(), replaced(tiny_vlm.blocks[1], position.view(1, 1), torch.ones(1, 1) > 0, state):
                values.append(score(tiny_vlm.model(**batch).logits[:, -1].double().log_softmax(-1)).item())
        slopes.append((values[1] - values[0]) / (2 * step))
    expected = np.array(slopes).reshape(maps.gradient[0, 0].shape)
    np.testing.assert_allclose(maps.gradient[0, 0], expected, rtol=0.05, atol=np.abs(expected).max() * 0.02)


def test_attention_and_rollout_are_their_formulas(tiny_folder, tiny_vlm, queries):
    (prompt,) = to_prompts(queries[:1], "noise", tiny_vlm.picture_size)
    maps = picture_map(tiny_vlm, [prompt], score, ["attention", "rollout"])
    eager = VLM.from_pretrained(tiny_folder, device="cpu", attn_implementation="eager")
    batch = collate(eager, [prompt])
    with torch.no_grad():
        attentions = eager.model(**batch, output_attentions=True).attentions
    is_image = eager.image_positions(batch["input_ids"])[0]
    total = np.eye(len(is_image))
    for layer, weights in enumerate(attentions):
        mean = weights[0].mean(0).numpy()
        total = (mean + np.eye(len(mean))) / 2 @ total
        assert np.allclose(maps.attention[0, layer].values.ravel(), mean[-1, is_image], atol=1e-6)
        assert np.allclose(maps.rollout[0, layer].values.ravel(), total[-1, is_image], atol=1e-6)
    assert not tiny_vlm.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", [family.name for family in deep.FAMILIES])
def test_every_family_is_mapped_or_refused_in_one_line(name, tmp_path):
    next(family for family in deep.FAMILIES if family.name == name).build(tmp_path)
    vlm = VLM.from_pretrained(tmp_path, device="cpu")
    prompts = ContractInputs.of(vlm).prompts[:1]
    before = resid_post(vlm, collate(vlm, prompts))
    try:
        maps = picture_map(vlm, prompts, score, layers=[0])
    except ModelError as refusal:
        assert "\n" not in str(refusal) and ("no grid" in str(refusal) or "no tokens" in str(refusal))
        assert name not in ("LLaVA", "Gemma 3", "PaliGemma")
    else:
        assert all(np.isfinite(maps[measure]).all() for measure in MEASURES)
        # A layer may look at its neighbours only, and so not at the picture.
        assert (maps.attention.sum(("row", "column")) <= 1).all() and maps.patching.any()
    assert torch.equal(resid_post(vlm, collate(vlm, prompts)), before)


def test_what_cannot_be_mapped_is_refused_before_anything_runs(tiny_vlm, queries):
    prompts = to_prompts(queries[:1], "noise", tiny_vlm.picture_size)
    for wrong, message in (
        (lambda: picture_map(tiny_vlm, [text_prompt("How?")], score), "a prompt with 0 pictures; expected one"),
        (lambda: picture_map(tiny_vlm, prompts, score, ["gaze"]), "expected some of attention, rollout, gradient"),
        (lambda: picture_map(tiny_vlm, prompts, score, layers=[3]), "expected each from 0 to 2"),
        (lambda: picture_map(tiny_vlm, prompts, score, donors=[]), "0 donors for 1 prompts"),
        (lambda: picture_map(tiny_vlm, prompts, ForcedScore((1,), score)), "looks at a second token, after 1 first"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
