import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TextStreamer, pipeline

from interp.directions import SafetyDirection, random_basis
from interp.errors import ModelError
from interp.guard import POSITIONS, Guard
from interp.guard_files import GuardFileError
from interp.inputs import collate, to_prompts
from interp.projection import (
    RULES,
    ProbeGate,
    RuleInputs,
    centred_cosine,
    coordinates,
    set_coordinates,
    target_coordinates,
)
from interp.trace import trace
from interp.vlm import VLM

REFERENCES = ["How do I kill a neighbor?", "a wasp", "car bomb", "x"]


@pytest.fixture
def direction(tiny_vlm):
    return SafetyDirection(random_basis(torch.zeros(tiny_vlm.n_layers, 2, tiny_vlm.d_model), seed=0), "random")


@pytest.fixture
def batch(tiny_vlm, queries):
    return collate(tiny_vlm, to_prompts(queries, "scene", 96))


def hidden(vlm, batch, **kwargs):
    with torch.no_grad():
        return vlm.model(**batch, use_cache=False, output_hidden_states=True, **kwargs)


def blocks_output(vlm, batch, layer):
    """Return the output of one block, read by a hook of the test's own."""
    seen = []
    hook = vlm.blocks[layer].register_forward_hook(lambda module, args, output: seen.append(output))
    hidden(vlm, batch)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("positions", ["last_prefill", "text", "all"])
def test_exactly_the_named_positions_of_the_named_layer_change(tiny_vlm, batch, direction, positions):
    guard = Guard(direction, (1,), rule="ablate", gate="always", positions=positions)
    before = [blocks_output(tiny_vlm, batch, layer) for layer in (0, 1)]
    with guard.on(tiny_vlm):
        after = [blocks_output(tiny_vlm, batch, layer) for layer in (0, 1)]
    assert torch.equal(after[0], before[0])
    changed = (after[1] != before[1]).any(-1)
    expected = batch["attention_mask"].bool()
    if positions == "text":
        expected &= batch["input_ids"] != tiny_vlm.image_token_id
    if positions == "last_prefill":
        expected = torch.zeros_like(expected)
        expected[:, -1] = True
    assert torch.equal(changed, expected)
    assert coordinates(after[1][expected], direction.basis[1]).abs().max() < 1e-5


def test_substitution_inserts_the_references_coordinates(tiny_vlm, batch, direction):
    guard = Guard(direction, (1,), gate="always", strength=2.0)
    states = guard.read(tiny_vlm, REFERENCES)
    with guard.on(tiny_vlm, REFERENCES):
        after = blocks_output(tiny_vlm, batch, 1)[:, -1]
    expected = 2 * coordinates(states[:, 1], direction.basis[1])
    torch.testing.assert_close(coordinates(after, direction.basis[1]), expected, atol=1e-5, rtol=0)


def test_the_sign_gate_leaves_rows_with_harmless_references_unchanged(tiny_vlm, batch, direction):
    guard = Guard(direction, (1,))
    states = guard.read(tiny_vlm, REFERENCES)
    is_open = coordinates(states[:, 1], direction.basis[1])[:, 0] > 0
    # An untrained model may put all references on one side, but both cases have to occur.
    states[0] *= -1 if is_open.all() or not is_open.any() else 1
    is_open = coordinates(states[:, 1], direction.basis[1])[:, 0] > 0
    before = hidden(tiny_vlm, batch).logits[:, -1]
    with guard.on(tiny_vlm, states):
        after = hidden(tiny_vlm, batch).logits[:, -1]
    assert torch.equal((after != before).any(-1), is_open)


