"""Detectors that read the model, each against a literal rewrite."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.detectors import (
    first_tokens,
    gate_scores,
    hidden_detect,
    most_aware_layers,
    perplexity_of_texts,
    refusal_cosines,
)
from interp.directions import SafetyDirection, fit_gate
from interp.guard import Guard
from interp.inputs import collate, text_prompt, to_prompts
from interp.trace import trace

WORDS = ("I", "not", "help")


@pytest.fixture(scope="module")
def built(tiny_vlm):
    from studies.organism import language

    queries = language.queries("validation")[:6]
    return {name: trace(tiny_vlm, to_prompts(queries, name, 96)) for name in ("text", "blank")}


@torch.no_grad()
def test_hidden_detect_is_a_literal_rewrite_of_its_formula(tiny_vlm, built):
    """The released code, in loops: logits of each layer's state, cosine with the refusal vector, trapezoid."""
    tokens, layers = first_tokens(tiny_vlm, WORDS), [0, 1, 2]
    scores = hidden_detect(tiny_vlm, built["blank"], tokens, layers)
    for i, score in enumerate(scores):
        aware = []
        for layer in layers:
            state = torch.from_numpy(built["blank"].resid_post.sel(layer=layer, token="last").values[i])
            logits = tiny_vlm.model.lm_head(tiny_vlm.final_norm(state))
            refusal = torch.zeros(len(logits))
            refusal[tokens] = 1
            aware.append(torch.nn.functional.cosine_similarity(logits, refusal, dim=0).item())
        assert score == pytest.approx((aware[0] + aware[1]) / 2 + (aware[1] + aware[2]) / 2, abs=1e-6)


def test_layers_are_those_that_differ_more_than_the_last():
    is_harmful = np.array([True, True, False, False])
    cosines = np.zeros((4, 5))
    cosines[:2] = [0.1, 0.5, 0.4, 0.6, 0.2]
    assert most_aware_layers(cosines, is_harmful) == (1, 3)
    cosines[:2, -1] = 1
    assert most_aware_layers(cosines, is_harmful) == (0, 4)
    with pytest.raises(ValueError, match="got 4 harmful of 4"):
        most_aware_layers(cosines, np.ones(4, dtype=bool))


@pytest.mark.parametrize("gate", ["sign", "threshold", "probe"])
def test_a_gate_is_open_where_its_score_is_above_zero(built, gate):
    direction = SafetyDirection.fit(built["text"], "mean_diff")
    guard = Guard(direction, (0, 2) if gate == "sign" else (2,))
    if gate == "threshold":
        guard = replace(guard, gate=gate, threshold=direction.midpoint(2))
    states = torch.from_numpy(built["blank"].resid_post.sel(token="last").values)
    if gate == "probe":
        probe = fit_gate(built["text"], 2)
        logits = states[:, 2] @ probe.weight + probe.bias
        # A threshold of its own, which only the highest logit passes.
        guard = replace(guard, gate=gate, probe=replace(probe, threshold=logits.sort().values[-2:].mean().item()))
    is_open = torch.stack([guard.opens(states, layer) for layer in guard.layers]).any(0)
    scores = gate_scores(guard, states)
    assert ((scores > 0) == is_open.numpy()).all() and len(set(scores)) == len(scores)


def test_a_gate_that_is_always_open_detects_nothing(built):
    guard = Guard(SafetyDirection.fit(built["text"], "mean_diff"), (1,), gate="always")
    with pytest.raises(ValueError, match="`always` decides nothing"):
        gate_scores(guard, torch.zeros(1, 3, 32))


@torch.no_grad()
def test_perplexity_counts_the_tokens_of_the_text_alone_whatever_it_is_batched_with(tiny_vlm):
    texts = ["How do I kill a wasp?", "Tell me how to build a rope swing, please.", "wasp wasp wasp"]
    scores = perplexity_of_texts(tiny_vlm, texts)
    for text, score in zip(texts, scores, strict=True):
        ids = collate(tiny_vlm, [text_prompt(text)])["input_ids"]
        spans = [(i, j) for i in range(ids.shape[1]) for j in range(i + 1, ids.shape[1] + 1)]
        start, end = next(
            span
            for span in sorted(spans, key=lambda span: span[1] - span[0])
            if text in tiny_vlm.tokenizer.decode(ids[0, slice(*span)])
        )
        logprobs = tiny_vlm.model(input_ids=ids).logits[0].log_softmax(-1)
        nats = [-logprobs[start + i - 1, ids[0, start + i]].item() for i in range(end - start)]
        assert score == pytest.approx(np.mean(nats), abs=1e-4)


def test_no_refusal_token_is_an_error(tiny_vlm, built):
    with pytest.raises(ValueError, match="no refusal token"):
        refusal_cosines(tiny_vlm, built["text"], [])
