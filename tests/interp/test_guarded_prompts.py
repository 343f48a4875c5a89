"""What a guard knows of one batch of prompts is never used for another."""

import copy
import threading
from dataclasses import replace

import pytest
import torch

from interp.bare import bare, is_bare
from interp.directions import SafetyDirection, random_basis
from interp.errors import ModelError
from interp.guard import Guard
from interp.guard_batches import run_guards
from interp.inputs import collate, to_prompts
from interp.patching import patch
from interp.position_tracker import PositionTracker
from interp.prompt_text import prompt_texts
from interp.vlm import VLM

ANOTHER = "another batch of prompts in the same block"


@pytest.fixture
def direction(tiny_vlm):
    return SafetyDirection(random_basis(torch.zeros(tiny_vlm.n_layers, 1, tiny_vlm.d_model), seed=0), "random")


@pytest.fixture
def ablation(direction):
    return Guard(direction, (0, 1), rule="ablate", gate="always", positions="all")


@pytest.fixture
def batches(tiny_vlm, queries):
    """Two batches of the same shape, of one prompt each."""
    return [collate(tiny_vlm, to_prompts([queries[i]], "blank", 96)) for i in (2, 3)]


def run(vlm, batch, **kwargs):
    with torch.no_grad():
        return vlm.model(**batch, **kwargs)


def lengths(batch):
    return batch["attention_mask"].sum(1)


def with_answer(batch, n=3):
    more = torch.full((len(batch["input_ids"]), n), 7)
    longer = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    return batch | {name: torch.cat([batch[name], value], dim=1) for name, value in longer.items()}


def test_lengths_are_for_one_batch_of_prompts_with_any_answers(tiny_vlm, batches, ablation):
    first, second = batches
    with ablation.on(tiny_vlm, prompt_lengths=lengths(first)):
        run(tiny_vlm, with_answer(first), use_cache=False)
        run(tiny_vlm, with_answer(first, 5), use_cache=False)
        with pytest.raises(ModelError, match=ANOTHER):
            run(tiny_vlm, with_answer(second), use_cache=False)


def test_one_length_is_not_taken_for_different_prompts(tiny_vlm, queries, ablation):
    batch = collate(tiny_vlm, to_prompts(queries, "text", 96))
    with pytest.raises(ModelError, match="1 prompt_lengths for a batch of 4 rows"):
        with ablation.on(tiny_vlm, prompt_lengths=[9]):
            run(tiny_vlm, batch, use_cache=False)


def test_references_of_one_picture_are_not_used_for_another(tiny_vlm, batches, direction):
    first, guard = batches[0], Guard(direction, (1,), reference="transcription")
    other = first | {"pixel_values": first["pixel_values"] + 1}
    kwargs = {"max_new_tokens": 2, "do_sample": False}
    for answer in (lambda batch: run(tiny_vlm, batch), lambda batch: tiny_vlm.model.generate(**batch, **kwargs)):
        with guard.on(tiny_vlm, ["a text in a picture"]):
            answer(first)
            with pytest.raises(ModelError, match=ANOTHER):
                answer(other)


def test_a_pass_with_the_cache_of_an_earlier_prompt_is_refused(tiny_vlm, batches, ablation):
    token = torch.full((1, 1), 7)
    with pytest.raises(ModelError, match="is not that of the last pass"), ablation.on(tiny_vlm):
        first, _ = (run(tiny_vlm, batch) for batch in batches)
        tiny_vlm.model(input_ids=token, past_key_values=first.past_key_values)


def test_the_cache_of_passes_outside_the_block_is_not_taken_for_that_of_its_prompt(tiny_vlm, batches, ablation):
    longer = run(tiny_vlm, with_answer(batches[1])).past_key_values
    with pytest.raises(ModelError, match="the guard was off in a pass"), ablation.on(tiny_vlm):
        run(tiny_vlm, batches[0])
        tiny_vlm.model(input_ids=torch.full((1, 1), 7), past_key_values=longer)


@pytest.mark.parametrize("settings", [{"rule": "substitute"}, {"rule": "substitute", "frozen_shift": True}])
def test_what_is_read_from_prompts_needs_whole_prompts(tiny_vlm, batches, direction, settings):
    """The beginning of the prompt is in a cache: the rest alone would be taken for the prompt."""
    batch, guard = batches[0], Guard(direction, (1,), **settings)
    n = batch["input_ids"].shape[1] - 4
    beginning = batch | {name: batch[name][:, :n] for name in ("input_ids", "attention_mask")}
    cache = run(tiny_vlm, beginning).past_key_values
    rest = {"input_ids": batch["input_ids"][:, n:], "attention_mask": batch["attention_mask"], "past_key_values": cache}
    with pytest.raises(ModelError, match="does not hold whole prompts"):
        with guard.on(tiny_vlm, prompt_lengths=lengths(batch)):
            run(tiny_vlm, rest)