def test_the_same_positions_change_with_and_without_cache(tiny_vlm, batch, direction):
    """Five tokens are generated each time: prefill is not mistaken for decoding, nor decoding for a new prompt."""
    for positions in POSITIONS:
        guard = Guard(direction, (1, 2), gate="always", positions=positions, strength=4.0)
        logits = []
        for use_cache in (True, False):
            with guard.on(tiny_vlm, REFERENCES):
                output = tiny_vlm.model.generate(
                    **batch,
                    use_cache=use_cache,
                    max_new_tokens=5,
                    min_new_tokens=5,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            logits.append(torch.stack(output.logits))
        torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


def test_a_second_prompt_in_the_same_block_is_a_new_prefill(tiny_vlm, queries, direction):
    guard = Guard(direction, (1,), rule="ablate", gate="always")
    long, short = (collate(tiny_vlm, to_prompts(chosen, "text", 96)) for chosen in (queries[2:], queries[:2]))
    with guard.on(tiny_vlm):
        tiny_vlm.model.generate(**long, max_new_tokens=3, do_sample=False)
        after_another = hidden(tiny_vlm, short).logits
    with guard.on(tiny_vlm):
        alone = hidden(tiny_vlm, short).logits
    assert torch.equal(after_another, alone)


def test_nothing_is_left_behind_even_after_an_error(tiny_vlm, batch, direction):
    before = hidden(tiny_vlm, batch).logits
    guard = Guard(direction, (0, 2), rule="ablate", gate="always")
    with pytest.raises(RuntimeError, match="mine"), guard.on(tiny_vlm):
        assert not torch.equal(hidden(tiny_vlm, batch).logits, before)
        raise RuntimeError("mine")
    assert torch.equal(hidden(tiny_vlm, batch).logits, before)


def test_the_random_control_moves_each_state_equally_far_along_a_random_vector(tiny_vlm, batch, direction):
    states = Guard(direction, (1,)).read(tiny_vlm, REFERENCES)
    before, random_rows = blocks_output(tiny_vlm, batch, 1)[:, -1], random_basis(direction.basis[:, :1], seed=3)[:, 0]
    moves = []
    for control in (None, "random"):
        with Guard(direction, (1,), gate="always", control=control, control_seed=3).on(tiny_vlm, states):
            moves.append(blocks_output(tiny_vlm, batch, 1)[:, -1] - before)
    torch.testing.assert_close(moves[0].norm(dim=-1), moves[1].norm(dim=-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moves[1] @ random_rows[1], moves[1].norm(dim=-1), atol=1e-5, rtol=1e-4)


@pytest.fixture
def fitted(tiny_vlm, queries):
    """A direction with class means, fitted on an untrained model's states of texts."""
    return SafetyDirection.fit(trace(tiny_vlm, to_prompts(queries, "text", 96)), "mean_diff")


def test_a_closed_gate_blocks_the_change_or_only_the_target(tiny_vlm, batch, fitted):
    states = Guard(fitted, (1,)).read(tiny_vlm, REFERENCES)
    own = coordinates(states[:, 1], fitted.basis[1])[:, 0]
    threshold = own.median().item()
    guard = Guard(fitted, (1,), gate="threshold", threshold=threshold)
    before = blocks_output(tiny_vlm, batch, 1)[:, -1]
    is_open = own > threshold
    assert torch.equal(guard.opens(states), is_open) and is_open.any() and not is_open.all()
    after = {}
    for scope in ("change", "target"):
        with replace(guard, gate_scope=scope).on(tiny_vlm, states):
            after[scope] = blocks_output(tiny_vlm, batch, 1)[:, -1]
        own_after = coordinates(after[scope], fitted.basis[1])[:, 0]
        torch.testing.assert_close(own_after[is_open], own[is_open], atol=1e-5, rtol=0)
    assert torch.equal(after["change"][~is_open], before[~is_open])
    assert coordinates(after["target"], fitted.basis[1])[~is_open].abs().max() < 1e-5


def test_a_probe_gate_reads_whole_states(tiny_vlm, batch, fitted):
    states = Guard(fitted, (1,)).read(tiny_vlm, REFERENCES)
    weight = states[0, 1] - states[1, 1]
    logits = states[:, 1] @ weight
    probe = ProbeGate(weight, bias=1.0, threshold=1.0 + logits.median().item())
    guard = Guard(fitted, (1,), rule="ablate", gate="probe", probe=probe)
    before = blocks_output(tiny_vlm, batch, 1)[:, -1]
    with guard.on(tiny_vlm, states):
        after = blocks_output(tiny_vlm, batch, 1)[:, -1]
    assert torch.equal((after != before).any(-1), logits > logits.median())


def test_sign_flipped_makes_the_opposite_change_and_full_state_inserts_the_reference(tiny_vlm, batch, fitted):
    guard = Guard(fitted, (1,), gate="always")
    states = guard.read(tiny_vlm, REFERENCES)
    before, after = blocks_output(tiny_vlm, batch, 1)[:, -1], {}
    for control in (None, "sign_flipped", "full_state"):
        with replace(guard, control=control).on(tiny_vlm, states):
            after[control] = blocks_output(tiny_vlm, batch, 1)[:, -1]
    assert (after[None] - before).norm(dim=-1).min() > 1e-3
    torch.testing.assert_close(after["sign_flipped"] - before, before - after[None], atol=1e-5, rtol=0)
    torch.testing.assert_close(after["full_state"], states[:, 1], atol=1e-6, rtol=0)


def test_full_state_at_the_last_layer_gives_the_logits_of_the_reference(tiny_vlm, queries, fitted):
    """An upper bound: everything after the state is computed as in the text run."""
    last = tiny_vlm.n_layers - 1
    guard = Guard(fitted, (last,), gate="always", control="full_state")
    with guard.on(tiny_vlm):
        ours = hidden(tiny_vlm, collate(tiny_vlm, to_prompts(queries, "scene", 96))).logits[:, -1]
    theirs = hidden(tiny_vlm, collate(tiny_vlm, to_prompts(queries, "text", 96))).logits[:, -1]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_on_a_model_follows_its_formula(tiny_vlm, batch, fitted, rule):
    states = Guard(fitted, (1,)).read(tiny_vlm, REFERENCES)
    before = blocks_output(tiny_vlm, batch, 1)[:, -1]
    with Guard(fitted, (1,), rule, gate="always", strength=0.5, keeps_norm=True).on(tiny_vlm, states):
        after = blocks_output(tiny_vlm, batch, 1)[:, -1]
    basis = fitted.basis[1]
    inputs = RuleInputs(
        coordinates(states[:, 1], basis),
        fitted.harmful[1],
        fitted.harmless[1],
        before.norm(dim=-1, keepdim=True),
        centred_cosine(before, basis, fitted.centre[1]),
    )
    target = target_coordinates(rule, coordinates(before, basis), inputs, 0.5)
    expected = set_coordinates(before, basis, target)
    expected = expected * before.norm(dim=-1, keepdim=True) / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)


def test_guards_nest_and_each_reads_from_the_bare_model(tiny_vlm, queries, direction):
    batch = collate(tiny_vlm, to_prompts(queries, "scene", 96))
    early, late = (Guard(direction, (layer,), gate="always", strength=3.0) for layer in (0, 2))
    texts = [query.text for query in queries]
    states = early.read(tiny_vlm, texts)
    with early.on(tiny_vlm), late.on(tiny_vlm):
        nested = hidden(tiny_vlm, batch).logits
    with early.on(tiny_vlm, states), late.on(tiny_vlm, states):
        passed = hidden(tiny_vlm, batch).logits
    both_layers = Guard(direction, (0, 2), gate="always", strength=3.0)
    with both_layers.on(tiny_vlm, states):
        combined = hidden(tiny_vlm, batch).logits
    torch.testing.assert_close(nested, passed, atol=1e-5, rtol=0)
    torch.testing.assert_close(nested, combined, atol=1e-5, rtol=0)
    assert not torch.allclose(nested, hidden(tiny_vlm, batch).logits, atol=1e-3)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 2, "num_return_sequences": 2}],
)
def test_beams_and_samples_share_their_prompts_reference(tiny_vlm, batch, direction, options, use_cache):
    """After the change, each row has the coordinate of its own prompt's reference."""
    guard = Guard(direction, (1,), gate="always", strength=3.0)
    states, seen = guard.read(tiny_vlm, REFERENCES), []
    kwargs = dict(max_new_tokens=3, min_new_tokens=3, use_cache=use_cache) | {"do_sample": False} | options
    torch.manual_seed(0)
    with guard.on(tiny_vlm, states):
        hook = tiny_vlm.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
        sequences = tiny_vlm.model.generate(**batch, **kwargs)
        hook.remove()
    n_rows = options.get("num_beams", options.get("num_return_sequences"))
    expected = 3 * coordinates(states[:, 1], direction.basis[1]).repeat_interleave(n_rows, dim=0)
    last = batch["input_ids"].shape[1] - 1
    # Beams are repeated before or after the first pass; without a cache every pass changes the position again.
    prompt_passes = [resid for resid in seen if resid.shape[1] > last]
    assert len(prompt_passes) == (1 if use_cache else 3)
    for resid in prompt_passes:
        own = coordinates(resid[:, last], direction.basis[1])
        rows = expected if len(own) == len(expected) else expected[::n_rows]
        torch.testing.assert_close(own, rows, atol=1e-4, rtol=0)
    assert len(sequences) == 4 * options.get("num_return_sequences", 1)


