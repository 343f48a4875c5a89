"""Batches become smaller where memory runs out, and the results stay the same."""

import pytest
import torch

from interp.batches import in_halves
from interp.directions import SafetyDirection, random_basis
from interp.errors import ModelError
from interp.guard import Guard
from interp.guard_batches import run_guards
from interp.inputs import to_prompts
from interp.vlm import VLM
from studies.generation.first_token import first_token_logprobs
from studies.generation.generate import Generation, answers, perplexities

FITS = 2


@pytest.fixture
def vlm(tiny_folder):
    return VLM.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def small_memory(vlm):
    """Let passes of more than `FITS` rows run out of memory; return the sizes of all passes."""
    sizes = []

    def check(module, args, kwargs):
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        sizes.append(len(given))
        if sizes[-1] > FITS:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = vlm.model.register_forward_pre_hook(check, with_kwargs=True)
    yield sizes
    handle.remove()


@pytest.fixture
def prompts(vlm, queries):
    return [prompt for modality in ("text", "blank") for prompt in to_prompts(queries, modality, vlm.picture_size)]


def test_answers_and_scores_are_the_same(vlm, prompts, tiny_vlm, small_memory):
    generation = Generation(4, batch_size=8)
    n_done = []
    assert answers(vlm, prompts, generation, n_done.append) == answers(tiny_vlm, prompts, generation)
    assert sum(n_done) == len(prompts) and max(small_memory) > FITS
    found, expected = (first_token_logprobs(model, prompts, generation) for model in (vlm, tiny_vlm))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    texts = [f"Answer {'a ' * i}" for i in range(5)]
    requests = [prompt.text for prompt in prompts[:5]]
    found, expected = (perplexities(model, requests, texts) for model in (vlm, tiny_vlm))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_answers_whose_logits_are_too_many_are_scored_apart(vlm, monkeypatch, small_memory):
    monkeypatch.setattr("studies.generation.generate.LOGIT_BYTES", 1)
    assert len(perplexities(vlm, ["How?"] * 3, ["So."] * 3)) == 3
    assert max(small_memory) == 1


@pytest.mark.parametrize("together", [True, False])
def test_guards_are_the_same(vlm, prompts, tiny_vlm, small_memory, together):
    direction = SafetyDirection(random_basis(torch.zeros(vlm.n_layers, 1, vlm.d_model), 0), "random")
    guards = [None, Guard(direction, (1,), "ablate", gate="always")]
    scores = {"top": lambda logprobs, unguarded: logprobs.amax(-1)}
    n_done = []
    found = run_guards(
        vlm, prompts[4:], guards, scores=scores, max_new_tokens=3, advance=n_done.append, together=together
    )
    expected = run_guards(tiny_vlm, prompts[4:], guards, scores=scores, max_new_tokens=3, together=together)
    assert torch.equal(found.tokens, expected.tokens) and sum(n_done) == 8
    torch.testing.assert_close(found.scores["top"], expected.scores["top"], rtol=1e-4, atol=1e-4)
    assert max(small_memory) > FITS


def test_a_size_that_fits_is_kept():
    tried = []

    def run(rows):
        tried.append(len(rows))
        if len(rows) > FITS:
            raise MemoryError
        return sum(rows)

    plan = [list(range(start, start + 8)) for start in (0, 8, 16)]
    found = list(in_halves(plan, run))
    assert [row for rows, _ in found for row in rows] == list(range(24))
    assert [total for _, total in found] == [sum(rows) for rows, _ in found]
    # Only the first batch is tried in sizes that don't fit.
    assert tried == [8, 4, *[2] * 12]


def test_one_prompt_that_does_not_fit_and_other_errors_are_errors():
    def run(rows):
        raise MemoryError("no room")

    with pytest.raises(ModelError, match="one prompt does not fit into memory: no room"):
        list(in_halves([[0, 1]], run))

    def fail(rows):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(in_halves([[0, 1]], fail))
