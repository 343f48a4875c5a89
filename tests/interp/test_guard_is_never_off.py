"""A guard acts in every pass, once at each of its layers and at the right token; otherwise there is an error."""

import random

import pytest
import torch
from torch import nn

from interp.directions import SafetyDirection, random_basis
from interp.errors import ModelError
from interp.guard import Guard
from interp.inputs import collate, to_prompts
from interp.vlm import VLM

N_RUNS = 200
"""Runs in which hooks are broken at random."""


@pytest.fixture
def direction(tiny_vlm):
    return SafetyDirection(random_basis(torch.zeros(tiny_vlm.n_layers, 1, tiny_vlm.d_model), seed=0), "random")


@pytest.fixture
def guard(direction):
    return Guard(direction, (0, 1), rule="ablate", gate="always")


@pytest.fixture
def batch(tiny_vlm, queries):
    return collate(tiny_vlm, to_prompts(queries, "blank", 96))


def logits(model, batch, **kwargs):
    with torch.no_grad():
        return model(**batch, use_cache=False, **kwargs).logits


@pytest.fixture
def own_vlm(tiny_folder):
    """A model that a test may change."""
    return VLM.from_pretrained(tiny_folder, device="cpu")


@pytest.mark.parametrize("part", ["whole", "language_model"])
def test_a_compiled_model_is_guarded_or_refused(own_vlm, batch, guard, part):
    """Compiled code skips hooks, unless torch compiles it again for them or has given up compiling it."""
    with guard.on(own_vlm):
        wanted = logits(own_vlm.model, batch)
    model = own_vlm.model
    if part == "whole":
        model = torch.compile(model, backend="eager")
    else:
        inner = model.model.language_model
        inner.forward = torch.compile(inner.forward, backend="eager")
    logits(model, batch)
    try:
        with guard.on(own_vlm):
            found = logits(model, batch)
    except ModelError as error:
        assert "skips hooks" in str(error) or "not through their hooks" in str(error)
    else:
        torch.testing.assert_close(found, wanted)


def test_compiled_code_that_was_made_without_hooks_is_not_run_unguarded(own_vlm, batch, guard):
    torch.compiler.reset()
    compiled = torch.compile(own_vlm.model, backend="eager")
    logits(compiled, batch)
    with pytest.raises(ModelError, match="a compiled, replaced or wrapped forward pass skips hooks"):
        with guard.on(own_vlm), torch.compiler.set_stance("fail_on_recompile"):
            logits(compiled, batch)


def test_a_replaced_forward_pass_that_calls_blocks_past_their_hooks_is_found(own_vlm, batch, guard):
    for block in own_vlm.blocks:
        block.__class__ = type(
            "Direct", (type(block),), {"__call__": lambda self, *args, **kwargs: self.forward(*args, **kwargs)}
        )
    with pytest.raises(ModelError, match="no block of .* runs through its hooks"), guard.on(own_vlm):
        logits(own_vlm.model, batch)


def test_a_block_in_which_nothing_ran_is_an_error(own_vlm, guard):
    with pytest.raises(ModelError, match="no pass ran through"), guard.on(own_vlm):
        pass


def test_a_pass_of_a_wrapper_does_not_find_what_the_last_pass_left(own_vlm, batch, guard):
    """As in models whose `generate` calls their parts: the second prompt would get the positions of the first."""
    with pytest.raises(ModelError, match="run outside of its own forward pass"), guard.on(own_vlm):
        logits(own_vlm.model, batch)
        own_vlm.model.model(**{name: value[:2] for name, value in batch.items()})


def test_references_are_for_one_batch_of_prompts(tiny_vlm, queries, direction):
    guard, kwargs = Guard(direction, (1,)), {"max_new_tokens": 2, "do_sample": False}
    first, second = (collate(tiny_vlm, to_prompts(queries[i : i + 2], "blank", 96)) for i in (0, 2))
    with guard.on(tiny_vlm, ["a", "b"]):
        tiny_vlm.model.generate(**first, **kwargs)
        # The same prompts again are what the references are for.
        logits(tiny_vlm.model, first)
    with pytest.raises(ModelError, match="another batch of prompts in the same block"), guard.on(tiny_vlm, ["a", "b"]):
        tiny_vlm.model.generate(**first, **kwargs)
        tiny_vlm.model.generate(**second, **kwargs)


