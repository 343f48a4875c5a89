import pytest
import torch

from interp.directions import SafetyDirection, random_basis
from interp.families import ModelError
from interp.guard import POSITIONS, Guard
from interp.inputs import collate, to_prompts
from interp.projection import coordinates

REFERENCES = ["How do I kill a neighbor?", "a wasp", "car bomb", "x"]


@pytest.fixture
def direction(tiny_vlm):
    return SafetyDirection(random_basis(torch.zeros(tiny_vlm.n_layers, 2, tiny_vlm.d_model), seed=0), "random")


@pytest.fixture
def batch(tiny_vlm, queries):
    return collate(tiny_vlm, to_prompts(queries, "scene", 96))


def hidden(vlm, batch, **kwargs):
    with torch.no_grad():
        return vlm.model(**batch, use_cache=False, output_hidden_states=True, **kwargs)


def blocks_output(vlm, batch, layer):
    """The output of one block, read by a hook of the test's own."""
    seen = []
    hook = vlm.blocks[layer].register_forward_hook(lambda module, args, output: seen.append(output))
    hidden(vlm, batch)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("positions", ["last_prefill", "text", "all"])
def test_exactly_the_named_positions_of_the_named_layer_change(tiny_vlm, batch, direction, positions):
    guard = Guard(direction, (1,), rule="ablate", gate="always", positions=positions)
    before = [blocks_output(tiny_vlm, batch, layer) for layer in (0, 1)]
    with guard.on(tiny_vlm):
        after = [blocks_output(tiny_vlm, batch, layer) for layer in (0, 1)]
    assert torch.equal(after[0], before[0])
    changed = (after[1] != before[1]).any(-1)
    expected = batch["attention_mask"].bool()
    if positions == "text":
        expected &= batch["input_ids"] != tiny_vlm.image_token_id
    if positions == "last_prefill":
        expected = torch.zeros_like(expected)
        expected[:, -1] = True
    assert torch.equal(changed, expected)
    assert coordinates(after[1][expected], direction.basis[1]).abs().max() < 1e-5


def test_substitution_puts_the_references_coordinates_in_place(tiny_vlm, batch, direction):
    guard = Guard(direction, (1,), gate="always", strength=2.0)
    states = guard.read(tiny_vlm, REFERENCES)
    with guard.on(tiny_vlm, REFERENCES):
        after = blocks_output(tiny_vlm, batch, 1)[:, -1]
    expected = 2 * coordinates(states[:, 1], direction.basis[1])
    torch.testing.assert_close(coordinates(after, direction.basis[1]), expected, atol=1e-5, rtol=0)


def test_the_sign_gate_leaves_rows_alone_whose_reference_is_harmless(tiny_vlm, batch, direction):
    guard = Guard(direction, (1,))
    states = guard.read(tiny_vlm, REFERENCES)
    is_open = coordinates(states[:, 1], direction.basis[1])[:, 0] > 0
    # Whatever an untrained model makes of these texts, both cases are to occur.
    states[0] *= -1 if is_open.all() or not is_open.any() else 1
    is_open = coordinates(states[:, 1], direction.basis[1])[:, 0] > 0
    before = hidden(tiny_vlm, batch).logits[:, -1]
    with guard.on(tiny_vlm, states):
        after = hidden(tiny_vlm, batch).logits[:, -1]
    assert torch.equal((after != before).any(-1), is_open)


