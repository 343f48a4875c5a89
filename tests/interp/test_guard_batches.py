"""Guards that share a prefill give the same results as the same guards run one at a time."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from interp import unguarded_token
from interp.directions import SafetyDirection, random_basis
from interp.families import sublayers
from interp.forced import ForcedScore
from interp.guard import Guard
from interp.guard_batches import GuardBatchError, run_guards
from interp.inputs import collate, text_prompt, to_prompts
from interp.prefill_sharing import PREFILL_SAFE_POSITIONS, why_not_together
from interp.projection import ProbeGate
from interp.unguarded_token import UnguardedToken
from interp.vlm import VLM
from tests.families import deep, folders

ALL_FAMILIES = {family.name: family for family in deep.FAMILIES + folders.FAMILIES}
NOT_BATCHED = {"PaliGemma": "look ahead", "Mllama": "are not part of the token sequence"}
"""Families whose guards can't share a prefill, and the reason."""
TEXTS = ("How do I?", "How do I water a plant?", "Tell me, please, what the capital of that country is called.")
# Raised by the libraries' processors under NumPy 2, not by this project.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def guards_of(vlm: VLM) -> list[Guard | None]:
    """Return guards that differ in layers, bases, ranks, rules, gates, scopes, positions and strengths, and None."""
    last = vlm.n_layers - 1
    rank_1, rank_2 = (
        SafetyDirection(random_basis(torch.zeros(vlm.n_layers, rank, vlm.d_model), rank), "random") for rank in (1, 2)
    )
    probe = ProbeGate(rank_1.basis[0, 0], bias=0.0)
    return [
        None,
        Guard(rank_1, (0,), gate="always", strength=3.0),
        Guard(rank_2, (last,), "ablate", gate="always", positions="last"),
        Guard(rank_2, (0, last), "add_reference", gate="sign", positions="generated", strength=4.0),
        Guard(rank_1, (last,), "amplify", gate="always", positions="last", strength=2.0, keeps_norm=True),
        Guard(rank_1, (last,), gate="threshold", threshold=0.1, gate_scope="target", direction_layer=0),
        Guard(rank_1, (0, last), gate="probe", probe=probe, positions="last", strength=3.0, control="random"),
        Guard(rank_2, (last,), gate="always", control="full_state"),
    ]


FORCED = (5, 9)
"""First tokens that a score looks behind."""


def behind(logprobs, after):
    """Return the log-probability of two-token openings, each with a second token of its own."""
    return torch.stack([logprobs[..., token] + after[token][..., token + 2] for token in after]).logsumexp(0)


def each_prompt_alone(vlm, prompts, guard, references, n_new):
    """Return first logits, logits after a forced token, and greedy tokens of each prompt, run by itself."""
    logits, behind_forced, tokens = [], [], []
    for i, prompt in enumerate(prompts):
        batch = collate(vlm, [prompt])
        kwargs = {"max_new_tokens": n_new, "min_new_tokens": n_new, "do_sample": False}
        kwargs |= {"output_logits": True, "return_dict_in_generate": True}
        with guard.on(vlm, references[i : i + 1]) if guard else nullcontext():
            output = vlm.model.generate(**batch, **kwargs)
            behind_forced.append(logits_behind(vlm, batch, FORCED[0]))
        logits.append(torch.stack(output.logits, dim=1)[0])
        tokens.append(output.sequences[0, -n_new:])
    return torch.stack(logits), torch.stack(behind_forced), torch.stack(tokens)


def logits_behind(vlm, batch, token):
    """Return the logits after a prompt and one more token, by a `generate` that may choose no other one."""
    kwargs = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    kwargs["prefix_allowed_tokens_fn"] = lambda row, ids: [token]
    return vlm.model.generate(**batch, **kwargs).logits[1][0]


def n_different(ours, theirs, logits, tolerance=1e-4):
    """Count answers that differ, which each may only do from a token on whose two best logits are practically equal."""
    n_differing = 0
    for answer, expected, step_logits in zip(ours, theirs, logits, strict=True):
        if torch.equal(answer, expected):
            continue
        best = step_logits[int((answer != expected).nonzero()[0])].topk(2).values
        assert best[0] - best[1] < tolerance
        n_differing += 1
    return n_differing


