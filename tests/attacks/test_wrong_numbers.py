"""Input that is no input: weights without numbers, too few anchors, one request with two labels."""

import pytest
import torch

from interp import SafetyDirection, collate, text_prompt, to_prompts, trace
from interp.errors import ModelError
from interp.estimators import AnchorError
from interp.vlm import VLM
from studies.datasets import QueryFileError, read_queries


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_states_are_no_numbers_is_not_traced(value, tiny_folder, queries, tmp_path):
    vlm = VLM.from_pretrained(tiny_folder, device="cpu")
    with torch.no_grad():
        vlm.blocks[1].mlp.down_proj.weight[3, 3] = value
    with pytest.raises(ModelError, match="states that are no finite numbers: its weights are damaged"):
        trace(vlm, to_prompts(queries, "blank", 96), out=tmp_path / "store")
    with pytest.raises(ModelError, match=r"resid_post at layers \[1, 2\]: its weights are damaged"):
        trace(vlm, to_prompts(queries, "blank", 96), share_prefix=False)


@pytest.mark.parametrize("estimator", ["lda", "logistic"])
def test_one_pair_is_too_few_for_a_classifier(estimator, tiny_vlm, queries):
    pair = [next(query for query in queries if query.harmful == label) for label in (True, False)]
    activations = trace(tiny_vlm, to_prompts(pair, "text", 96))
    with pytest.raises(AnchorError, match="1 harmful and 1 harmless anchors; a classifier needs at least two of each"):
        SafetyDirection.fit(activations, estimator)


@pytest.mark.parametrize("estimator", ["lda", "logistic"])
def test_a_layer_with_one_state_for_all_has_no_classifier(estimator, tiny_vlm, queries):
    activations = trace(tiny_vlm, to_prompts(queries, "text", 96)).load()
    activations["resid_post"].loc[{"layer": 1}] = 1.0
    with pytest.raises(AnchorError, match="all anchors have the same state at layer 1"):
        SafetyDirection.fit(activations, estimator)


def test_a_request_with_both_labels_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("text,harmful\nhow do I open it,true\nanother,false\nhow do I open it,false\n")
    with pytest.raises(QueryFileError, match="line 4: the request of line 2, with the other label"):
        read_queries(path)


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("text,harmful,text\na,true,b\n")
    with pytest.raises(QueryFileError, match="names a column twice"):
        read_queries(path)


def test_a_chat_template_that_never_ends_is_stopped(tiny_folder, monkeypatch):
    vlm = VLM.from_pretrained(tiny_folder, device="cpu")
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    vlm.processor.chat_template = vlm.tokenizer.chat_template = loop
    monkeypatch.setattr("interp.inputs.TEMPLATE_SECONDS", 0.2)
    with pytest.raises(ModelError, match="the chat template of .*: it took more than 0.2 seconds for one word"):
        collate(vlm, [text_prompt("How do I water a plant?")])


def test_a_chat_template_that_takes_all_memory_is_stopped(tiny_folder):
    vlm = VLM.from_pretrained(tiny_folder, device="cpu")
    vlm.processor.chat_template = vlm.tokenizer.chat_template = "{{ 'a' * 1000000000 }}"
    with pytest.raises(ModelError, match="the chat template of .*: it took more than 64 MB for one word"):
        collate(vlm, [text_prompt("How do I water a plant?")])
