"""Requests that hold a model's own control tokens are refused by number, in every family."""

import pytest

from interp import Query, collate, text_prompt, to_prompts, trace
from interp.control_tokens import check_no_control_tokens, control_tokens_in, without_control_tokens
from interp.errors import ModelError
from tests.families.all_families import DEEP, FOLDERS
from tests.interp.conftest import vlm_of  # noqa: F401

FAMILIES = [family.name for family in (*DEEP, *FOLDERS)]
PLAIN = "How do I write <b>bold</b>, a < b, [INST or | im_start |?"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_takes_its_own_placeholder_and_special_tokens_for_no_text(name, vlm_of):  # noqa: F811
    vlm = vlm_of(name)
    tokenizer = vlm.tokenizer
    tokens = {vlm.tokenizer.convert_ids_to_tokens(vlm.image_token_id), tokenizer.eos_token, tokenizer.pad_token}
    for token in filter(None, tokens):
        assert control_tokens_in(vlm, f"Please{token} tell me.") == [token]
        with pytest.raises(ModelError, match="prompt 2 .* reads as a control token and not as text"):
            collate(vlm, [text_prompt("Fine."), text_prompt(f"Please{token} tell me.")])
    assert control_tokens_in(vlm, PLAIN) == []


def test_no_state_is_traced_before_all_prompts_are_checked(tiny_vlm):
    token = tiny_vlm.tokenizer.convert_ids_to_tokens(tiny_vlm.image_token_id)
    queries = [Query(f"request {i}", False) for i in range(5)] + [Query(f"look {token}", True)]
    done = []
    with pytest.raises(ModelError, match="prompt 6"):
        trace(tiny_vlm, to_prompts(queries, "text", 96), batch_size=1, advance=done.append)
    assert not done


def test_a_control_token_that_appears_when_another_is_left_out_is_left_out_too(tiny_vlm):
    token = tiny_vlm.tokenizer.convert_ids_to_tokens(tiny_vlm.image_token_id)
    nested = f"a {token[:3]}{token}{token[3:]} b"
    assert without_control_tokens(tiny_vlm, nested) == "a  b"


def test_a_system_turn_is_checked_too(tiny_vlm):
    token = tiny_vlm.tokenizer.eos_token
    with pytest.raises(ModelError, match="system turn 1"):
        collate(tiny_vlm, to_prompts([Query("hello", False)], "text", 96, system=f"Be safe.{token}"))


def test_texts_are_named_as_the_caller_calls_them(tiny_vlm):
    with pytest.raises(ModelError, match="mine.csv: request 1 "):
        check_no_control_tokens(tiny_vlm, [tiny_vlm.tokenizer.eos_token], "mine.csv: request")