def compare(vlm, prompts, n_new=4):
    """Assert that scores and answers under guards that share a prefill equal those of each prompt and guard alone."""
    guards, unguarded, differing = guards_of(vlm), None, 0
    references = guards[1].read(vlm, [prompt.text for prompt in prompts])
    scores = {
        "first": lambda logprobs, unguarded: logprobs[..., 3],
        "best": lambda logprobs, unguarded: logprobs.amax(-1),
        "moved": lambda logprobs, unguarded: (logprobs - unguarded[:, None]).abs().amax(-1),
        "behind": ForcedScore(FORCED[:1], behind),
    }
    ends, vlm.model.generation_config.eos_token_id = vlm.model.generation_config.eos_token_id, None
    try:
        runs = run_guards(vlm, prompts, guards, references, scores, max_new_tokens=n_new, batch_size=2, together=True)
        for i, guard in enumerate(guards):
            logits, behind_forced, tokens = each_prompt_alone(vlm, prompts, guard, references, n_new)
            logprobs = logits[:, 0].float().log_softmax(-1)
            after = {FORCED[0]: behind_forced.float().log_softmax(-1)}
            unguarded = logprobs if i == 0 else unguarded
            for name, score in scores.items():
                expected = score(logprobs, after) if name == "behind" else score(logprobs[:, None], unguarded)[:, 0]
                torch.testing.assert_close(runs.scores[name][i], expected, atol=1e-4, rtol=0)
            differing += n_different(runs.tokens[i], tokens, logits)
    finally:
        vlm.model.generation_config.eos_token_id = ends
    # Near ties are rare even on models with random weights.
    assert differing <= len(guards) * len(prompts) / 20
    moved = runs.scores["moved"].amax(1)
    assert (moved[[1, 2, 4]] > 1e-4).all() and moved[3] < 1e-4


@pytest.mark.parametrize("name", [name for name in ALL_FAMILIES if name not in NOT_BATCHED])
def test_guards_run_together_give_the_results_of_guards_run_alone(name, vlm_of):
    if name in {family.name for family in folders.FAMILIES} and is_torchvision_available():
        pytest.skip("with torchvision the family's own processor loads")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
    pictures = [Image.fromarray(array) for array in pixels]
    prompts = [replace(text_prompt(text), pictures=(pictures[i % 2],)) for i, text in enumerate(TEXTS)]
    compare(vlm_of(name), prompts)


@pytest.mark.parametrize("modality", ["text", "scene"])
def test_guards_run_together_on_a_model_like_the_built_in_one(tiny_vlm, queries, modality):
    compare(tiny_vlm, to_prompts(queries, modality, 96), n_new=6)


@pytest.mark.parametrize("name", ["Gemma 3", "LLaVA-NeXT", "Idefics2"])
def test_a_prompt_longer_than_a_sliding_window(name, tmp_path):
    """Gemma alternates sliding and full layers; all layers of Mistral slide, and its config lists no kinds."""
    ALL_FAMILIES[name].build(tmp_path)
    vlm = VLM.from_pretrained(tmp_path, device="cpu")
    vlm.model.config.get_text_config().sliding_window = 3
    for module in vlm.model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 3
    compare(vlm, [replace(text_prompt(text), pictures=(Image.new("RGB", (28, 28)),)) for text in TEXTS])


def test_settings_that_a_guard_batch_cannot_follow_are_run_one_at_a_time(tiny_vlm, queries, monkeypatch):
    """Generation settings beyond the likeliest token, other kinds of layers, other attention: one line for each."""
    config = tiny_vlm.model.generation_config
    monkeypatch.setattr(config, "repetition_penalty", 1.5)
    assert why_not_together(tiny_vlm, None) is None
    assert "generation config" in why_not_together(tiny_vlm, None, 2) and "repetition_penalty" in why_not_together(
        tiny_vlm, None, 2
    )
    prompts = to_prompts(queries, "blank", 96)
    runs = run_guards(tiny_vlm, prompts, [None], max_new_tokens=5)
    expected = tiny_vlm.model.generate(**collate(tiny_vlm, prompts), max_new_tokens=5, do_sample=False)[:, -5:]
    assert list(runs.not_batched) == [0] and torch.equal(runs.tokens[0], expected)
    text = tiny_vlm.model.config.get_text_config()
    monkeypatch.setattr(text, "_attn_implementation_internal", "flash_attention_2")
    assert "attends by flash_attention_2" in why_not_together(tiny_vlm, None)
    monkeypatch.undo()
    text.layer_types = ["chunked_attention"]
    try:
        assert "layers of chunked_attention" in why_not_together(tiny_vlm, None)
    finally:
        del text.layer_types


