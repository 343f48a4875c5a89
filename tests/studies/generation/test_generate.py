import pytest
import torch

from interp.inputs import caption_prompt, to_prompts, transcription_prompt
from studies.generation.first_token import first_token_logprobs, kl_divergence
from studies.generation.generate import Generation, answers, perplexities
from studies.generation.reference_texts import reference_texts

GENERATION = Generation(max_new_tokens=4, batch_size=3)


def test_answers_keep_the_order_of_the_prompts(tiny_vlm, queries):
    prompts = to_prompts(queries, "text", 96) + to_prompts(queries, "noise", 96)
    together = answers(tiny_vlm, prompts, GENERATION)
    assert together == [answers(tiny_vlm, [prompt], GENERATION)[0] for prompt in prompts]
    assert len(set(together)) > 2


def test_first_token_logprobs_are_the_models(tiny_vlm, queries):
    prompts = to_prompts(queries, "blank", 96)
    logprobs = first_token_logprobs(tiny_vlm, prompts, GENERATION)
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(4))
    alone = torch.cat([first_token_logprobs(tiny_vlm, [prompt], GENERATION) for prompt in prompts])
    torch.testing.assert_close(logprobs, alone, atol=1e-4, rtol=0)


def test_each_reference_is_the_text_that_its_name_says(tiny_vlm, queries):
    prompts = to_prompts(queries, "typographic", 96)
    assert reference_texts(tiny_vlm, prompts, "oracle", GENERATION) == [query.text for query in queries]
    assert reference_texts(tiny_vlm, prompts, "prompt_text", GENERATION) == [prompts[0].text] * 4
    transcription = reference_texts(tiny_vlm, prompts, "transcription", GENERATION)
    assert len(transcription) == 4 and all(text != prompts[0].text for text in transcription if text)
    caption = reference_texts(tiny_vlm, prompts, "caption", GENERATION)
    assert caption == answers(tiny_vlm, [caption_prompt(prompt) for prompt in prompts], GENERATION)
    assert caption_prompt(prompts[0]).text != transcription_prompt(prompts[0]).text
    both = reference_texts(tiny_vlm, prompts, "prompt_text+transcription", GENERATION)
    assert both == [f"{prompts[0].text} {text}" if text else prompts[0].text for text in transcription]
    as_text = to_prompts(queries, "text", 96)
    assert reference_texts(tiny_vlm, as_text, "transcription", GENERATION) == [query.text for query in queries]
    with pytest.raises(ValueError, match="expected one of prompt_text, transcription, caption, prompt_text"):
        reference_texts(tiny_vlm, prompts, "guess", GENERATION)


def test_perplexity_equals_a_plain_rewrite(tiny_vlm):
    requests, replies = ["How do I kill a wasp?", "x"], ["Sure! Make a plan.", "I cannot help with that request."]
    ours = perplexities(tiny_vlm, requests, replies)
    for request, answer, value in zip(requests, replies, ours, strict=True):
        messages = [{"role": "user", "content": [{"type": "text", "text": request}]}]
        prompt = tiny_vlm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        n_prompt = len(tiny_vlm.tokenizer(prompt)["input_ids"])
        ids = torch.tensor([tiny_vlm.tokenizer(f"{prompt} {answer}")["input_ids"]])
        with torch.no_grad():
            logprobs = tiny_vlm.model(input_ids=ids).logits[0].log_softmax(-1)
        losses = [-logprobs[i - 1, ids[0, i]].item() for i in range(n_prompt, ids.shape[1])]
        assert value.item() == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=1e-4)
    assert torch.isnan(perplexities(tiny_vlm, ["x", "y"], ["", "Sure!"])).tolist() == [True, False]


def test_kl_is_zero_for_equal_distributions_and_is_taken_from_the_unguarded():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    assert kl_divergence(p, p).item() == 0
    assert kl_divergence(p, q).item() == pytest.approx(0.5108, abs=1e-4)


@pytest.mark.parametrize("modality", ["text", "scene"])
def test_answers_give_the_first_tokens_log_probabilities_on_the_way(modality, tiny_vlm, queries):
    prompts, settings, found = to_prompts(queries, modality, 96), Generation(max_new_tokens=4, batch_size=3), {}
    texts = answers(tiny_vlm, prompts, settings, keep_first=found.__setitem__)
    assert texts == answers(tiny_vlm, prompts, settings)
    expected = first_token_logprobs(tiny_vlm, prompts, settings)
    torch.testing.assert_close(torch.stack([found[i] for i in range(len(prompts))]), expected, atol=1e-4, rtol=1e-4)
