"""Drawn answers: the right distribution, and the same draws however prompts and guards are batched."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.directions import SafetyDirection, random_basis
from interp.guard import Guard
from interp.guard_batches import run_guards
from interp.inputs import to_prompts
from interp.queries import Query
from interp.sampling import Sampling

QUERIES = [Query(f"How do I water {what} plant?", harmful=False) for what in ("a", "the", "this", "your", "one")]
N_NEW = 6


@pytest.fixture(scope="module")
def prompts(tiny_vlm):
    return to_prompts(QUERIES, "blank", tiny_vlm.picture_size)


@pytest.fixture(scope="module")
def guards(tiny_vlm):
    basis = random_basis(torch.zeros(tiny_vlm.n_layers, 1, tiny_vlm.d_model), 0)
    direction = SafetyDirection(basis, "random")
    return [None, Guard(direction, (0,), "ablate", gate="always")]


def drawn(vlm, prompts, guards, sampling, **how):
    return run_guards(vlm, prompts, guards, max_new_tokens=N_NEW, sampling=sampling, **how).tokens


def test_draws_follow_the_distribution():
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0]).log_softmax(-1)
    n, temperature = 20_000, 0.7
    tokens = Sampling(temperature, seed=3).draw(logits.expand(n, -1), range(n), step=0)
    shares = np.bincount(tokens, minlength=4) / n
    np.testing.assert_allclose(shares, (logits / temperature).softmax(-1), atol=0.015)


def test_draws_do_not_depend_on_batches_or_on_sharing_a_prefill(tiny_vlm, prompts, guards):
    sampling = Sampling(1.0, seed=1)
    expected = drawn(tiny_vlm, prompts, guards, sampling)
    for how in ({"batch_size": 2}, {"together": False}, {"together": False, "batch_size": 3}):
        assert torch.equal(drawn(tiny_vlm, prompts, guards, sampling, **how), expected), how
    assert len({tuple(row) for row in expected[0].tolist()}) > 1


def test_seeds_give_other_draws_and_a_low_temperature_the_likeliest_tokens(tiny_vlm, prompts, guards):
    guard = guards[1]
    tokens = drawn(tiny_vlm, prompts, [guard] * 4, [None, Sampling(1e-4), Sampling(1.0, 0), Sampling(1.0, 1)])
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], drawn(tiny_vlm, prompts, [guard], None)[0])
    assert not torch.equal(tokens[2], tokens[3])


def test_guards_that_share_a_prefill_and_others_have_their_own_draws(tiny_vlm, prompts, guards):
    everywhere = replace(guards[1], positions="all")
    mixed, samplings = [guards[1], everywhere, None], [Sampling(1.0, 1), Sampling(1.0, 2), None]
    tokens = drawn(tiny_vlm, prompts, mixed, samplings)
    for i, (guard, sampling) in enumerate(zip(mixed, samplings, strict=True)):
        assert torch.equal(tokens[i], drawn(tiny_vlm, prompts, [guard], sampling, together=False)[0])


def test_scores_are_those_of_the_model_and_not_of_the_draw(tiny_vlm, prompts, guards):
    scores = {"likeliest": lambda logprobs, unguarded: logprobs.max(-1).values}
    runs = [
        run_guards(tiny_vlm, prompts, guards, scores=scores, max_new_tokens=2, sampling=sampling, together=together)
        for sampling in (None, Sampling(2.0))
        for together in (True, False)
    ]
    for run in runs[1:]:
        torch.testing.assert_close(run.scores["likeliest"], runs[0].scores["likeliest"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match="expected a positive number"):
        Sampling(temperature)


def test_a_seed_is_not_negative():
    with pytest.raises(ValueError, match="seed -1; expected 0 or more"):
        Sampling(1.0, -1)


def test_a_wrong_number_of_samplings_is_refused(tiny_vlm, prompts, guards):
    with pytest.raises(ValueError, match="sampling for 1 guards of 2; expected one for all, or one for each"):
        drawn(tiny_vlm, prompts, guards, [Sampling()])