def test_guards_run_together_in_bfloat16_stay_close_to_guards_run_alone(tiny_folder, queries):
    vlm = VLM.from_pretrained(tiny_folder, device="cpu", dtype=torch.bfloat16)
    prompts, guards = to_prompts(queries, "scene", 96), guards_of(vlm)
    references = guards[1].read(vlm, [query.text for query in queries])
    score = {"best": lambda logprobs, unguarded: logprobs.amax(-1)}
    both = [
        run_guards(vlm, prompts, guards, references, score, together=together).scores["best"]
        for together in (True, False)
    ]
    torch.testing.assert_close(*both, atol=5e-2, rtol=0)


def test_answers_end_and_stay_ended(tiny_vlm, queries):
    """The end token is one that greedy decoding is bound to generate."""
    prompts, guards = to_prompts(queries, "scene", 96), guards_of(tiny_vlm)
    references = guards[1].read(tiny_vlm, [query.text for query in queries])
    free = run_guards(tiny_vlm, prompts, guards, references, max_new_tokens=6, together=True).tokens
    config = tiny_vlm.model.generation_config
    before, config.eos_token_id = config.eos_token_id, free[0, 0, 2].item()
    try:
        ended = run_guards(tiny_vlm, prompts, guards, references, max_new_tokens=6, together=True).tokens
    finally:
        config.eos_token_id = before
    for ours, whole in zip(ended.flatten(0, 1), free.flatten(0, 1), strict=True):
        stops = (whole == free[0, 0, 2]).nonzero()
        n = int(stops[0]) + 1 if len(stops) else 6
        assert torch.equal(ours[:n], whole[:n]) and (ours[n:] == tiny_vlm.tokenizer.pad_token_id).all()


@pytest.mark.parametrize("name", NOT_BATCHED)
def test_models_on_which_guards_cannot_share_a_prefill(name, vlm_of):
    vlm = vlm_of(name)
    assert NOT_BATCHED[name] in why_not_together(vlm, None)
    with pytest.raises(GuardBatchError, match="run the guards one at a time"):
        run_guards(vlm, [text_prompt("How?")], [None], together=True)


def test_guards_that_cannot_share_a_prefill_are_refused(tiny_vlm, queries):
    prompts, direction = to_prompts(queries, "scene", 96), guards_of(tiny_vlm)[1].direction
    for positions in ("text", "all"):
        assert positions not in PREFILL_SAFE_POSITIONS
        with pytest.raises(GuardBatchError, match=f"positions {positions} change the prompt before its last token"):
            guard = Guard(direction, (1,), "ablate", gate="always", positions=positions)
            run_guards(tiny_vlm, prompts, [guard], together=True)
    with pytest.raises(GuardBatchError, match="a frozen shift is measured in a pass of its own"):
        run_guards(tiny_vlm, prompts, [Guard(direction, (1,), frozen_shift=True)], together=True)
    with pytest.raises(ValueError, match="references for 1 guards of 2; expected one for all, or one for each"):
        run_guards(tiny_vlm, prompts, [None, None], [None], together=True)
    with pytest.raises(ValueError, match="no prompts"):
        run_guards(tiny_vlm, [], [None], together=True)
    with pytest.raises(ValueError, match="needs references, and none were given"):
        run_guards(tiny_vlm, prompts, [Guard(direction, (1,))], together=True)


def with_two_pictures(prompts):
    """Return the prompts with two pictures by turns."""
    pictures = [Image.new("RGB", (96, 96), colour) for colour in ("red", "blue")]
    return [replace(prompt, pictures=(pictures[i % 2],)) for i, prompt in enumerate(prompts)]


def test_prompts_about_the_same_picture_share_its_prefix(tiny_vlm, queries):
    """Two pictures with two prompts each, and one prompt with a picture of its own: the model sees three pictures."""
    prompts = [*with_two_pictures(to_prompts(queries, "text", 96)), *to_prompts(queries[:1], "scene", 96)]
    has_pixels = []
    hook = tiny_vlm.model.register_forward_pre_hook(
        lambda module, args, kwargs: has_pixels.append("pixel_values" in kwargs), with_kwargs=True
    )
    try:
        compare(tiny_vlm, prompts)
        has_pixels.clear()
        run_guards(tiny_vlm, prompts, [None] * 3, together=True)
    finally:
        hook.remove()
    assert sum(has_pixels) == 3