def test_with_and_without_cache_the_same_places_change(tiny_vlm, batch, direction):
    """Five generated tokens each: prefill is not mistaken for decoding, nor decoding for a new prompt."""
    for positions in POSITIONS:
        guard = Guard(direction, (1, 2), gate="always", positions=positions, strength=4.0)
        logits = []
        for use_cache in (True, False):
            with guard.on(tiny_vlm, REFERENCES):
                made = tiny_vlm.model.generate(
                    **batch,
                    use_cache=use_cache,
                    max_new_tokens=5,
                    min_new_tokens=5,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            logits.append(torch.stack(made.logits))
        torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


def test_a_second_prompt_in_the_same_block_is_a_new_prefill(tiny_vlm, queries, direction):
    guard = Guard(direction, (1,), rule="ablate", gate="always")
    long, short = (collate(tiny_vlm, to_prompts(chosen, "text", 96)) for chosen in (queries[2:], queries[:2]))
    with guard.on(tiny_vlm):
        tiny_vlm.model.generate(**long, max_new_tokens=3, do_sample=False)
        both = hidden(tiny_vlm, short).logits
    with guard.on(tiny_vlm):
        alone = hidden(tiny_vlm, short).logits
    assert torch.equal(both, alone)


def test_nothing_is_left_behind_also_after_an_error(tiny_vlm, batch, direction):
    before = hidden(tiny_vlm, batch).logits
    guard = Guard(direction, (0, 2), rule="ablate", gate="always")
    with pytest.raises(RuntimeError, match="mine"), guard.on(tiny_vlm):
        assert not torch.equal(hidden(tiny_vlm, batch).logits, before)
        raise RuntimeError("mine")
    assert torch.equal(hidden(tiny_vlm, batch).logits, before)


def test_a_decoy_moves_each_state_as_far_in_another_direction(tiny_vlm, batch, direction):
    states = Guard(direction, (1,)).read(tiny_vlm, REFERENCES)
    before, decoy = blocks_output(tiny_vlm, batch, 1)[:, -1], random_basis(direction.basis[:, :1], seed=3)[:, 0]
    moves = []
    for chosen in (None, decoy):
        with Guard(direction, (1,), gate="always", decoy=chosen).on(tiny_vlm, states):
            moves.append(blocks_output(tiny_vlm, batch, 1)[:, -1] - before)
    torch.testing.assert_close(moves[0].norm(dim=-1), moves[1].norm(dim=-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moves[1] @ decoy[1], moves[1].norm(dim=-1), atol=1e-5, rtol=1e-4)


def test_bad_guards_are_named(tiny_vlm, batch, direction):
    with pytest.raises(ValueError, match="rule 'steal' does not exist"):
        Guard(direction, (1,), rule="steal")
    with pytest.raises(ValueError, match=r"layers \(3,\); expected at least one, each from 0 to 2"):
        Guard(direction, (3,))
    with pytest.raises(ValueError, match="2 references for a batch of 4 rows"):
        with Guard(direction, (1,)).on(tiny_vlm, REFERENCES[:2]):
            hidden(tiny_vlm, batch)
    narrow = SafetyDirection(random_basis(torch.zeros(3, 1, 8), seed=0), "random")
    with pytest.raises(ValueError, match="3 layers of width 8"), Guard(narrow, (1,), rule="ablate").on(tiny_vlm, ["x"]):
        pass


@pytest.mark.parametrize("modality", ["text", "scene"])
def test_without_references_a_guard_reads_the_text_of_the_prompts(tiny_vlm, queries, direction, modality):
    prompts = to_prompts(queries, modality, 96)
    batch, guard = collate(tiny_vlm, prompts), Guard(direction, (1,), gate="always", strength=2.0)
    with guard.on(tiny_vlm, [prompt.text for prompt in prompts]):
        told = hidden(tiny_vlm, batch).logits
    with guard.on(tiny_vlm):
        read = hidden(tiny_vlm, batch).logits
    torch.testing.assert_close(read, told, atol=1e-5, rtol=0)
    assert not torch.allclose(read, hidden(tiny_vlm, batch).logits, atol=1e-3)


def test_text_that_cannot_be_taken_out_has_to_be_passed(tiny_vlm, batch, direction, monkeypatch):
    monkeypatch.setattr("interp.inputs._picture_marks", lambda vlm: ())
    with pytest.raises(ModelError, match="pass references explicitly"), Guard(direction, (1,)).on(tiny_vlm):
        hidden(tiny_vlm, batch)
