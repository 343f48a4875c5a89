"""A guard on every family: it changes exactly its positions, and the contract still holds."""

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
from interp.residual_stream import residual_stream
from interp.verify import check_vlm
from tests.families.all_families import DEEP, FOLDERS

FAMILIES = {family.name: family for family in (*DEEP, *FOLDERS)}
WITHOUT_TORCHVISION = {family.name for family in FOLDERS}
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
    """Record the inputs of every block and of the final norm: the residual stream between blocks."""
    seen = []

    def record(module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    readers = [*vlm.blocks, vlm.final_norm]
    hooks = [reader.register_forward_pre_hook(record, with_kwargs=True) for reader in readers]
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
        Prompt(Query(text, harmful=False), "scene", text, (Image.fromarray(picture),))
        for text, picture in zip(texts, pixels, strict=True)
    ]


@pytest.mark.parametrize("positions", ["last_prefill", "text", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_guard_changes_exactly_the_positions_it_names(name, positions, vlm_of):
    vlm = vlm_of(name)
    batch, guard = collate(vlm, prompts_of(vlm)), guard_of(vlm, 1, positions)
    before = stream(vlm, batch)
    with guard.on(vlm):
        after = stream(vlm, batch)
    again = stream(vlm, batch)
    is_token, is_image = batch["attention_mask"].bool(), vlm.image_positions(batch["input_ids"])
    last = torch.zeros_like(is_token)
    last[:, -1] = True
    expected = {"last_prefill": last, "text": is_token & ~is_image, "all": is_token}[positions]
    # Streams 0 and 1 are the inputs of blocks 0 and 1; stream 2 is the output of block 1.
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])
    if {0, 1} & residual_stream(vlm).added_after:
        is_token = is_token & ~is_image
        expected = expected & ~is_image
    moved = (after[2] != before[2]).any(-1)
    assert torch.equal(moved & (is_token | last), expected)
    basis = guard.direction.basis[1]
    assert coordinates(before[2][expected], basis).abs().max() > 1e-2
    assert coordinates(after[2][expected], basis).abs().max() < 1e-4
    complement = torch.eye(vlm.d_model) - basis.T @ basis
    torch.testing.assert_close(after[2][expected] @ complement, before[2][expected] @ complement, atol=1e-5, rtol=1e-4)
    assert (after[3] - before[3]).abs().max() > 1e-4
    for state_again, state_before in zip(again, before, strict=True):
        assert torch.equal(state_again, state_before)


@pytest.mark.parametrize(
    "name", ["LLaVA-1.5", "LLaVA-NeXT", "Gemma 3", "Idefics3", "PaliGemma", "Mllama", "Qwen2-VL", "Qwen3-VL"]
)
def test_the_contract_holds_with_a_guard_on(name, vlm_of):
    vlm = vlm_of(name)
    with warnings.catch_warnings():
        # The warnings of a family's code also come without a guard.
        warnings.simplefilter("ignore")
        # With DeepStack a guard changes the input of the next block, which then differs from this block's output.
        layer = vlm.n_layers - 1 if residual_stream(vlm).added_after else 0
        with guard_of(vlm, layer, "last").on(vlm):
            findings = check_vlm(vlm)
    assert not [(finding.claim, finding.measured) for finding in findings if not finding.is_accepted]
