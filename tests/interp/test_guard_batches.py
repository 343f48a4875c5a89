"""Guards that ride together against the same guards one at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from interp.directions import SafetyDirection, random_basis
from interp.guard import Guard
from interp.guard_batches import RIDING, GuardBatchError, one_at_a_time, ride, run_guards, why_not
from interp.inputs import collate, text_prompt, to_prompts
from interp.projection import ProbeGate
from interp.vlm import VLM
from tests.families import deep, folders

ALL_FAMILIES = {family.name: family for family in deep.FAMILIES + folders.FAMILIES}
ONE_BY_ONE = {"PaliGemma": "look ahead", "Mllama": "take no place in the sequence"}
TEXTS = ("How do I?", "How do I water a plant?", "Tell me, please, what the capital of that country is called.")
# Of the libraries, not ours: processors and NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def guards_of(vlm: VLM) -> list[Guard | None]:
    """With layers, bases, ranks, rules, gates, scopes, positions and strengths of their own, and none at all."""
    last = vlm.n_layers - 1
    one, two = (
        SafetyDirection(random_basis(torch.zeros(vlm.n_layers, rank, vlm.d_model), rank), "random") for rank in (1, 2)
    )
    probe = ProbeGate(one.basis[0, 0], bias=0.0)
    return [
        None,
        Guard(one, (0,), gate="always", strength=3.0),
        Guard(two, (last,), "ablate", gate="always", positions="last"),
        Guard(two, (0, last), "add_reference", gate="sign", positions="generated", strength=4.0),
        Guard(one, (last,), "amplify", gate="always", positions="last", strength=2.0, keeps_norm=True),
        Guard(one, (last,), gate="threshold", threshold=0.1, gate_scope="target", direction_layer=0),
        Guard(one, (0, last), gate="probe", probe=probe, positions="last", strength=3.0, control="random"),
        Guard(two, (last,), gate="always", control="full_state"),
    ]


def each_prompt_alone(vlm, prompts, guard, references, n_new):
    """First logits and greedy tokens of each prompt alone."""
    logits, tokens = [], []
    for i, prompt in enumerate(prompts):
        batch = collate(vlm, [prompt])
        kwargs = {"max_new_tokens": n_new, "min_new_tokens": n_new, "do_sample": False}
        kwargs |= {"output_logits": True, "return_dict_in_generate": True}
        if guard is None:
            made = vlm.model.generate(**batch, **kwargs)
        else:
            with guard.on(vlm, references[i : i + 1]):
                made = vlm.model.generate(**batch, **kwargs)
        logits.append(torch.stack(made.logits, dim=1)[0])
        tokens.append(made.sequences[0, -n_new:])
    return torch.stack(logits), torch.stack(tokens)


def n_other(ours, theirs, logits, tolerance=1e-4):
    """Answers that differ: each only from a token on at which the loop's two best are as good as equal."""
    n_differing = 0
    for mine, other, step in zip(ours, theirs, logits, strict=True):
        if torch.equal(mine, other):
            continue
        best = step[int((mine != other).nonzero()[0])].topk(2).values
        assert best[0] - best[1] < tolerance
        n_differing += 1
    return n_differing


def compare(vlm, prompts, n_new=4):
    guards, unguarded, differing = guards_of(vlm), None, 0
    references = guards[1].read(vlm, [prompt.text for prompt in prompts])
    score_by = {
        "first": lambda logprobs, unguarded: logprobs[..., 3],
        "best": lambda logprobs, unguarded: logprobs.amax(-1),
        "moved": lambda logprobs, unguarded: (logprobs - unguarded[:, None]).abs().amax(-1),
    }
    ends, vlm.model.generation_config.eos_token_id = vlm.model.generation_config.eos_token_id, None
    try:
        ridden = ride(vlm, prompts, guards, references, score_by, max_new_tokens=n_new, batch_size=2)
        for i, guard in enumerate(guards):
            logits, tokens = each_prompt_alone(vlm, prompts, guard, references, n_new)
            logprobs = logits[:, 0].float().log_softmax(-1)
            unguarded = logprobs if i == 0 else unguarded
            for name, score in score_by.items():
                expected = score(logprobs[:, None], unguarded)[:, 0]
                torch.testing.assert_close(ridden.scores[name][i], expected, atol=1e-4, rtol=0)
            differing += n_other(ridden.tokens[i], tokens, logits)
    finally:
        vlm.model.generation_config.eos_token_id = ends
    # Near ties are rare, also on models whose weights are random.
    assert differing <= len(guards) * len(prompts) / 20
    moved = ridden.scores["moved"].amax(1)
    assert (moved[[1, 2, 4]] > 1e-4).all() and moved[3] < 1e-4


