"""Models in training are read as they answer, and stay in training."""

import numpy as np
import pytest
import torch

from interp import VLM, Guard, SafetyDirection, patch, run_guards, to_prompts, trace
from interp.evaluation_mode import evaluation_mode


@pytest.fixture
def vlm(tiny_folder):
    return VLM.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def prompts(vlm, queries):
    return to_prompts(queries[:4], "blank", vlm.picture_size)


def train(vlm):
    """Put a model into the middle of its training: dropout, checkpointing, one part frozen in evaluation mode."""
    vlm.model.train()
    vlm.model.activation_checkpointing_enable()
    vlm.model.model.vision_tower.eval()
    for module in vlm.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5


def first_token(logprobs, unguarded=None):
    return logprobs[..., 0]


def test_a_trace_after_training_with_checkpointing_equals_the_one_before(vlm, prompts):
    before = trace(vlm, prompts).resid_post.values
    train(vlm)
    np.testing.assert_array_equal(trace(vlm, prompts).resid_post.values, before)
    # Training goes on as it was.
    assert vlm.model.training and vlm.blocks[0].training and not vlm.model.model.vision_tower.training


def test_guards_together_and_patching_are_those_of_evaluation_mode(vlm, prompts):
    direction = SafetyDirection.fit(trace(vlm, prompts), estimator="mean_diff")
    guards = [None, Guard(direction, layers=(1,), rule="ablate", gate="always")]
    before = run_guards(vlm, prompts, guards, scores={"first": first_token}).scores["first"]
    patched = patch(vlm, prompts, first_token, layers=[1]).patched.values
    train(vlm)
    after = run_guards(vlm, prompts, guards, scores={"first": first_token}).scores["first"]
    torch.testing.assert_close(after, before)
    np.testing.assert_allclose(patch(vlm, prompts, first_token, layers=[1]).patched.values, patched, atol=1e-6)


def test_every_module_gets_its_own_mode_back_after_an_error(vlm):
    train(vlm)
    modes = [module.training for module in vlm.model.modules()]
    with pytest.raises(RuntimeError), evaluation_mode(vlm.model):
        assert not any(module.training for module in vlm.model.modules())
        raise RuntimeError
    assert [module.training for module in vlm.model.modules()] == modes and any(modes) and not all(modes)