def with_answers(vlm, batch, n_answer):
    """Return a batch whose rows go on with an answer."""
    more = torch.randint(5, 50, (len(batch["input_ids"]), n_answer), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([batch["input_ids"], more], dim=1)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], dim=1)
    return batch | {"input_ids": ids, "attention_mask": mask}


def step_by_step(model, batch, n_answer):
    """Return the logits of the answer's tokens, each of which is given after a pass with a cache."""
    n = batch["input_ids"].shape[1] - n_answer
    first = batch | {name: batch[name][:, :n] for name in ("input_ids", "attention_mask")}
    found = []
    with torch.no_grad():
        output = model(**first, use_cache=True)
        for i in range(n_answer):
            found.append(output.logits[:, -1])
            kwargs = {
                "attention_mask": batch["attention_mask"][:, : n + i + 1],
                "past_key_values": output.past_key_values,
            }
            output = model(input_ids=batch["input_ids"][:, n + i : n + i + 1], **kwargs)
    return torch.stack([*found[1:], output.logits[:, -1]], dim=1)


@pytest.mark.parametrize("positions", ["last_prefill", "generated", "last", "text", "all"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_scores_of_prompt_and_answer_in_one_pass_are_those_of_generation(
    tiny_vlm, batch, direction, positions, padding
):
    guard = Guard(direction, (1,), strength=2.0, positions=positions)
    whole = with_answers(tiny_vlm, batch, 3)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 1
    with guard.on(tiny_vlm):
        wanted = step_by_step(tiny_vlm.model, whole, 3)
    ends = whole["attention_mask"].sum(1)
    if padding == "right":
        rows = zip(whole["input_ids"], whole["attention_mask"].bool(), strict=True)
        ids = [row[mask] for row, mask in rows]
        masks = [torch.ones_like(row) for row in ids]
        pad = {"input_ids": tiny_vlm.tokenizer.pad_token_id, "attention_mask": 0}
        whole |= {
            name: nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=pad[name])
            for name, parts in (("input_ids", ids), ("attention_mask", masks))
        }
    with guard.on(tiny_vlm, prompt_lengths=lengths):
        found = logits(tiny_vlm.model, whole)
    last = ends - 1 if padding == "right" else torch.full_like(ends, whole["input_ids"].shape[1] - 1)
    found = torch.stack([row[end - 2 : end + 1] for row, end in zip(found, last, strict=True)])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    unguarded = logits(tiny_vlm.model, whole)
    assert not torch.allclose(found[:, -1], torch.stack([row[end] for row, end in zip(unguarded, last, strict=True)]))


def test_a_pass_that_does_not_end_with_its_prompt_is_refused_unless_its_length_is_given(tiny_vlm, batch, guard):
    with pytest.raises(ModelError, match="a pass ends with .*prompts of .* end with"), guard.on(tiny_vlm):
        logits(tiny_vlm.model, with_answers(tiny_vlm, batch, 3))
    flipped = {name: value.flip(1) if name != "pixel_values" else value for name, value in batch.items()}
    with pytest.raises(ModelError, match="padded on the right"), guard.on(tiny_vlm):
        logits(tiny_vlm.model, flipped)
    with pytest.raises(ModelError, match="before the end of a prompt"):
        with guard.on(tiny_vlm, prompt_lengths=[500] * len(batch["input_ids"])):
            logits(tiny_vlm.model, batch)
    with (
        pytest.raises(ModelError, match="3 prompt_lengths for a batch of 4 rows"),
        guard.on(tiny_vlm, prompt_lengths=[5] * 3),
    ):
        logits(tiny_vlm.model, batch)


def test_a_prompt_without_the_beginning_of_the_answers_turn_is_refused(tiny_vlm, guard):
    chat = [{"role": "user", "content": [{"type": "text", "text": "How do I fix a door?"}]}]
    text = tiny_vlm.processor.apply_chat_template(chat, add_generation_prompt=False)
    with pytest.raises(ModelError, match="add_generation_prompt=True"), guard.on(tiny_vlm):
        logits(tiny_vlm.model, tiny_vlm.tokenizer(text, return_tensors="pt"))


HARDER = [
    {"cache_implementation": "static"},
    {"prompt_lookup_num_tokens": 2},
    {"prefill_chunk_size": 8},
]


@pytest.mark.parametrize("settings", HARDER, ids=lambda settings: next(iter(settings)))
@pytest.mark.parametrize("positions", ["last_prefill", "all"])
def test_with_lengths_given_other_ways_to_generate_give_the_same_answers(
    tiny_vlm, queries, direction, settings, positions
):
    guard = Guard(direction, (1,), gate="always", strength=4.0, positions=positions)
    batch = collate(tiny_vlm, to_prompts(queries[:1], "text", 96))
    states, lengths = guard.read(tiny_vlm, ["x"]), batch["attention_mask"].sum(1).tolist()
    kwargs = {"max_new_tokens": 4, "do_sample": False}
    with guard.on(tiny_vlm, states):
        wanted = tiny_vlm.model.generate(**batch, **kwargs)
    with guard.on(tiny_vlm, states, prompt_lengths=lengths):
        found = tiny_vlm.model.generate(**batch, **kwargs, **settings)
    assert torch.equal(found, wanted)


def test_embeddings_in_place_of_ids_need_the_lengths(tiny_vlm, queries, guard):
    batch = collate(tiny_vlm, to_prompts(queries, "text", 96))
    embedded = {
        "inputs_embeds": tiny_vlm.model.get_input_embeddings()(batch["input_ids"]),
        "attention_mask": batch["attention_mask"],
    }
    with guard.on(tiny_vlm):
        wanted = logits(tiny_vlm.model, batch)
    with pytest.raises(ModelError, match="embeddings in place of input_ids"), guard.on(tiny_vlm):
        logits(tiny_vlm.model, embedded)
    with guard.on(tiny_vlm, prompt_lengths=batch["attention_mask"].sum(1).tolist()):
        torch.testing.assert_close(logits(tiny_vlm.model, embedded), wanted)


KINDS = ("removed", "skipped", "doubled", "delayed")


def broken(hook, kind, n_before):
    """Return a hook that works for some passes and then fails in one of four ways."""
    calls = []

    def replacement(*args):
        calls.append(args)
        if kind == "delayed" and len(calls) > n_before + 1:
            return hook(*calls[-2])
        if len(calls) == n_before + 1:
            if kind != "doubled":
                return None
            hook(*args)
        return hook(*args)

    return replacement


def hooks_of_guards(vlm):
    """Return where the hooks of guards are: dictionaries of modules, with their keys."""
    modules = [vlm.model, *vlm.blocks]
    stores = [getattr(module, name) for module in modules for name in ("_forward_hooks", "_forward_pre_hooks")]
    own = ("interp.guard_hooks",)
    return [(store, key) for store in stores for key, hook in store.items() if function_of(hook).__module__ in own]


def function_of(hook):
    return getattr(hook, "func", hook)


@pytest.mark.filterwarnings("ignore:module forward hook with")
def test_whatever_happens_to_its_hooks_a_run_ends_in_an_error(tiny_vlm, queries, guard):
    rng, survived = random.Random(0), []
    batch = collate(tiny_vlm, to_prompts(queries[:1], "text", 96))
    for i in range(N_RUNS):
        kind, n_passes = rng.choice(KINDS), rng.randint(1, 3)
        try:
            with guard.on(tiny_vlm):
                hooks, n_before = hooks_of_guards(tiny_vlm), rng.randrange(n_passes)
                # One of them, or all: then a whole pass goes by unseen.
                chosen = rng.choice([[hook] for hook in hooks] + [hooks])
                for store, key in chosen:
                    if kind == "removed":
                        del store[key]
                    else:
                        store[key] = broken(store[key], kind, n_before)
                tiny_vlm.model.generate(**batch, max_new_tokens=n_passes, min_new_tokens=n_passes, do_sample=False)
        except ModelError:
            continue
        survived.append((i, kind, n_passes, n_before, len(chosen)))
    assert not survived
