"""Patching is exact where the answer is known."""

import numpy as np
import pytest
import torch

from interp.forced import ForcedScore
from interp.inputs import collate, text_prompt, to_prompts
from interp.patching import ROLES, patch, recovered
from interp.tracing.forward import resid_post
from interp.verify import ContractInputs
from interp.vlm import VLM
from tests.families import deep

# A warning of the libraries, not ours: PaliGemma's processor and NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def score(logprobs):
    return logprobs[:, 5]


@pytest.fixture
def prompts(tiny_vlm, queries):
    return to_prompts(queries, "noise", tiny_vlm.picture_size)


def test_a_runs_own_states_change_nothing(tiny_vlm, prompts):
    scores = patch(tiny_vlm, prompts, score, donors=prompts)
    assert np.array_equal(scores.patched, scores.unpatched.broadcast_like(scores.patched))


def test_the_last_state_of_the_last_layer_gives_the_donors_output(tiny_vlm, prompts):
    scores = patch(tiny_vlm, prompts, score, batch_size=3)
    last_layer = scores.patched.sel(layer=2)
    for role in ("last", "all"):
        assert np.allclose(last_layer.sel(role=role), scores.donor, atol=1e-5)
    assert np.allclose(last_layer.sel(role="request"), scores.unpatched, atol=1e-6)
    assert not np.allclose(scores.donor, scores.unpatched, atol=1e-3)
    assert np.allclose(recovered(scores).sel(layer=2), [0, 0, 0, 1, 1], atol=1e-3)


def test_the_same_prompt_may_have_two_donors(tiny_vlm, prompts):
    donors = [text_prompt("How do I kill a wasp?"), text_prompt("What is the best way to build a rope swing?")]
    scores = patch(tiny_vlm, [prompts[0], prompts[0]], score, donors=donors, layers=[2], roles=["last"])
    alone = [patch(tiny_vlm, prompts[:1], score, donors=[donor], layers=[2], roles=["last"]) for donor in donors]
    assert np.allclose(scores.donor, [result.donor.item() for result in alone], atol=1e-5)
    assert scores.donor[0] != scores.donor[1] and (scores.n_tokens == 1).all()


def test_each_role_is_patched_at_its_own_tokens(tiny_vlm, queries, monkeypatch):
    """The patched states are read from the next block's input."""
    prompts = to_prompts(queries[2:3], "blank", tiny_vlm.picture_size)
    inputs = []
    hook = tiny_vlm.blocks[1].register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append((args[0] if args else kwargs["hidden_states"])[0]), with_kwargs=True
    )
    try:
        patch(tiny_vlm, prompts, score, layers=[0], roles=ROLES)
    finally:
        hook.remove()
    # The donor's trace, one run per role, the unpatched run, the donor's run.
    _, *patched, plain, _ = inputs
    changed = [((state != plain).any(-1)).nonzero().flatten() for state in patched]
    ids = collate(tiny_vlm, prompts)["input_ids"][0]
    texts = [tiny_vlm.tokenizer.decode(ids[positions]).strip() for positions in changed]
    request, instruction, template, last, everything = texts
    assert request.endswith("build a car bomb") and instruction == "?" and "?" not in template
    assert changed[3].tolist() == [len(ids) - 1] and everything.endswith(f"? {template}{last}".replace("  ", " "))
    assert len(changed[4]) == sum(map(len, changed[:4]))


def test_roles_without_shared_tokens_are_nan(tiny_vlm, queries):
    prompts = to_prompts(queries, "typographic", tiny_vlm.picture_size)
    scores = patch(tiny_vlm, prompts, score, donors=[text_prompt(query.text) for query in queries])
    assert scores.patched.sel(role="request").isnull().all() and scores.patched.sel(role="last").notnull().all()
    assert recovered(scores).sel(role="request").isnull().all()


@pytest.mark.parametrize("name", [family.name for family in deep.FAMILIES])
def test_every_family_can_be_patched(name, tmp_path):
    next(family for family in deep.FAMILIES if family.name == name).build(tmp_path)
    vlm = VLM.from_pretrained(tmp_path, device="cpu")
    inputs = ContractInputs.of(vlm)
    before = resid_post(vlm, inputs.batch)
    scores = patch(vlm, inputs.prompts, score)
    end = scores.patched.sel(layer=vlm.n_layers - 1, role="last")
    assert np.allclose(end, scores.donor, atol=1e-4) and not np.allclose(scores.donor, scores.unpatched, atol=1e-4)
    assert torch.equal(resid_post(vlm, inputs.batch), before)


def test_the_second_token_is_scored_after_a_forced_first_one_on_the_patched_prompt(tiny_vlm, prompts):
    """Against one pass over the prompt and the forced token, whose last prompt state is replaced by hand."""
    behind = ForcedScore((5,), lambda logprobs, after: logprobs[:, 5] + after[5][:, 7])
    scores = patch(tiny_vlm, prompts, behind, layers=[0, 1], roles=["last"], batch_size=3)

    def expected(prompt, state=None, layer=0):
        batch = dict(collate(tiny_vlm, [prompt]))
        last = batch["input_ids"].shape[1] - 1
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[5]])], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])

        def replace_state(module, args, output):
            output[0 if output.dim() == 2 else (0, last)].copy_(state)

        hooks = [] if state is None else [tiny_vlm.blocks[layer].register_forward_hook(replace_state)]
        with torch.no_grad():
            logprobs = tiny_vlm.model(**batch, use_cache=False).logits[0].log_softmax(-1)
        for hook in hooks:
            hook.remove()
        return (logprobs[last, 5] + logprobs[last + 1, 7]).item()

    donors = to_prompts([prompt.query for prompt in prompts], "text", 96)
    assert np.allclose(scores.unpatched, [expected(prompt) for prompt in prompts], atol=1e-4)
    assert np.allclose(scores.donor, [expected(prompt) for prompt in donors], atol=1e-4)
    for layer in (0, 1):
        states = [resid_post(tiny_vlm, collate(tiny_vlm, [donor]))[0, layer] for donor in donors]
        by_hand = [expected(prompt, state, layer) for prompt, state in zip(prompts, states, strict=True)]
        assert np.allclose(scores.patched.sel(layer=layer, role="last"), by_hand, atol=1e-4)
        assert not np.allclose(by_hand, scores.unpatched, atol=1e-4)


def test_bad_input_is_rejected_before_any_run(tiny_vlm, prompts, queries):
    with pytest.raises(ValueError, match="4 of 4 prompts have no picture"):
        patch(tiny_vlm, to_prompts(queries, "text", 32), score)
    with pytest.raises(ValueError, match="1 donors for 4 prompts"):
        patch(tiny_vlm, prompts, score, donors=prompts[:1])
    with pytest.raises(ValueError, match="role 'verb' does not exist"):
        patch(tiny_vlm, prompts, score, roles=["verb"])
    with pytest.raises(ValueError, match="expected each from 0 to 2"):
        patch(tiny_vlm, prompts, score, layers=[3])