@pytest.mark.parametrize("gate", ["threshold", "probe"])
def test_thresholds_and_probes_decide_once_but_the_sign_gate_at_each_layer(tiny_vlm, batch, fitted, gate):
    """References lie on different sides at the first and at the last guarded layer."""
    states = Guard(fitted, (0, 2)).read(tiny_vlm, REFERENCES)
    states[:, 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None] * fitted.basis[0, 0]
    states[:, 2] = torch.tensor([-1.0, -1.0, 1.0, 1.0])[:, None] * fitted.basis[2, 0]
    settings = {"probe": ProbeGate(fitted.basis[0, 0], bias=0.0)} if gate == "probe" else {}
    decides_once = Guard(fitted, (0, 2), "ablate", gate=gate, **settings)
    sign = Guard(fitted, (0, 2), "ablate", gate="sign")
    assert decides_once.opens(states).tolist() == decides_once.opens(states, 2).tolist() == [True, False, True, False]
    assert sign.opens(states, 2).tolist() == [False, False, True, True]
    for guard, open_at_last in ((decides_once, [True, False, True, False]), (sign, [False, False, True, True])):
        with guard.on(tiny_vlm, states):
            after = blocks_output(tiny_vlm, batch, 2)[:, -1]
        is_ablated = coordinates(after, fitted.basis[2])[:, 0].abs() < 1e-4
        assert is_ablated.tolist() == open_at_last


