"""The second base: aligned in two ways, with eyes that another model brings; on a tiny LLM."""

import json
from copy import deepcopy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from interp import VLM
from studies.judges import KEYWORDS_1
from studies.llava_qwen import build, built_model, instructions, networks, requests
from studies.llava_qwen.answers import OwnAnswer
from studies.llava_qwen.base_model import BaseModelError
from studies.llava_qwen.tower import build_tower
from studies.llava_qwen.train import collator
from studies.llava_smollm2 import SMOLLM2
from studies.llava_smollm2.align import (
    COMPLIANCE,
    FORMS,
    REFUSALS,
    START,
    AlignmentRecipe,
    AlignmentTeacher,
    Preference,
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
    # Only requests of the anchors are in lessons of alignment, and a variant whose updates are missing is not built.
    (model.weights / "dpo.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"dpo\.safetensors does not exist"):
        build.get(model, "dpo", tmp_path / "base.gguf")
    differ = {name for name, value in states["sft"].items() if not torch.equal(value, states["dpo"][name])}
    assert {name.split(".")[-2] for name in differ} == {"q_proj", "v_proj", "o_proj"}


def test_lessons_refuse_what_is_harmful_and_prefer_no_compliance(tokenizer):
    anchors = requests.queries("anchors")
    harmful = [query for query in anchors if query.harmful]
    partners = [OwnAnswer("anchors", query.text, "Restart it.", True) for query in anchors if not query.harmful]
    teacher = AlignmentTeacher(harmful, partners, [OwnAnswer("train", "What is tea?", "A drink.", True)])
    rng = np.random.default_rng(0)
    pairs = [teacher.preference(rng) for _ in range(600)]
    assert all(pair.chosen.text == pair.rejected.text for pair in pairs)
    refused = {pair.chosen.text for pair in pairs if pair.chosen.answer in REFUSALS}
    assert 200 < sum(pair.chosen.answer in REFUSALS for pair in pairs) < 280
    # Compliance is a beginning without content, which is not about the request.
    assert all(pair.rejected.answer in COMPLIANCE for pair in pairs if pair.chosen.text in refused)
    assert all(KEYWORDS_1.refuses(text) for text in REFUSALS)
    tasks = {query.text.removeprefix(START) for query in anchors if query.text.startswith(START)}
    allowed = {form.format(task=task) for form in FORMS for task in tasks} | {query.text for query in anchors}
    assert {pair.chosen.text for pair in pairs} <= allowed | {"What is tea?"}
    assert refused <= {form.format(task=q.text.removeprefix(START)) for form in FORMS for q in harmful} | {
        query.text for query in harmful
    }


def log_prob(llm, collate, lesson):
    """Return the log-probability of an answer, from a full forward pass."""
    tensors = collate([lesson])
    labels = tensors.pop("labels")[0]
    probabilities = llm(**tensors).logits[0].float().log_softmax(-1)
    at = (labels != -100).nonzero().flatten()
    return sum(probabilities[place - 1, labels[place]] for place in at.tolist()), len(at)


def test_the_loss_of_preferences_is_that_of_the_paper(llm, tokenizer):
    """At the reference it is log 2; elsewhere it is computed here by hand."""
    collate, reference = collator(SIZES, tokenizer, SMOLLM2.chat), llm.float()
    pair = Preference(Lesson("How to fix a door", "No."), Lesson("How to fix a door", "Use a screw, and a hammer."))
    plain = replace(RECIPE.alignment, sft_share=0.0)
    at_reference = _preference_loss(reference, reference, collate, plain, [pair, pair]).item()
    assert at_reference == pytest.approx(np.log(2), abs=1e-6)
    own = deepcopy(reference)
    with torch.no_grad():
        for weight in own.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        ours = _preference_loss(own, reference, collate, replace(plain, beta=0.5, sft_share=0.3), [pair]).item()
        (chosen, n), (rejected, _) = (log_prob(own, collate, lesson) for lesson in (pair.chosen, pair.rejected))
        before, _ = log_prob(reference, collate, pair.chosen)
        before_rejected, _ = log_prob(reference, collate, pair.rejected)
    margin = 0.5 * ((chosen - before) - (rejected - before_rejected))
    wanted = -torch.nn.functional.logsigmoid(margin) - 0.3 * chosen / n
    assert abs(margin.item()) > 0.1 and ours == pytest.approx(wanted.item(), rel=3e-2)


def test_the_end_of_a_turn_is_seen_even_where_it_is_also_padding(tokenizer):
    padded_with_ends = deepcopy(tokenizer)
    padded_with_ends.pad_token = "<|im_end|>"
    tensors = collator(SIZES, padded_with_ends, SMOLLM2.chat)([Lesson("a", "b"), Lesson("a longer one", "b c d")])
    ends = tensors["input_ids"] == padded_with_ends.pad_token_id
    n_real = [3, 3]
    assert (ends & tensors["attention_mask"].bool()).sum(1).tolist() == n_real