def test_more_guards_than_fit_into_one_pass_take_several(tiny_vlm, queries, monkeypatch):
    prompts, guards = to_prompts(queries, "blank", 96), guards_of(tiny_vlm)
    references = guards[1].read(tiny_vlm, [query.text for query in queries])
    moved = {"moved": lambda logprobs, unguarded: (logprobs - unguarded[:, None]).abs().amax(-1)}
    moved["behind"] = ForcedScore(FORCED, behind)
    whole = run_guards(tiny_vlm, prompts, guards, references, moved, max_new_tokens=3, together=True)
    for limit in ("MAX_GENERATING", "LOGIT_BYTES"):
        monkeypatch.setattr(f"interp.guard_batches.{limit}", 2)
        n_done = []
        kwargs = {"max_new_tokens": 3, "advance": n_done.append, "together": True}
        parts = run_guards(tiny_vlm, prompts, guards, references, moved, **kwargs)
        for name in moved:
            torch.testing.assert_close(parts.scores[name], whole.scores[name], atol=1e-5, rtol=0)
        assert torch.equal(parts.tokens, whole.tokens) and sum(n_done) == len(guards) * len(prompts)


def test_blocks_below_the_first_change_run_once_for_all_guards(tiny_vlm, queries, monkeypatch):
    """Counted by the tokens that reach an MLP; without playing blocks back, the results are the same."""
    prompts, guards = to_prompts(queries, "text", 96), [guard for guard in guards_of(tiny_vlm) if guard]
    last = tiny_vlm.n_layers - 1
    late = [guard for guard in guards if last in guard.layers and 0 not in guard.layers]
    references = guards[0].read(tiny_vlm, [query.text for query in queries])
    scores = {"best": lambda logprobs, unguarded: logprobs.amax(-1), "behind": ForcedScore(FORCED, behind)}
    n_tokens = [0] * tiny_vlm.n_layers

    def run(guards):
        n_tokens[:] = [0] * tiny_vlm.n_layers
        runs = run_guards(tiny_vlm, prompts, guards, references, scores, together=True)
        return runs, n_tokens.copy()

    def count(layer):
        def add(module, args):
            n_tokens[layer] += args[0][..., 0].numel()

        return sublayers(tiny_vlm.blocks[layer])[1].register_forward_pre_hook(add)

    hooks = [count(layer) for layer in range(tiny_vlm.n_layers)]
    try:
        # Once more: the first time, the model is tested too.
        run([None])
        _, (fewest, *_) = run([None])
        _, of_late = run(late)
        played, of_all = run(guards)
        assert of_late == [fewest] * tiny_vlm.n_layers
        assert of_all[0] == fewest < of_all[last]
        monkeypatch.setattr(UnguardedToken, "plays_back", lambda *args: False)
        whole, without = run(guards)
        assert without[0] == of_all[last]
    finally:
        for hook in hooks:
            hook.remove()
    for name in scores:
        torch.testing.assert_close(played.scores[name], whole.scores[name], atol=1e-5, rtol=0)


def test_a_model_whose_blocks_depend_on_skipped_ones_runs_them_all(tiny_folder, queries):
    """A block that adds what the first block has seen, as some architectures do, can't be played back."""
    vlm = VLM.from_pretrained(tiny_folder, device="cpu")
    seen = []

    def remember(module, args):
        seen[:] = [args[0]]

    def add(module, args, output):
        return output + 0.5 * seen[0]

    sublayers(vlm.blocks[0])[1].register_forward_pre_hook(remember)
    sublayers(vlm.blocks[-1])[1].register_forward_hook(add)
    compare(vlm, to_prompts(queries, "scene", 96))


def test_without_guards_there_is_nothing_to_run(tiny_vlm, queries):
    runs = run_guards(tiny_vlm, to_prompts(queries, "text", 96), [], max_new_tokens=2, together=True)
    assert runs.tokens.shape == (0, 4, 2)


def test_blocks_are_themselves_again_after_an_error(tiny_folder, queries, monkeypatch):
    vlm = VLM.from_pretrained(tiny_folder, device="cpu")
    prompts, guards = to_prompts(queries, "scene", 96), guards_of(vlm)[1:2]
    states = guards[0].read(vlm, [query.text for query in queries])
    run_guards(vlm, prompts, guards, states, together=True)
    repeat, n = unguarded_token._repeated, []
    own = [vars(block).get("forward") for block in vlm.blocks]

    def fails(output, times):
        n.append(times)
        if len(n) == 1:
            return repeat(output, times)
        raise RuntimeError("no memory")

    monkeypatch.setattr(unguarded_token, "_repeated", fails)
    late = replace(guards[0], layers=(vlm.n_layers - 1,))
    with pytest.raises(RuntimeError, match="no memory"):
        run_guards(vlm, prompts, [late], states, together=True)
    assert len(n) == 2 and [vars(block).get("forward") for block in vlm.blocks] == own


