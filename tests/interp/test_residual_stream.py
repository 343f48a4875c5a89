"""Where a model adds to its residual stream is found by running it, whatever its modules are called."""

import accelerate
import pytest
import torch
from torch import nn

from interp.inputs import to_prompts
from interp.residual_stream import residual_stream
from interp.trace import trace
from interp.vlm import VLM


@pytest.fixture
def vlm(tiny_folder):
    """A model that a test may change."""
    return VLM.from_pretrained(tiny_folder, device="cpu")


def scale(block, factor=0.5):
    block.mlp = _Scaled(block.mlp, factor)


class _Scaled(nn.Module):
    """An MLP whose output is scaled after the hooks that read it."""

    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor = inner, factor

    def __call__(self, resid):
        return super().__call__(resid) * self.factor

    def forward(self, resid):
        return self.inner(resid)


def test_a_plain_model_adds_nothing_but_its_parts(tiny_vlm):
    stream = residual_stream(tiny_vlm)
    assert not stream.without_sum and not stream.added_after


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_huge_state_does_not_hide_that_a_part_is_scaled(vlm, dtype):
    """Real models keep a number in the thousands at one token from an early layer on."""
    vlm.model.to(dtype)
    with torch.no_grad():
        vlm.model.get_input_embeddings().weight[:, 0] = 4000
    scale(vlm.blocks[1])
    assert set(residual_stream(vlm).without_sum) == {1}


def test_what_is_added_in_place_between_blocks_is_found(vlm):
    def add(module, args):
        args[0][..., 0] += 1e-3

    vlm.blocks[2].register_forward_pre_hook(add)
    assert residual_stream(vlm).added_after == {1}


def test_offloaded_models_are_tried_too(vlm):
    scale(vlm.blocks[1])
    accelerate.cpu_offload(vlm.model, execution_device="cpu")
    assert vlm.model.device.type == "meta" and set(residual_stream(vlm).without_sum) == {1}


def test_on_a_server_blocks_with_weights_of_their_own_are_not_trusted(tiny_folder):
    vlm = VLM.from_pretrained(tiny_folder, device="meta")
    vlm.blocks[0].register_buffer("layer_scalar", torch.ones(1, device="meta"))
    vlm.blocks[2].residual_multiplier = 0.5
    found = residual_stream(vlm).without_sum
    assert set(found) == {0, 2} and found[0].startswith("its layer_scalar may scale what its parts put out")


def test_a_layer_that_does_not_add_up_is_named_and_the_others_are_traced(vlm, queries):
    prompts, sites = to_prompts(queries[:1], "blank", 96), ("attn_out", "mlp_out")
    scale(vlm.blocks[1])
    with pytest.raises(ValueError, match=r"at layers \[1\]: they are scaled.*at layers \[0, 2\] they can be read"):
        trace(vlm, prompts, sites=sites)
    assert trace(vlm, prompts, sites=sites, layers=[0, 2]).layer.values.tolist() == [0, 2]
