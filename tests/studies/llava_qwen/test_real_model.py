"""The real model, where it has been built: `vlm-guard model get llava-qwen-0.5b`, then `pytest -m slow`."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import LLM, VLM, SafetyDirection, text_prompt, to_prompts, trace
from interp.verify import check_vlm
from studies.generation.generate import Generation, answers
from studies.llava_qwen import QWEN, requests

VARIANT = QWEN.path(QWEN.default)
LLM_FOLDER = QWEN.llm_path(QWEN.default)
N_TOKENS = 16
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (VARIANT.is_dir() and LLM_FOLDER.is_dir()), reason="the model has not been built"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_contract_holds(dtype):
    findings = check_vlm(VLM.from_pretrained(VARIANT, dtype=dtype))
    assert not [(finding.claim, finding.measured) for finding in findings if not finding.is_accepted]


def test_the_llm_says_what_it_says_in_transformers_alone():
    texts = [query.text for split in ("validation", "test") for query in requests.queries(split)][:100]
    llm = LLM.from_pretrained(LLM_FOLDER)
    # One by one, since sums in bfloat16 depend on the padding.
    ours = answers(llm, [text_prompt(text) for text in texts], Generation(N_TOKENS, batch_size=1))
    tokenizer = AutoTokenizer.from_pretrained(LLM_FOLDER)
    model = AutoModelForCausalLM.from_pretrained(LLM_FOLDER, dtype=llm.model.dtype)
    for text, answer in zip(texts, ours, strict=True):
        chat = [{"role": "user", "content": text}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = model.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == answer


def test_the_direction_is_that_of_plain_numpy():
    vlm, queries = VLM.from_pretrained(VARIANT), requests.queries("anchors")[:80]
    prompts = to_prompts(queries, "text", vlm.picture_size)
    ours = SafetyDirection.fit(trace(vlm, prompts), estimator="paired_svd").basis[:, 0].numpy()
    states = []
    for query in queries:
        chat = [{"role": "user", "content": query.text}]
        ids = vlm.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True, chat_template=QWEN.chat.template
        )
        with torch.no_grad():
            hidden = vlm.model(**ids, output_hidden_states=True).hidden_states
        states.append(torch.stack([state[0, -1].float() for state in hidden[1:-1]]).numpy())
    states = np.stack(states)
    differences = states[0::2] - states[1::2]
    for layer in range(states.shape[1]):
        theirs = np.linalg.svd(differences[:, layer], full_matrices=False)[2][0]
        assert abs(theirs @ ours[layer]) >= 0.9999
