"""Shared prefixes give the states of whole prompts on every family; where they don't, prompts run in full."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from interp.inputs import collate_same_pictures, text_prompt
from interp.residual_stream import residual_stream
from interp.trace import trace
from interp.tracing import prefix
from interp.tracing.forward import PassSpec
from interp.tracing.prefix import CutPrompts, Prefix, SharingDisabled, shares_prefixes
from interp.vlm import VLM
from tests.families.all_families import DEEP, FOLDERS

TEXTS = ("How do I?", "How do I water a plant?", "Tell me, please, what the capital of that country is called.", "Why?")
ALL_FAMILIES = {family.name: family for family in (*DEEP, *FOLDERS)}
IN_FULL = {"PaliGemma": "its prefix looks ahead", "Mllama": "its pictures are not part of the token sequence"}
# Their caches of gated delta nets can't be joined with those of a prefix.
IN_FULL |= dict.fromkeys(("Qwen3.5", "Qwen3.5-MoE"), "its code accepts no such prefix")
STREAM_SITES = ("resid_pre", "resid_post")
# Raised by the libraries' processors under NumPy 2, not by this project.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def prompts_about(*pictures: Image.Image):
    return [replace(text_prompt(text), pictures=(picture,)) for text in TEXTS for picture in pictures]


def noise(size: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size * 3 // 2, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_a_shared_prefix_gives_the_states_of_whole_prompts(name, vlm_of, monkeypatch):
    if name in {family.name for family in FOLDERS} and is_torchvision_available():
        pytest.skip("with torchvision the family's own processor loads")
    vlm = vlm_of(name)
    sites = (*STREAM_SITES, "attn_out", "mlp_out") if not residual_stream(vlm).without_sum else STREAM_SITES
    kwargs = {"sites": sites, "tokens": ("last", "image_mean", "text_mean", "instruction"), "batch_size": 3}
    # Two pictures with four prompts each, and one prompt with a picture of its own.
    prompts = prompts_about(noise(28, 0), noise(40, 1)) + prompts_about(noise(28, 2))[:1]
    if name in IN_FULL:
        with pytest.warns(SharingDisabled, match=IN_FULL[name]):
            shared = trace(vlm, prompts, **kwargs)
        assert not shares_prefixes(vlm)
    else:
        runs, run = [], Prefix.run
        monkeypatch.setattr(Prefix, "run", lambda *args: runs.append(1) or run(*args))
        assert shares_prefixes(vlm)
        runs.clear()
        shared = trace(vlm, prompts, **kwargs)
        assert len(runs) == 2
    whole = trace(vlm, prompts, **kwargs, share_prefix=False)
    for site in sites:
        # Each layer by its own scale: states grow with depth.
        scale = np.nanmax(np.abs(whole[site].values), axis=(0, 2, 3), keepdims=True)
        assert (scale > 0).all()
        np.testing.assert_allclose(shared[site].values / scale, whole[site].values / scale, atol=1e-5, equal_nan=True)
    assert shared.position.equals(whole.position)


def test_one_warning_says_that_prompts_run_in_full(vlm_of):
    vlm = vlm_of("PaliGemma")
    prefix._SHARING.pop(vlm.model, None)
    prompts = prompts_about(noise(28, 0))
    with pytest.warns(SharingDisabled, match="runs every prompt in full"):
        trace(vlm, prompts)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SharingDisabled)
        trace(vlm, prompts)


def test_a_prefix_can_be_longer_than_a_sliding_window(tmp_path):
    """A cache that keeps only the window would lose the beginning of the prefix."""
    ALL_FAMILIES["Gemma 3"].build(tmp_path)
    vlm = VLM.from_pretrained(tmp_path, device="cpu")
    text = vlm.model.config.get_text_config()
    text.sliding_window = 3
    for module in vlm.model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 3
    prompts = prompts_about(noise(28, 0))
    shared, whole = trace(vlm, prompts), trace(vlm, prompts, share_prefix=False)
    scale = np.abs(whole.resid_post.values).max()
    np.testing.assert_allclose(shared.resid_post.values / scale, whole.resid_post.values / scale, atol=1e-5)


def test_copies_of_a_prefix_grow_for_longer_and_for_more_suffixes(tiny_vlm, monkeypatch):
    """Passes have at most two rows; the prefix is kept for the next batch."""
    first, rows = collate_same_pictures(tiny_vlm, prompts_about(noise(96, 0)))
    layers = tuple(range(tiny_vlm.n_layers))
    whole = trace(tiny_vlm, prompts_about(noise(96, 0)), share_prefix=False).resid_post.values[:, :, 0]

    def spec_at(ends):
        return lambda rows, n_pos: PassSpec(("resid_post",), layers, torch.tensor([[ends[i]] for i in rows]))

    cut = CutPrompts.of(tiny_vlm, first, rows)
    shared_prefix = Prefix.run(tiny_vlm, cut, PassSpec(("resid_post",), layers, torch.zeros(1, 0, dtype=torch.long)))
    bytes_per_row = sum(layer.keys.nbytes + layer.values.nbytes for layer in shared_prefix._filled.layers)
    monkeypatch.setattr(prefix, "CACHE_BYTES", 2.5 * bytes_per_row)
    monkeypatch.setattr(prefix, "MIN_ROWS", 1)
    for chosen in ([0], [0, 3, 1], [2, 1, 0, 3, 2]):
        part = CutPrompts(cut.prefix, tuple(cut.suffixes[i] for i in chosen))
        states = shared_prefix.read_suffixes(tiny_vlm, part, spec_at([len(suffix) - 1 for suffix in part.suffixes]))
        expected = whole[chosen]
        np.testing.assert_allclose(states["resid_post"][:, :, 0], expected, atol=1e-5 * np.abs(expected).max())
        assert shared_prefix._n_rows <= 2


@pytest.mark.skipif(is_torchvision_available(), reason="with torchvision the family's own processor loads")
def test_other_prompts_may_run_between_a_prefix_and_its_suffixes(vlm_of):
    """Qwen models remember where the positions of the last prompt ended."""
    vlm, layers = vlm_of("Qwen2-VL"), (0, 1)
    prompts = prompts_about(noise(56, 0))
    cut = CutPrompts.of(vlm, *collate_same_pictures(vlm, prompts))
    shared_prefix = Prefix.run(vlm, cut, PassSpec(("resid_post",), layers, torch.zeros(1, 0, dtype=torch.long)))
    ends = torch.tensor([[len(suffix) - 1] for suffix in cut.suffixes])

    def read_suffixes():
        return shared_prefix.read_suffixes(vlm, cut, lambda rows, n_pos: PassSpec(("resid_post",), layers, ends))

    before = read_suffixes()["resid_post"]
    trace(vlm, prompts_about(Image.new("RGB", (28, 28)))[:1], share_prefix=False)
    assert torch.equal(read_suffixes()["resid_post"], before)


def test_prompts_that_differ_before_the_picture_share_nothing(tiny_vlm):
    kind, quick = (replace(prompts_about(noise(96, 0))[0], system=system) for system in ("Be kind.", "Be quick."))
    assert CutPrompts.of(tiny_vlm, *collate_same_pictures(tiny_vlm, [kind, quick])) is None
    both = trace(tiny_vlm, [kind, quick])
    assert both.attrs["share_prefix"] == "true" and np.isfinite(both.resid_post.values).all()


def test_tokens_before_the_cut_are_read_in_whole_prompts(tiny_vlm):
    prompts = prompts_about(noise(96, 0))
    shared, whole = (trace(tiny_vlm, prompts, tokens=(1, "last"), share_prefix=share) for share in (True, False))
    np.testing.assert_array_equal(shared.resid_post.values, whole.resid_post.values)
