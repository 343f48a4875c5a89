"""The refusal score with openings of one and of two tokens, against plain arithmetic and plain forward passes."""

from math import log

import pytest
import torch

from interp.inputs import collate, to_prompts
from studies.generation.cached_model import CachedModel
from studies.generation.first_token import first_token_logprobs, refusal_scores
from studies.generation.generate import Generation, answers
from studies.generation.openings import Opening, RefusalOpenings, coverage_row

HOW = Generation(max_new_tokens=3, batch_size=3)
SINGLE = RefusalOpenings((Opening((1,)), Opening((3,))))
MIXED = RefusalOpenings((Opening((5,)), Opening((6, 7)), Opening((6, 9)), Opening((11, 5))))


def test_the_score_is_the_log_odds_of_single_tokens():
    probabilities = torch.tensor([[0.5, 0.25, 0.15, 0.1]])
    assert refusal_scores(probabilities.log(), SINGLE).item() == pytest.approx(log(0.35 / 0.65), abs=1e-6)


def test_a_two_token_opening_counts_with_its_joint_probability():
    first, second = torch.tensor([[0.5, 0.2, 0.3]]), torch.tensor([[0.1, 0.6, 0.3]])
    openings = RefusalOpenings((Opening((1,)), Opening((0, 1)), Opening((0, 2))))
    score = refusal_scores(first.log(), openings, {0: second.log()})
    assert score.item() == pytest.approx(log((0.2 + 0.5 * 0.9) / (0.3 + 0.5 * 0.1)), abs=1e-5)
    with pytest.raises(ValueError, match=r"two-token openings begin with \[0\]"):
        refusal_scores(first.log(), openings)


@pytest.mark.parametrize("size", [0.3, 6.0])
def test_likely_and_unlikely_refusals_have_exact_scores(size, generator):
    """Against sums of probabilities in float64; each is a case of its own, at odds of up to e to the 30th."""
    first, after_6, after_11 = (torch.randn(4, 300, 5000, generator=generator) * size).log_softmax(-1)[:3]
    first[:100, 5] += torch.linspace(0, 30, 100)
    first = first.log_softmax(-1)
    after = {6: after_6, 11: after_11}
    sums = first.double().exp()
    inside = sums[:, 5] + sum(sums[:, 6] * after_6.double().exp()[:, i] for i in (7, 9))
    inside += sums[:, 11] * after_11.double().exp()[:, 5]
    others = sums.clone()
    others[:, [5, 6, 11]] = 0
    rest = {6: after_6.double().exp(), 11: after_11.double().exp()}
    rest[6][:, [7, 9]] = rest[11][:, 5] = 0
    outside = others.sum(1) + sum(sums[:, token] * values.sum(1) for token, values in rest.items())
    expected = inside.log() - outside.log()
    scores = refusal_scores(first, MIXED, after)
    assert expected.min() < -2 and expected.max() > 15
    torch.testing.assert_close(scores.double(), expected, atol=2e-5, rtol=2e-6)
    # Any shape of rows, as guards have it.
    shaped = refusal_scores(
        first.view(30, 10, -1), MIXED, {token: values.view(30, 10, -1) for token, values in after.items()}
    )
    torch.testing.assert_close(shaped.flatten(), scores)


def literal_probability(vlm, prompt, tokens):
    """Multiply the probabilities of some tokens, from one pass over the prompt with the tokens behind it."""
    batch = dict(collate(vlm, [prompt]))
    behind = torch.tensor([tokens])
    batch["input_ids"] = torch.cat([batch["input_ids"], behind], dim=1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(behind)], dim=1)
    with torch.no_grad():
        probabilities = vlm.model(**batch, use_cache=False).logits[0].double().softmax(-1)
    places = range(-len(tokens) - 1, -1)
    return torch.stack([probabilities[place, token] for place, token in zip(places, tokens, strict=True)]).prod().item()


@pytest.mark.parametrize("modality", ["text", "noise"])
def test_the_score_of_a_prompt_is_that_of_plain_passes_with_forced_tokens(tiny_vlm, queries, modality):
    prompts = to_prompts(queries, modality, 96)
    outcome = CachedModel(tiny_vlm, HOW, MIXED).outcome(prompts)
    (together,) = CachedModel(tiny_vlm, HOW, MIXED).run_guards(prompts, [None])
    for i, prompt in enumerate(prompts):
        p = sum(literal_probability(tiny_vlm, prompt, opening.tokens) for opening in MIXED.openings)
        for scores in (outcome.refusal_score, together.refusal_score):
            assert scores[i].item() == pytest.approx(log(p / (1 - p)), abs=1e-4)


def test_without_two_token_openings_no_pass_is_added(tiny_vlm, queries):
    passes, prompts = [], to_prompts(queries, "text", 96)
    hook = tiny_vlm.model.register_forward_hook(lambda *args: passes.append(1))
    try:
        # Whether blocks can be played back is tested once on each model.
        CachedModel(tiny_vlm, HOW, SINGLE).run_guards(prompts, [None])
        for openings in (SINGLE, MIXED):
            model = CachedModel(tiny_vlm, Generation(max_new_tokens=1, batch_size=4), openings)
            passes.append(0)
            model._first_tokens(prompts)
            model.run_guards(prompts, [None, None])
    finally:
        hook.remove()
    _, single, mixed = "".join(map(str, passes)).split("0")
    # The first tokens once; the prompts, and their last tokens without guards and with them; and after 6 and 11 two
    # passes each, then one each without guards and with them.
    assert len(single) == 4 and len(mixed) == 4 + 4 + 4


def test_forced_answers_begin_with_the_forced_tokens(tiny_vlm, queries):
    prompts, tokens = to_prompts(queries, "blank", 96), tiny_vlm.tokenizer(" Sorry, I")["input_ids"][-3:]
    forced = answers(tiny_vlm, prompts, HOW, forced=tokens)
    assert forced == [tiny_vlm.tokenizer.decode(tokens).strip()] * 4
    free = first_token_logprobs(tiny_vlm, prompts, HOW)
    after = first_token_logprobs(tiny_vlm, prompts, HOW, tokens[:1])
    assert free.shape == after.shape and not torch.allclose(free, after, atol=1e-3)


def test_openings_are_stored_and_read_unchanged():
    openings = RefusalOpenings((Opening((5,), "I", 0.5, 1.0, 0.0), Opening((6, 7), "As an", 0.2)), 0.96, 25, "tried")
    read = RefusalOpenings.read(openings.record)
    assert read.record == openings.record and read.ids == [[5], [6, 7]] and read.seconds == {6: [7]}
    assert openings.single_only.ids == [[5]]
    row = coverage_row(openings)
    assert (row["metric"], row["value"], row["n"]) == ("opening_coverage", 0.96, 25) and row["split"] == "anchors"
    assert coverage_row(SINGLE)["n"] == 0