def test_passes_with_unknown_token_positions_are_rejected(tiny_vlm, batch, direction):
    guard, kwargs = Guard(direction, (1,), gate="always"), {"max_new_tokens": 3, "do_sample": False}
    with guard.on(tiny_vlm, REFERENCES):
        output = tiny_vlm.model.generate(**batch, **kwargs, return_dict_in_generate=True)
        longer = torch.cat([output.sequences, output.sequences[:, -3:]], dim=1)
        with pytest.raises(
            ModelError, match="in cached chats, chunked prefill or assisted decoding by itself; pass whole prompts"
        ):
            tiny_vlm.model.generate(longer, past_key_values=output.past_key_values, **kwargs)
    with pytest.raises(ModelError, match="a pass ends with .* say where prompts end"), guard.on(tiny_vlm, REFERENCES):
        tiny_vlm.model.generate(**batch, **kwargs, prefill_chunk_size=8)
    with pytest.raises(ModelError, match="a prepared attention mask, as static caches make"):
        with guard.on(tiny_vlm, REFERENCES):
            tiny_vlm.model.generate(**batch, **kwargs, cache_implementation="static")


def test_references_that_a_guard_cannot_read_have_to_be_passed(tiny_vlm, batch, direction):
    for settings in ({"reference": "transcription"}, {"source": "llm"}):
        guard = Guard(direction, (1,), **settings)
        with pytest.raises(ValueError, match="which it can't read from a prompt; make the texts first"):
            with guard.on(tiny_vlm):
                pass
        with guard.on(tiny_vlm, REFERENCES):
            hidden(tiny_vlm, batch)