@pytest.mark.parametrize("name", [name for name in ALL_FAMILIES if name not in ONE_BY_ONE])
def test_riding_together_is_as_alone(name, vlm_of):
    if name in {family.name for family in folders.FAMILIES} and is_torchvision_available():
        pytest.skip("with torchvision the family's own processor loads")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one) for one in pixels]
    prompts = [replace(text_prompt(text), pictures=(pictures[i % 2],)) for i, text in enumerate(TEXTS)]
    compare(vlm_of(name), prompts)


@pytest.mark.parametrize("modality", ["text", "scene"])
def test_riding_together_on_a_model_like_the_built_in_one(tiny_vlm, queries, modality):
    compare(tiny_vlm, to_prompts(queries, modality, 96), n_new=6)


@pytest.mark.parametrize("name", ["Gemma 3", "LLaVA-NeXT", "Idefics2"])
def test_a_prompt_longer_than_a_sliding_window(name, tmp_path):
    """Gemma's layers slide by turns; all of Mistral's do, which lists no kinds of layers."""
    ALL_FAMILIES[name].build(tmp_path)
    vlm = VLM.from_pretrained(tmp_path, device="cpu")
    vlm.model.config.get_text_config().sliding_window = 3
    for module in vlm.model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 3
    compare(vlm, [replace(text_prompt(text), pictures=(Image.new("RGB", (28, 28)),)) for text in TEXTS])


def test_what_riders_cannot_follow_is_run_alone(tiny_vlm, queries, monkeypatch):
    """Settings of generation beyond the likeliest token, other layers, other attention; said in one line each."""
    config = tiny_vlm.model.generation_config
    monkeypatch.setattr(config, "repetition_penalty", 1.5)
    assert why_not(tiny_vlm, None) is None
    assert "generation config" in why_not(tiny_vlm, None, 2) and "repetition_penalty" in why_not(tiny_vlm, None, 2)
    prompts = to_prompts(queries, "blank", 96)
    rows = run_guards(tiny_vlm, prompts, [None], max_new_tokens=5)
    made = tiny_vlm.model.generate(**collate(tiny_vlm, prompts), max_new_tokens=5, do_sample=False)[:, -5:]
    assert list(rows.alone) == [0] and torch.equal(rows.tokens[0], made)
    text = tiny_vlm.model.config.get_text_config()
    monkeypatch.setattr(text, "_attn_implementation_internal", "flash_attention_2")
    assert "attends by flash_attention_2" in why_not(tiny_vlm, None)
    monkeypatch.undo()
    text.layer_types = ["chunked_attention"]
    try:
        assert "layers of chunked_attention" in why_not(tiny_vlm, None)
    finally:
        del text.layer_types


def test_riding_in_bfloat16_stays_near_the_loop(tiny_folder, queries):
    vlm = VLM.from_pretrained(tiny_folder, device="cpu", dtype=torch.bfloat16)
    prompts, guards = to_prompts(queries, "scene", 96), guards_of(vlm)
    references = guards[1].read(vlm, [query.text for query in queries])
    score = {"best": lambda logprobs, unguarded: logprobs.amax(-1)}
    both = [run(vlm, prompts, guards, references, score).scores["best"] for run in (ride, one_at_a_time)]
    torch.testing.assert_close(*both, atol=5e-2, rtol=0)


def test_answers_end_and_stay_ended(tiny_vlm, queries):
    """With an end that greedy decoding is bound to meet."""
    prompts, guards = to_prompts(queries, "scene", 96), guards_of(tiny_vlm)
    references = guards[1].read(tiny_vlm, [query.text for query in queries])
    free = ride(tiny_vlm, prompts, guards, references, max_new_tokens=6).tokens
    config = tiny_vlm.model.generation_config
    before, config.eos_token_id = config.eos_token_id, free[0, 0, 2].item()
    try:
        ended = ride(tiny_vlm, prompts, guards, references, max_new_tokens=6).tokens
    finally:
        config.eos_token_id = before
    for ours, whole in zip(ended.flatten(0, 1), free.flatten(0, 1), strict=True):
        stops = (whole == free[0, 0, 2]).nonzero()
        n = int(stops[0]) + 1 if len(stops) else 6
        assert torch.equal(ours[:n], whole[:n]) and (ours[n:] == tiny_vlm.tokenizer.pad_token_id).all()


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_models_that_take_no_riders(name, vlm_of):
    vlm = vlm_of(name)
    assert ONE_BY_ONE[name] in why_not(vlm, None)
    with pytest.raises(GuardBatchError, match="run the guards one at a time"):
        ride(vlm, [text_prompt("How?")], [None])