def test_guards_act_on_forced_tokens_as_on_generated_ones(tiny_vlm, queries):
    """Against two plain steps with a cache: a guard of the prompt's last token alone changes the second one no more."""
    prompts, direction = to_prompts(queries[:1], "noise", 96), guards_of(tiny_vlm)[1].direction
    states, last = torch.zeros(1, tiny_vlm.n_layers, tiny_vlm.d_model), tiny_vlm.n_layers - 1
    score = {"second": ForcedScore((5,), lambda logprobs, after: after[5][..., 7])}
    guards = [
        Guard(direction, (last,), "ablate", gate="always", positions=positions)
        for positions in ("last_prefill", "generated", "last")
    ]
    runs = run_guards(tiny_vlm, prompts, [None, *guards], states, score, together=True)
    batch, found = collate(tiny_vlm, prompts), []
    for guard in (None, *guards):
        with guard.on(tiny_vlm, states) if guard else nullcontext(), torch.no_grad():
            cache = tiny_vlm.model(**batch, use_cache=True).past_key_values
            logits = tiny_vlm.model(input_ids=torch.tensor([[5]]), past_key_values=cache).logits[0, -1]
        found.append(logits.log_softmax(-1)[7].item())
    assert np.allclose(runs.scores["second"][:, 0], found, atol=1e-4)
    plain, last_prefill, generated, both = found
    assert abs(plain - last_prefill) < 1e-5 < 1e-3 < abs(plain - generated) and abs(generated - both) < 1e-5


def test_a_reference_for_each_guard(tiny_vlm, queries):
    prompts, guard = to_prompts(queries, "blank", 96), guards_of(tiny_vlm)[1]
    first, second = (guard.read(tiny_vlm, texts) for texts in (["x"] * 4, ["How do I?"] * 4))
    score = {"score": lambda logprobs, unguarded: logprobs[..., 3]}
    kwargs = {"scores": score, "together": True}
    both = run_guards(tiny_vlm, prompts, [guard, None, guard], [first, None, second], **kwargs).scores["score"]
    for row, states in ((0, first), (2, second)):
        alone = run_guards(tiny_vlm, prompts, [guard], states, **kwargs).scores["score"][0]
        torch.testing.assert_close(both[row], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(both[0], both[2], atol=1e-4)


def test_guards_that_cannot_share_a_prefill_are_run_alone_and_named(tiny_vlm, queries):
    """Guards run one at a time give the results of guards run together, and any guard can be run so."""
    prompts, guards = to_prompts(queries, "scene", 96), guards_of(tiny_vlm)
    references = guards[1].read(tiny_vlm, [query.text for query in queries])
    score = {
        "moved": lambda logprobs, unguarded: (logprobs - unguarded[:, None]).abs().amax(-1),
        "behind": ForcedScore(FORCED, behind),
    }
    far = Guard(guards[1].direction, (1,), "ablate", gate="always", positions="text")
    mixed = run_guards(tiny_vlm, prompts, [far, *guards], references, score, max_new_tokens=3)
    assert list(mixed.not_batched) == [0] and "positions text" in mixed.not_batched[0]
    kwargs = {"max_new_tokens": 3, "batch_size": 3, "together": False}
    separate = run_guards(tiny_vlm, prompts, [far, *guards], references, score, **kwargs)
    torch.testing.assert_close(mixed.scores["moved"], separate.scores["moved"], atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed.scores["behind"], separate.scores["behind"], atol=1e-4, rtol=0)
    assert torch.equal(mixed.tokens, separate.tokens) and mixed.scores["moved"][0].min() > 1e-4


def test_the_model_is_left_as_it_was(tiny_vlm, queries):
    batch = collate(tiny_vlm, to_prompts(queries, "scene", 96))
    with torch.no_grad():
        before = tiny_vlm.model(**batch).logits
        guards = guards_of(tiny_vlm)
        references = guards[1].read(tiny_vlm, [query.text for query in queries])
        run_guards(tiny_vlm, to_prompts(queries, "scene", 96), guards, references, together=True)
        assert torch.equal(tiny_vlm.model(**batch).logits, before)