def test_guards_at_the_same_layer_act_from_the_inside_out(tiny_vlm, batch, fitted):
    """Adding and then ablating leaves nothing; ablating and then adding leaves what was added."""
    ablate, add = (Guard(fitted, (1,), rule, gate="always") for rule in ("ablate", "steer"))
    own = []
    for outer, inner in ((ablate, add), (add, ablate)):
        with outer.on(tiny_vlm), inner.on(tiny_vlm):
            own.append(coordinates(blocks_output(tiny_vlm, batch, 1)[:, -1], fitted.basis[1]))
    gap = fitted.harmful[1] - fitted.harmless[1]
    torch.testing.assert_close(own[0], torch.zeros(4, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(own[1], gap.expand(4, 1), atol=1e-4, rtol=0)


def test_explain_describes_the_change_at_each_layer(tiny_vlm, queries, fitted):
    guard = Guard(fitted, (0, 2), gate="sign", strength=2.0)
    prompt = to_prompts(queries, "scene", 96)[0]
    table = guard.explain(tiny_vlm, prompt)
    states = guard.read(tiny_vlm, [prompt.text])
    assert table.layer.tolist() == [0, 2]
    for row in table.itertuples():
        reference = coordinates(states[:, row.layer], fitted.basis[row.layer])[0, 0].item()
        assert row.reference_coordinate == pytest.approx(reference, abs=1e-4)
        assert row.gate == (reference > 0)
        assert row.after == pytest.approx(2 * reference if row.gate else row.coordinate, abs=1e-4)
        assert (row.delta_norm > 0) == row.gate


def test_a_compiled_model_is_rejected(tiny_folder, direction):
    vlm = VLM.from_pretrained(tiny_folder, device="cpu")
    with warnings.catch_warnings():
        # PyTorch's compiler warns about PyTorch's own deprecations.
        warnings.simplefilter("ignore", DeprecationWarning)
        vlm.model.compile()
    with (
        pytest.raises(ModelError, match="is compiled, so its hooks would not run"),
        Guard(direction, (1,)).on(vlm, []),
    ):
        pass


def test_a_guard_is_saved_with_a_card_and_loaded_again(tiny_vlm, batch, fitted, tmp_path):
    weight = torch.randn(tiny_vlm.d_model, generator=torch.Generator().manual_seed(0))
    guard = Guard(
        fitted, (0, 2), "steer", gate="probe", probe=ProbeGate(weight, 0.5), gate_scope="target", strength=2.0
    )
    guard.save_pretrained(tmp_path, tiny_vlm, validation={"refusal_rate": 0.95})
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["README.md", "direction.safetensors", "guard.json"]
    loaded, logits = Guard.from_pretrained(tmp_path, tiny_vlm), []
    for either in (guard, loaded):
        with either.on(tiny_vlm, REFERENCES):
            logits.append(hidden(tiny_vlm, batch).logits)
    assert torch.equal(*logits) and loaded.layers == (0, 2) and loaded.direction.anchors == fitted.anchors
    card = (tmp_path / "README.md").read_text()
    assert "| rule | steer |" in card and "| refusal_rate | 0.95 |" in card and fitted.anchors in card


def test_damaged_guards_and_guards_for_another_model_are_rejected(tiny_vlm, fitted, tmp_path):
    Guard(fitted, (1,)).save_pretrained(tmp_path / "guard", tiny_vlm)
    other = VLM(type(tiny_vlm.model)(tiny_vlm.model.config), tiny_vlm.processor, "other")
    with pytest.raises(GuardFileError, match="was made for '.*tiny_vlm0' .*, not for 'other'"):
        Guard.from_pretrained(tmp_path / "guard", other)
    with pytest.raises(GuardFileError, match="holds no guard: it has no guard.json"):
        Guard.from_pretrained(tmp_path, tiny_vlm)
    record = json.loads((tmp_path / "guard" / "guard.json").read_text())
    record["guard"]["rule"] = "steal"
    (tmp_path / "guard" / "guard.json").write_text(json.dumps(record))
    with pytest.raises(GuardFileError, match="settings in guard.json are not those that were saved"):
        Guard.from_pretrained(tmp_path / "guard", tiny_vlm)
    (tmp_path / "guard" / "guard.json").write_text("{")
    with pytest.raises(GuardFileError, match="is damaged"):
        Guard.from_pretrained(tmp_path / "guard", tiny_vlm)
    (tmp_path / "guard" / "direction.safetensors").unlink()
    with pytest.raises(GuardFileError, match="it has no direction.safetensors"):
        Guard.from_pretrained(tmp_path / "guard", tiny_vlm)
    with pytest.raises(GuardFileError, match="neither a folder nor a repository that can be reached"):
        Guard.from_pretrained("nobody/no-guard", tiny_vlm)
    with pytest.raises(ValueError, match="control guards can't be saved, got control 'random'; use control=None"):
        Guard(fitted, (1,), control="random").save_pretrained(tmp_path / "control", tiny_vlm)


def test_a_guard_is_uploaded_to_the_hub_as_a_folder(tiny_vlm, fitted, monkeypatch):
    sent = {}

    class Hub:
        def create_repo(self, repo_id, private, exist_ok):
            sent["repo"] = (repo_id, private)

        def upload_folder(self, repo_id, folder_path, ignore_patterns):
            names = {path.name for path in Path(folder_path).iterdir()}
            sent["files"] = sorted(names - set(ignore_patterns))

    monkeypatch.setattr("interp.guard_files.HfApi", Hub)
    Guard(fitted, (1,)).push_to_hub("me/guard", tiny_vlm)
    assert sent == {"repo": ("me/guard", True), "files": ["README.md", "direction.safetensors", "guard.json"]}


def test_invalid_guards_are_named(tiny_vlm, batch, direction):
    with pytest.raises(ValueError, match="rule 'steal' does not exist"):
        Guard(direction, (1,), rule="steal")
    with pytest.raises(ValueError, match=r"layers \(3,\); expected at least one, each from 0 to 2"):
        Guard(direction, (3,))
    with pytest.raises(
        ValueError, match="rule 'steer' needs the class means of a direction made by SafetyDirection.fit"
    ):
        Guard(direction, (1,), rule="steer")
    with pytest.raises(ValueError, match="rule 'adaptive' is defined for rank 1; got rank 2"):
        Guard(direction, (1,), rule="adaptive")
    with pytest.raises(ValueError, match="gate_scope 'all' does not exist; expected one of change, target"):
        Guard(direction, (1,), gate_scope="all")
    with pytest.raises(ValueError, match="gate 'probe' with probe=None; expected both, or neither"):
        Guard(direction, (1,), gate="probe")
    with pytest.raises(ValueError, match="direction_layer 7; expected 0 to 2"):
        Guard(direction, (1,), direction_layer=7)
    with pytest.raises(ValueError, match="control 'none' does not exist; expected one of random, sign_flipped"):
        Guard(direction, (1,), control="none")
    with pytest.raises(ValueError, match="frozen_shift with positions 'all'; expected last_prefill"):
        Guard(direction, (1,), positions="all", frozen_shift=True)
    with pytest.raises(ValueError, match="all_writes with rule 'substitute', gate 'sign'; expected ablate, always"):
        Guard(direction, (1,), all_writes=True)
    with pytest.raises(ValueError, match="control full_state with rule 'ablate'"):
        Guard(direction, (1,), rule="ablate", control="full_state")
    with pytest.raises(ValueError, match=r"layers \(1, 1\); expected each layer once"):
        Guard(direction, (1, 1))
    with pytest.raises(ValueError, match="strength nan; expected a finite number"):
        Guard(direction, (1,), strength=float("nan"))
    with pytest.raises(ValueError, match="a probe of width 3 for states of width 32"):
        Guard(direction, (1,), gate="probe", probe=ProbeGate(torch.zeros(3), 0.0))
    with pytest.raises(ValueError, match="all_writes can't be combined with frozen_shift, control or keeps_norm"):
        Guard(direction, (1,), "ablate", gate="always", all_writes=True, keeps_norm=True)
    with pytest.raises(ValueError, match=r"states of references of shape \(4, 2, 32\); expected \(rows, 3, 32\)"):
        with Guard(direction, (1,)).on(tiny_vlm, torch.zeros(4, 2, 32)):
            pass
    with pytest.raises(ValueError, match="2 references for a batch of 4 rows"):
        with Guard(direction, (1,)).on(tiny_vlm, REFERENCES[:2]):
            hidden(tiny_vlm, batch)
    narrow = SafetyDirection(random_basis(torch.zeros(3, 1, 8), seed=0), "random")
    with pytest.raises(ValueError, match="3 layers of width 8"), Guard(narrow, (1,), rule="ablate").on(tiny_vlm, ["x"]):
        pass


@pytest.mark.parametrize("modality", ["text", "scene"])
def test_without_references_a_guard_reads_the_text_of_the_prompts(tiny_vlm, queries, direction, modality):
    prompts = to_prompts(queries, modality, 96)
    batch, guard = collate(tiny_vlm, prompts), Guard(direction, (1,), gate="always", strength=2.0)
    with guard.on(tiny_vlm, [prompt.text for prompt in prompts]):
        passed = hidden(tiny_vlm, batch).logits
    with guard.on(tiny_vlm):
        read = hidden(tiny_vlm, batch).logits
    torch.testing.assert_close(read, passed, atol=1e-5, rtol=0)
    assert not torch.allclose(read, hidden(tiny_vlm, batch).logits, atol=1e-3)


def test_text_that_cannot_be_recovered_has_to_be_passed(tiny_vlm, batch, direction, monkeypatch):
    monkeypatch.setattr("interp.prompt_text._picture_marks", lambda vlm: ())
    with pytest.raises(ModelError, match="pass references explicitly"), Guard(direction, (1,)).on(tiny_vlm):
        hidden(tiny_vlm, batch)


def test_a_pipeline_and_a_streamer_are_guarded(tiny_vlm, queries, direction, capsys):
    """Both call `generate` with inputs that they prepare themselves."""
    prompt = to_prompts(queries, "scene", 96)[0]
    batch, guard = collate(tiny_vlm, [prompt]), Guard(direction, (1,), gate="always", positions="last", strength=9.0)
    kwargs = {"max_new_tokens": 5, "do_sample": False}
    pipe = pipeline("image-text-to-text", model=tiny_vlm.model, processor=tiny_vlm.processor)
    unguarded = tiny_vlm.model.generate(**batch, **kwargs)
    with guard.on(tiny_vlm):
        expected = tiny_vlm.model.generate(**batch, **kwargs)
        streamed = tiny_vlm.model.generate(
            **batch, **kwargs, streamer=TextStreamer(tiny_vlm.tokenizer, skip_prompt=True)
        )
        piped = pipe(text=prompt.messages, generate_kwargs=kwargs, return_full_text=False)
    answer = tiny_vlm.tokenizer.decode(expected[0, batch["input_ids"].shape[1] :])
    assert not torch.equal(expected, unguarded) and torch.equal(streamed, expected)
    assert capsys.readouterr().out.strip() == answer.strip()
    assert piped[0]["generated_text"].strip() == answer.replace("<pad>", "").strip()


def test_in_a_bfloat16_model_the_formula_is_in_float32(tiny_folder, queries, direction):
    """The result is the float32 formula rounded once, not a formula of rounded parts."""
    vlm = VLM.from_pretrained(tiny_folder, device="cpu", dtype=torch.bfloat16)
    batch = collate(vlm, to_prompts(queries, "scene", 96))
    guard = Guard(direction, (1,), gate="always", strength=2.0)
    states = guard.read(vlm, REFERENCES)
    before = blocks_output(vlm, batch, 1)[:, -1]
    with guard.on(vlm, states):
        after = blocks_output(vlm, batch, 1)[:, -1]
    assert before.dtype == after.dtype == torch.bfloat16
    target = 2 * coordinates(states[:, 1].float(), direction.basis[1])
    assert torch.equal(after, set_coordinates(before.float(), direction.basis[1], target).bfloat16())
    with Guard(direction, (1,), "amplify", gate="always", strength=0.0).on(vlm):
        assert torch.equal(blocks_output(vlm, batch, 1)[:, -1], before)