def test_guards_that_cannot_ride(tiny_vlm, queries):
    prompts, direction = to_prompts(queries, "scene", 96), guards_of(tiny_vlm)[1].direction
    for positions in ("text", "all"):
        assert positions not in RIDING
        with pytest.raises(GuardBatchError, match=f"positions {positions} change the prompt before its last token"):
            ride(tiny_vlm, prompts, [Guard(direction, (1,), "ablate", gate="always", positions=positions)])
    with pytest.raises(GuardBatchError, match="a frozen shift is measured in a pass of its own"):
        ride(tiny_vlm, prompts, [Guard(direction, (1,), frozen_shift=True)])
    with pytest.raises(ValueError, match="references for 1 guards of 2; expected one for all, or one for each"):
        ride(tiny_vlm, prompts, [None, None], [None])
    with pytest.raises(ValueError, match="no prompts"):
        ride(tiny_vlm, [], [None])
    with pytest.raises(ValueError, match="needs references, and none were given"):
        ride(tiny_vlm, prompts, [Guard(direction, (1,))])


def beside_two_pictures(prompts):
    """Half of the prompts beside one picture, the others beside another."""
    pictures = [Image.new("RGB", (96, 96), colour) for colour in ("red", "blue")]
    return [replace(prompt, pictures=(pictures[i % 2],)) for i, prompt in enumerate(prompts)]


def test_prompts_about_the_same_picture_are_run_behind_it(tiny_vlm, queries, monkeypatch):
    """One picture for each of two halves, and one prompt of its own: told apart by what the model is given."""
    prompts = [*beside_two_pictures(to_prompts(queries, "text", 96)), *to_prompts(queries[:1], "scene", 96)]
    seen = []
    hook = tiny_vlm.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append("pixel_values" in kwargs), with_kwargs=True
    )
    try:
        compare(tiny_vlm, prompts)
        seen.clear()
        ride(tiny_vlm, prompts, [None] * 3)
    finally:
        hook.remove()
    assert sum(seen) == 3


def test_more_guards_than_fit_ride_in_turns(tiny_vlm, queries, monkeypatch):
    prompts, guards = to_prompts(queries, "blank", 96), guards_of(tiny_vlm)
    references = guards[1].read(tiny_vlm, [query.text for query in queries])
    moved = {"moved": lambda logprobs, unguarded: (logprobs - unguarded[:, None]).abs().amax(-1)}
    whole = ride(tiny_vlm, prompts, guards, references, moved, max_new_tokens=3)
    for limit in ("MOST_SPEAKING", "LOGIT_BYTES"):
        monkeypatch.setattr(f"interp.guard_batches.{limit}", 2)
        told = []
        turns = ride(tiny_vlm, prompts, guards, references, moved, max_new_tokens=3, advance=told.append)
        torch.testing.assert_close(turns.scores["moved"], whole.scores["moved"], atol=1e-5, rtol=0)
        assert torch.equal(turns.tokens, whole.tokens) and sum(told) == len(guards) * len(prompts)


def test_a_reference_for_each_guard(tiny_vlm, queries):
    prompts, guard = to_prompts(queries, "blank", 96), guards_of(tiny_vlm)[1]
    one, two = (guard.read(tiny_vlm, texts) for texts in (["x"] * 4, ["How do I?"] * 4))
    score = {"score": lambda logprobs, unguarded: logprobs[..., 3]}
    both = ride(tiny_vlm, prompts, [guard, None, guard], [one, None, two], score).scores["score"]
    for row, states in ((0, one), (2, two)):
        alone = ride(tiny_vlm, prompts, [guard], states, score).scores["score"][0]
        torch.testing.assert_close(both[row], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(both[0], both[2], atol=1e-4)


def test_guards_that_cannot_ride_are_run_alone_and_named(tiny_vlm, queries):
    """The loop gives what riding gives, and takes any guard."""
    prompts, guards = to_prompts(queries, "scene", 96), guards_of(tiny_vlm)
    references = guards[1].read(tiny_vlm, [query.text for query in queries])
    score = {
        "moved": lambda logprobs, unguarded: (logprobs - unguarded[:, None]).abs().amax(-1),
    }
    far = Guard(guards[1].direction, (1,), "ablate", gate="always", positions="text")
    rows = run_guards(tiny_vlm, prompts, [far, *guards], references, score, max_new_tokens=3)
    assert list(rows.alone) == [0] and "positions text" in rows.alone[0]
    loop = one_at_a_time(tiny_vlm, prompts, [far, *guards], references, score, max_new_tokens=3, batch_size=3)
    torch.testing.assert_close(rows.scores["moved"], loop.scores["moved"], atol=1e-4, rtol=0)
    assert torch.equal(rows.tokens, loop.tokens) and rows.scores["moved"][0].min() > 1e-4


def test_the_model_is_left_as_it_was(tiny_vlm, queries):
    batch = collate(tiny_vlm, to_prompts(queries, "scene", 96))
    with torch.no_grad():
        before = tiny_vlm.model(**batch).logits
        guards = guards_of(tiny_vlm)
        ride(tiny_vlm, to_prompts(queries, "scene", 96), guards, guards[1].read(tiny_vlm, [q.text for q in queries]))
        assert torch.equal(tiny_vlm.model(**batch).logits, before)
