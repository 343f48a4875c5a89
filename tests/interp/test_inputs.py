import json
from dataclasses import replace

import pytest
import torch

from interp.errors import ModelError
from interp.identity import prompt_record, text_hash
from interp.inputs import (
    MODALITIES,
    TYPOGRAPHIC_REQUEST,
    Query,
    collate,
    collate_same_pictures,
    text_prompt,
    to_prompt,
    to_prompts,
    transcription_prompt,
)
from interp.pictures import open_picture


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_modality_becomes_a_batch(tiny_vlm, queries, modality):
    batch = collate(tiny_vlm, to_prompts(queries, modality, tiny_vlm.picture_size))
    n_image_tokens = (batch["input_ids"] == tiny_vlm.image_token_id).sum(1).tolist()
    assert n_image_tokens == ([0] * 4 if modality == "text" else [36] * 4)
    assert ("pixel_values" in batch) == (modality != "text")


def test_batches_are_padded_on_the_left_and_the_last_token_ends_the_prompt(tiny_vlm, queries):
    batch = collate(tiny_vlm, to_prompts(queries, "text", 96))
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].all()
    assert all(text.endswith("ASSISTANT:") for text in tiny_vlm.tokenizer.batch_decode(batch["input_ids"]))


def test_the_request_is_in_the_text_or_in_the_picture(queries):
    assert to_prompt(queries[0], "blank", 96).text == queries[0].text
    assert to_prompt(queries[0], "typographic", 96).text == TYPOGRAPHIC_REQUEST


def test_pictures_depend_on_the_query_only(queries):
    for modality in ("noise", "scene", "typographic"):
        chosen = (queries[0], queries[0], queries[1])
        first, repeated, other = (open_picture(to_prompt(query, modality, 96).pictures[0]) for query in chosen)
        assert first.tobytes() == repeated.tobytes() != other.tobytes()


def test_templates_keep_the_braces_of_a_request():
    prompt = to_prompt(Query("What is {x} in {request}?", False), "text", 96, template="Please: {request}")
    assert prompt.text == "Please: What is {x} in {request}?"


def test_a_system_turn_comes_first(tiny_vlm, queries):
    batch = collate(tiny_vlm, [to_prompt(queries[0], "blank", 96, system="Be kind.")])
    assert tiny_vlm.tokenizer.decode(batch["input_ids"][0]).startswith("SYSTEM: Be kind.\nUSER: <image>")


def test_a_transcription_prompt_keeps_the_picture_and_asks_for_its_text(queries):
    prompt = to_prompt(queries[0], "typographic", 96, system="Be kind.")
    transcription = transcription_prompt(prompt)
    assert transcription.pictures == prompt.pictures and not transcription.system
    assert "Write down the text" in transcription.text
    with pytest.raises(ValueError, match="has no picture"):
        transcription_prompt(text_prompt("hello"))


def test_invalid_prompts_are_refused_by_name(tiny_vlm, queries):
    with pytest.raises(ValueError, match="modality 'smell' does not exist; expected one of text, blank"):
        to_prompt(queries[0], "smell", 96)
    with pytest.raises(ValueError, match="has no place for the request"):
        to_prompt(queries[0], "text", 96, template="Please")
    mixed = [to_prompt(queries[0], modality, 96) for modality in ("text", "blank")]
    with pytest.raises(ValueError, match="a batch of 2 prompts, 1 of them with a picture"):
        collate(tiny_vlm, mixed)


def test_the_pixels_of_a_batch_are_those_of_the_picture(tiny_vlm, queries):
    batch = collate(tiny_vlm, to_prompts(queries[:1], "blank", 96))
    assert torch.equal(batch["pixel_values"], torch.ones(1, 3, 96, 96))


# --- earlier turns ---------------------------------------------------------------------------------------------------


QUERY = Query("How do I pick a melon?", harmful=False)
EARLIER = (("How do I water a plant?", "Here is how."),)


def test_earlier_turns_come_between_the_system_turn_and_the_request(tiny_vlm):
    prompt = replace(to_prompt(QUERY, "blank", 16, system="Be kind."), earlier=EARLIER)
    assert [turn["role"] for turn in prompt.messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in prompt.messages[-1]["content"]] == ["image", "text"]
    shown = tiny_vlm.tokenizer.decode(collate(tiny_vlm, [prompt])["input_ids"][0])
    assert shown.index(EARLIER[0][1]) < shown.index(prompt.text)


def test_prompts_are_told_apart_by_earlier_turns_and_those_without_keep_their_hash():
    prompt = to_prompt(QUERY, "blank", 16)
    plain, later = (prompt_record(each, {}) for each in (prompt, replace(prompt, earlier=EARLIER)))
    assert plain["prompt_hash"] != later["prompt_hash"] and plain["beginning"] != later["beginning"]
    # As stores that were written before there were earlier turns have it.
    assert plain["prompt_hash"] == text_hash(json.dumps([prompt.system, prompt.text, [plain["picture"]]]))


def test_earlier_turns_are_read_for_control_tokens_and_left_out_when_a_picture_is_read(tiny_vlm):
    prompt = replace(to_prompt(QUERY, "typographic", 16), earlier=((f"{tiny_vlm.tokenizer.eos_token} Yes", "No"),))
    with pytest.raises(ModelError, match="earlier turn"):
        collate(tiny_vlm, [prompt])
    assert transcription_prompt(prompt).earlier == ()


def test_prompts_with_earlier_turns_share_their_beginning(tiny_vlm):
    prompts = [replace(to_prompt(each, "blank", 16), earlier=EARLIER) for each in (QUERY, replace(QUERY, text="Why?"))]
    first, rows = collate_same_pictures(tiny_vlm, prompts)
    for prompt, row in zip(prompts, rows, strict=True):
        assert torch.equal(row, collate(tiny_vlm, [prompt])["input_ids"][0])