def test_a_frozen_shift_is_measured_at_the_end_of_the_prompt(tiny_vlm, batches, direction):
    batch, guard = batches[0], Guard(direction, (0, 1), gate="always", frozen_shift=True, strength=3.0)
    with guard.on(tiny_vlm):
        wanted = run(tiny_vlm, batch, use_cache=False).logits[:, -1]
    with guard.on(tiny_vlm, prompt_lengths=lengths(batch)):
        found = run(tiny_vlm, with_answer(batch), use_cache=False).logits[:, batch["input_ids"].shape[1] - 1]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_pass_that_failed_leaves_nothing_to_go_on_with(tiny_vlm, batches, direction):
    """Otherwise the second prompt would get the reference of the first."""
    guard = Guard(direction, (1,))
    first, second = batches
    with guard.on(tiny_vlm):
        run(tiny_vlm, first, use_cache=False)
        with pytest.raises(ModelError, match="a pass ends with"):
            run(tiny_vlm, with_answer(second), use_cache=False)
        with pytest.raises(ModelError, match="a pass ends with"):
            run(tiny_vlm, with_answer(second, 4), use_cache=False)


def test_copies_of_a_guarded_model_are_refused(tiny_vlm, batches, ablation):
    replica = copy.copy(tiny_vlm.model)
    with pytest.raises(ModelError, match="a copy of .* runs with the guard of the original"), ablation.on(tiny_vlm):
        replica(**batches[0])


def test_a_bare_pass_of_one_thread_does_not_switch_off_guards_in_another(tiny_vlm):
    found = []
    with bare(tiny_vlm.model):
        thread = threading.Thread(target=lambda: found.append(is_bare(tiny_vlm.model)))
        thread.start()
        thread.join()
        assert is_bare(tiny_vlm.model)
    assert found == [False]


def test_a_mask_of_another_width_is_refused(tiny_vlm, batches, ablation):
    """As in models whose cache has a name of its own: each token would be taken for a prompt."""
    batch = batches[0]
    with pytest.raises(ModelError, match="an attention mask of .* places for"), ablation.on(tiny_vlm):
        tiny_vlm.model(input_ids=batch["input_ids"][:, -1:], attention_mask=batch["attention_mask"])


def test_a_prepared_mask_with_a_sliding_window_shows_where_a_row_begins():
    """The last token sees the last three alone; the first of six places is padding."""
    places = torch.arange(6)
    sees = (places[:, None] >= places) & (places[:, None] - places < 3) & (places > 0)
    tracker = PositionTracker("last_prefill", lambda ids: torch.zeros_like(ids, dtype=torch.bool), [5])
    tracker.begin_pass(torch.ones(1, 6, dtype=torch.long), {"attention_mask": sees[None, None]})
    assert tracker.mask.tolist() == [[False] * 5 + [True]]


def test_placeholders_are_those_that_config_or_processor_name(tiny_vlm, monkeypatch):
    """The vocabulary may lack them, and a video may be shown as pictures."""
    own = VLM(tiny_vlm.model, copy.copy(tiny_vlm.processor))
    own.processor.audio_token_id, own.processor.video_token_id = 7, own.tokenizer.unk_token_id
    monkeypatch.setattr(own.model.config, "video_token_id", own.image_token_id, raising=False)
    assert own.other_placeholder_ids == {"audio": 7}
    ids = torch.tensor([[own.image_token_id, 7, 8]])
    assert own.placeholder_positions(ids).tolist() == [[True, True, False]]
    assert own.image_positions(ids).tolist() == [[True, False, False]]
    with pytest.raises(ModelError, match="a prompt with audio tokens"):
        prompt_texts(own, ids)


@pytest.fixture
def vlm_past_hooks(tiny_folder, queries, ablation):
    """A model that was tried in full before its blocks were called past their hooks, as compiled code calls them."""
    vlm = VLM.from_pretrained(tiny_folder, device="cpu")
    run_guards(vlm, to_prompts(queries[:1], "blank", 96), [replace(ablation, positions="last")], together=True)
    inner = vlm.model.model.language_model
    blocks, inner.layers = inner.layers, torch.nn.ModuleList(copy.copy(block) for block in inner.layers)
    for block in inner.layers:
        block._forward_hooks = {}
    assert vlm.blocks is blocks
    return vlm


def test_patches_are_not_silently_left_out(vlm_past_hooks, queries):
    with pytest.raises(ModelError, match="states of a block were not replaced"):
        patch(vlm_past_hooks, to_prompts(queries[:1], "blank", 96), lambda logprobs: logprobs[:, 0], layers=[1])


def test_guards_that_share_a_prefill_are_not_silently_left_out(vlm_past_hooks, queries, ablation):
    prompts, guard = to_prompts(queries[:1], "blank", 96), replace(ablation, positions="last")
    with pytest.raises(ModelError, match=r"layers \[0, 1\] did not run"):
        run_guards(vlm_past_hooks, prompts, [guard], together=True)
