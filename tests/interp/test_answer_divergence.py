"""The KL along the unguarded answer, compared with passes over prompt and answer that are changed by hand."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from interp.answer_divergence import answer_kl
from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.inputs import collate, to_prompts
from interp.trace import trace

N_TOKENS, LAYER = 4, 1


@pytest.fixture
def prompts(queries):
    return [*to_prompts(queries, "blank", 96), *to_prompts(queries, "text", 96)]


@pytest.fixture
def steer(tiny_vlm, queries):
    direction = SafetyDirection.fit(trace(tiny_vlm, to_prompts(queries, "text", 96)), "mean_diff")
    return Guard(direction, (LAYER,), "steer", gate="always", strength=20.0)


@contextmanager
def pushed(vlm, push, where):
    """Add a vector to the states after `LAYER` at some positions, inside the block."""

    def hook(module, args, out):
        resid = (out[0] if isinstance(out, tuple) else out).clone()
        resid[:, where] += push
        return (resid, *out[1:]) if isinstance(out, tuple) else resid

    handle = vlm.blocks[LAYER].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def by_hand(vlm, prompt, guard):
    """KL at each token of one prompt's answer: one pass over prompt and answer, plain and pushed."""
    batch, kl = collate(vlm, [prompt]), []
    with torch.no_grad():
        answer = vlm.model.generate(**batch, max_new_tokens=N_TOKENS, do_sample=False)
        n = batch["input_ids"].shape[1]
        whole = dict(batch) | {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
        basis, direction = guard.direction.basis[LAYER], guard.direction
        push = guard.strength * (direction.harmful - direction.harmless)[LAYER] @ basis
        where = {
            "last_prefill": slice(n - 1, n),
            "last": slice(n - 1, None),
            "generated": slice(n, None),
            "all": slice(None),
        }
        plain = vlm.model(**whole, use_cache=False).logits[0].log_softmax(-1)
        with pushed(vlm, push, where[guard.positions]):
            guarded = vlm.model(**whole, use_cache=False).logits[0].log_softmax(-1)
    for place in range(n - 1, answer.shape[1] - 1):
        kl.append((plain[place].exp() * (plain[place] - guarded[place])).sum())
    return torch.stack(kl), answer[0, n:]


@pytest.mark.parametrize("positions", ["last_prefill", "last", "generated", "all"])
def test_it_is_that_of_passes_over_the_whole_answer(tiny_vlm, prompts, steer, positions):
    guard = replace(steer, positions=positions)
    # Together with another guard, in batches of several prompts, of two modalities.
    kl = answer_kl(tiny_vlm, prompts, [replace(guard, strength=0.0), guard], n_tokens=N_TOKENS, batch_size=3)
    assert kl.shape == (2, len(prompts), N_TOKENS)
    for i, prompt in enumerate(prompts):
        expected, _ = by_hand(tiny_vlm, prompt, guard)
        torch.testing.assert_close(kl[1, i, : len(expected)], expected, atol=1e-4, rtol=1e-3)
        assert kl[1, i, len(expected) :].isnan().all() and kl[0, i].nan_to_num().abs().max() < 1e-5
    assert kl[1].nan_to_num().max() > 1e-3


@pytest.mark.parametrize("positions", ["last", "all"])
def test_nothing_counts_behind_the_token_that_ends_an_answer(tiny_vlm, prompts, steer, positions, monkeypatch):
    _, answer = by_hand(tiny_vlm, prompts[0], steer)
    ends = int(answer[1])
    monkeypatch.setattr(tiny_vlm.model.generation_config, "eos_token_id", ends)
    kl = answer_kl(tiny_vlm, prompts[:3], [replace(steer, positions=positions)], n_tokens=N_TOKENS)
    n_counted = answer.tolist().index(ends) + 1
    assert kl[0, 0].isfinite().tolist() == [step < n_counted for step in range(N_TOKENS)]


def test_references_are_needed_where_a_guard_reads_them(tiny_vlm, prompts, steer):
    with pytest.raises(ValueError, match="needs references"):
        answer_kl(tiny_vlm, prompts, [replace(steer, rule="substitute")])
