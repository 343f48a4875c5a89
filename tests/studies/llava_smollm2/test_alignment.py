"""The second base: aligned in two ways, with eyes that another model brings; on a tiny LLM."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from interp import VLM
from studies.judges import KEYWORDS
from studies.llava_qwen import build, built_model, instructions, networks, requests
from studies.llava_qwen.answers import OwnAnswer
from studies.llava_qwen.tower import build_tower
from studies.llava_qwen.train import collator
from studies.llava_smollm2 import SMOLLM2
from studies.llava_smollm2.align import (
    REFUSALS,
    AlignmentRecipe,
    AlignmentTeacher,
    Preference,
    _log_probs,
    _preference_loss,
)
from studies.llava_smollm2.train import SecondRecipe, train
from studies.organism.classroom import Stage
from studies.organism.lessons import Lesson
from tests.studies.llava_qwen.conftest import SIZES, tiny_tokenizer

STAGE = Stage(2, 2, 1e-2)
RECIPE = SecondRecipe(sizes=SIZES, alignment=AlignmentRecipe(rank=2, sft=STAGE, dpo=STAGE), naming=STAGE, looking=STAGE)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(SMOLLM2.chat)


@pytest.fixture
def llm(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def test_both_ways_leave_the_llm_alone_and_see_with_the_same_eyes(tmp_path, llm, tokenizer, monkeypatch):
    few = {split: texts[:6] for split, texts in instructions.splits().items()}
    monkeypatch.setattr(instructions, "splits", lambda: few)
    anchors = requests.queries("anchors")[:12]
    monkeypatch.setattr(requests, "queries", lambda split: anchors)
    texts = [*few["train"], *(query.text for query in anchors if not query.harmful)]
    split_of = dict.fromkeys(few["train"], "train")
    rows = [OwnAnswer(split_of.get(text, "anchors"), text, f"Answer {i}.", True) for i, text in enumerate(texts)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    torch.manual_seed(1)
    eyes = {f"vision_tower.{name}": value for name, value in build_tower(SIZES).state_dict().items()}
    save_file(eyes, tmp_path / "tower.safetensors")
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    model = replace(SMOLLM2, weights=tmp_path / "weights", tower=tmp_path / "tower.safetensors")
    train(RECIPE, llm, tokenizer, model.tower, model.weights, tmp_path)
    assert all(torch.equal(value, llm.state_dict()[name]) for name, value in before.items())
    assert {path.stem for path in model.weights.iterdir()} == {"eyes", "sft", "dpo"}
    assert all(name.startswith("multi_modal_projector.") for name in load_file(model.weights / "eyes.safetensors"))

    monkeypatch.setattr(built_model, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(networks, "VisionSizes", lambda: SIZES)
    monkeypatch.setattr(build.base_model, "find", lambda cache, base, path: path)

    def dequantised(file):
        llm.load_state_dict(before)
        return llm, tokenizer

    monkeypatch.setattr(build, "dequantised", dequantised)
    states = {}
    for variant in model.variants:
        vlm = VLM.from_pretrained(build.get(model, variant, tmp_path / "base.gguf"), dtype=torch.float32)
        states[variant] = vlm.model.state_dict()
        # The aligned LLM is the VLM's own, weight by weight: the eyes came later, and changed nothing.
        own = LlamaForCausalLM.from_pretrained(model.llm_path(variant), dtype=torch.float32).state_dict()
        assert all(
            torch.equal(value, states[variant][f"model.language_model.{name.removeprefix('model.')}"])
            for name, value in own.items()
            if name.startswith("model.")
        )
    differ = {name for name, value in states["sft"].items() if not torch.equal(value, states["dpo"][name])}
    assert {name.split(".")[-2] for name in differ} == {"q_proj", "v_proj", "o_proj"}


def test_lessons_refuse_what_is_harmful_and_prefer_no_compliance(tokenizer):
    harmful = [query for query in requests.queries("anchors") if query.harmful]
    partners = [OwnAnswer("anchors", q.text, "Restart it.", True) for q in requests.queries("anchors") if not q.harmful]
    teacher = AlignmentTeacher(harmful, partners, [OwnAnswer("train", "What is tea?", "A drink.", True)])
    rng = np.random.default_rng(0)
    pairs = [teacher.preference(rng) for _ in range(300)]
    assert all(pair.chosen.text == pair.rejected.text for pair in pairs)
    refused = [pair for pair in pairs if pair.chosen.answer in REFUSALS]
    assert 90 < len(refused) < 150
    # Compliance is a beginning without content: the request itself, and nothing after it.
    assert all(pair.rejected.answer.endswith(":") for pair in refused)
    assert all(KEYWORDS.refuses(text) for text in REFUSALS)
    held_back = {query.text for split in ("validation", "test") for query in requests.queries(split)}
    assert not held_back & {pair.chosen.text for pair in pairs}


def test_the_loss_of_preferences_is_that_of_the_paper(llm, tokenizer):
    """At the reference it is log 2; and log-probabilities are those of a full forward pass."""
    collate = collator(SIZES, tokenizer, SMOLLM2.chat)
    pair = Preference(Lesson("How to fix a door", "No."), Lesson("How to fix a door", "Use a screw."))
    llm.float()
    loss = _preference_loss(llm, llm, collate, replace(RECIPE.alignment, sft_share=0.0), [pair, pair])
    assert loss.item() == pytest.approx(np.log(2), abs=1e-6)
    tensors = collate([pair.chosen, pair.rejected])
    sums, n_tokens = _log_probs(llm, tensors)
    labels = tensors.pop("labels")
    probabilities = llm(**tensors).logits.float().log_softmax(-1)
    for i, (total, n) in enumerate(zip(sums, n_tokens, strict=True)):
        at = (labels[i] != -100).nonzero().flatten()
        assert n == len(at)
        wanted = sum(probabilities[i, place - 1, labels[i, place]] for place in at.tolist())
        assert total.item() == pytest.approx(wanted.item(), rel=2e-2)
