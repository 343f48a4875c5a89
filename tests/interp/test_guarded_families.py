"""A guard on every family: it changes what it names, and what the toolkit reads stays true."""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from interp.directions import SafetyDirection, random_basis
from interp.guard import Guard
from interp.inputs import Prompt, Query, collate
from interp.projection import coordinates
from interp.verify import check_vlm
from tests.families import deep, folders

FAMILIES = {family.name: family for family in deep.FAMILIES + folders.FAMILIES}
WITHOUT_TORCHVISION = {family.name for family in folders.FAMILIES}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


@pytest.fixture(autouse=True)
def without_torchvision(name):
    if name in WITHOUT_TORCHVISION and is_torchvision_available():
        pytest.skip("with torchvision the family's own processor loads")


def guard_of(vlm, layer, positions):
    basis = random_basis(torch.zeros(vlm.n_layers, 2, vlm.d_model), seed=3)
    return Guard(SafetyDirection(basis, "random"), (layer,), "ablate", gate="always", positions=positions)


@contextmanager
def watched(vlm):
    """What every block takes in, and the final norm: the stream between the blocks, and what reaches the logits."""
    seen = []

    def take(module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    places = [*vlm.blocks, vlm.final_norm]
    hooks = [place.register_forward_pre_hook(take, with_kwargs=True) for place in places]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def stream(vlm, batch):
    with torch.no_grad(), watched(vlm) as seen:
        vlm.model(**batch, use_cache=False)
    return seen


def prompts_of(vlm):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
    texts = ("How do I?", "How do I water a plant?")
    return [
        Prompt(Query(text, harmful=False), "scene", text, (Image.fromarray(one),))
        for text, one in zip(texts, pixels, strict=True)
    ]


@pytest.mark.parametrize("positions", ["last_prefill", "text", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_guard_changes_exactly_the_places_it_names(name, positions, vlm_of):
    vlm = vlm_of(name)
    batch, guard = collate(vlm, prompts_of(vlm)), guard_of(vlm, 1, positions)
    before = stream(vlm, batch)
    with guard.on(vlm):
        after = stream(vlm, batch)
    again = stream(vlm, batch)
    is_token, is_image = batch["attention_mask"].bool(), vlm.image_positions(batch["input_ids"])
    last = torch.zeros_like(is_token)
    last[:, -1] = True
    named = {"last_prefill": last, "text": is_token & ~is_image, "all": is_token}[positions]
    # Streams 0 and 1 stand in front of block 1, whose output is stream 2.
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])
    if 1 in vlm.deepstack_layers or 0 in vlm.deepstack_layers:
        is_token = is_token & ~is_image
        named = named & ~is_image
    moved = (after[2] != before[2]).any(-1)
    assert torch.equal(moved & (is_token | last), named)
    basis = guard.direction.basis[1]
    assert coordinates(before[2][named], basis).abs().max() > 1e-2
    assert coordinates(after[2][named], basis).abs().max() < 1e-4
    complement = torch.eye(vlm.d_model) - basis.T @ basis
    torch.testing.assert_close(after[2][named] @ complement, before[2][named] @ complement, atol=1e-5, rtol=1e-4)
    assert (after[3] - before[3]).abs().max() > 1e-4
    for left, first in zip(again, before, strict=True):
        assert torch.equal(left, first)


@pytest.mark.parametrize(
    "name", ["LLaVA-1.5", "LLaVA-NeXT", "Gemma 3", "Idefics3", "PaliGemma", "Mllama", "Qwen2-VL", "Qwen3-VL"]
)
def test_the_contract_holds_with_a_guard_on(name, vlm_of):
    vlm = vlm_of(name)
    with warnings.catch_warnings():
        # What a family's code warns of is told without a guard too.
        warnings.simplefilter("ignore")
        # At a layer with DeepStack a guard changes what the next block takes in, which then is not what the last gave.
        layer = vlm.n_layers - 1 if vlm.deepstack_layers else 0
        with guard_of(vlm, layer, "last").on(vlm):
            findings = check_vlm(vlm)
    assert not [(one.claim, one.measured) for one in findings if not one.is_accepted]
