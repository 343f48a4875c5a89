"""The contract on every family, and on models that break it on purpose."""

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
import torch
from PIL import Image
from transformers import LlamaForCausalLM

from interp import families, verify
from interp.directions import SafetyDirection, random_basis
from interp.errors import ModelError
from interp.families import Family, decoder_blocks
from interp.guard import Guard
from interp.inputs import collate, text_prompt
from interp.lens import Lens
from interp.position_tracker import PositionTracker
from interp.projection import coordinates
from interp.prompt_text import prompt_texts
from interp.residual_stream import ResidualStream
from interp.tracing import prefix
from interp.verify import VERDICTS, ContractInputs, Finding, check_vlm
from interp.vlm import VLM
from tests.families.all_families import DEEP, FOLDERS, HAND_MADE

NOT_FOR_GENERATION, REFUSED = "InstructBLIP", "Gemma 3n"
FOUND: dict[str, list[Finding]] = {}
"""Findings by family, from the tests that have run, for the table of `docs/models.md`."""
# A warning of the libraries, not ours: PaliGemma's processor and NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


@pytest.fixture(scope="module")
def family_vlm(tmp_path_factory):
    """Return a function that gives a deep family's model, built once."""
    built = {}

    def of(name: str) -> VLM:
        if name not in built:
            folder = tmp_path_factory.mktemp("family")
            next(family for family in DEEP if family.name == name).build(folder)
            built[name] = VLM.from_pretrained(folder, device="cpu")
        return built[name]

    return of


def faults(findings):
    return {finding.claim: finding for finding in findings if not finding.is_accepted}


@pytest.mark.parametrize("family", DEEP, ids=lambda family: family.model_type)
def test_a_family_through_its_own_processor(family, family_vlm):
    vlm = family_vlm(family.name)
    assert vlm.n_layers == family.n_layers and len(vlm.vision_blocks) == family.n_vision_layers
    findings = check_vlm(vlm)
    FOUND[family.name] = findings
    assert not faults(findings), list(faults(findings).values())
    assert len(findings) == len(verify.CHECKS)


def hand_made(name: str) -> tuple[VLM, ContractInputs]:
    family = next(family for family in HAND_MADE if family.name == name)
    model = family.build()
    inputs = family.inputs(model)
    return VLM(model, None), ContractInputs(inputs.batch, inputs.singles, inputs.text_batch, inputs.text_singles)


@pytest.mark.parametrize("family", HAND_MADE, ids=lambda family: family.model_type)
def test_a_family_on_hand_made_tensors(family):
    vlm, inputs = hand_made(family.name)
    findings = check_vlm(vlm, inputs)
    FOUND[family.name] = findings
    failures = faults(findings)
    if family.name == REFUSED:
        # Several states per token: whatever reads or changes one says so, in one line.
        assert {finding.verdict for finding in failures.values()} == {"error"}
        assert "states of shape" in failures[claim_of("Guards act")].measured
        return
    assert len(vlm.vision_blocks) == family.n_vision_layers
    if family.name == NOT_FOR_GENERATION:
        assert "only its forward pass can be guarded" in failures.pop(claim_of("Guards act")).measured
    assert not failures, list(failures.values())


def claim_of(start: str) -> str:
    claims = [check.__doc__.strip().splitlines()[0] for check in verify.CHECKS]
    return next(claim for claim in claims if claim.startswith(start))


def test_a_hook_on_the_vision_tower_is_found(family_vlm):
    vlm = family_vlm("LLaVA-1.5")
    broken = VLM(vlm.model, vlm.processor, "broken")
    vars(broken)["blocks"] = vlm.vision_blocks
    assert claim_of("The decoder blocks") in faults(check_vlm(broken))


def test_the_blocks_of_another_model_are_found(family_vlm):
    vlm = family_vlm("LLaVA-1.5")
    broken = VLM(vlm.model, vlm.processor, "broken")
    vars(broken)["blocks"] = decoder_blocks(LlamaForCausalLM(vlm.model.config.get_text_config()))
    assert {claim_of("The decoder blocks"), claim_of("Changing a block")} <= set(faults(check_vlm(broken)))


def test_right_padding_is_found(family_vlm):
    vlm = family_vlm("LLaVA-1.5")
    vlm.tokenizer.padding_side = "right"
    try:
        failures = faults(check_vlm(vlm))
    finally:
        vlm.tokenizer.padding_side = "left"
    assert {claim_of("A left-padded batch"), claim_of("`last`")} <= set(failures)


def test_layers_that_are_off_by_one_are_found(family_vlm, monkeypatch):
    right = verify.resid_post
    monkeypatch.setattr(verify, "resid_post", lambda *args: right(*args).roll(1, dims=1))
    assert claim_of("`resid_post` equals") in faults(check_vlm(family_vlm("LLaVA-1.5")))


def test_a_last_state_after_the_norm_is_found(family_vlm, monkeypatch):
    vlm, right = family_vlm("LLaVA-1.5"), verify.resid_post

    def normed(*args):
        resid = right(*args)
        resid[:, -1] = vlm.final_norm(resid[:, -1])
        return resid

    monkeypatch.setattr(verify, "resid_post", normed)
    assert set(faults(check_vlm(vlm))) == {claim_of("`resid_post` equals"), claim_of("TransformerLens")}


def test_what_is_added_between_blocks_is_found(family_vlm):
    vlm = family_vlm("LLaVA-1.5")
    hook = vlm.blocks[2].register_forward_pre_hook(lambda block, args: (args[0] + 1, *args[1:]))
    try:
        failures = faults(check_vlm(vlm))
    finally:
        hook.remove()
    assert claim_of("Each block's input") in failures


def test_deepstack_is_expected_and_reported(monkeypatch):
    vlm, inputs = hand_made("Qwen3-VL")
    finding = next(f for f in check_vlm(vlm, inputs) if f.claim == claim_of("Each block's input"))
    assert (finding.verdict, finding.measured) == ("ok", "DeepStack after layers [0, 1]")
    monkeypatch.setattr(verify, "residual_stream", lambda vlm: ResidualStream({}, frozenset({0})))
    assert claim_of("Each block's input") in faults(check_vlm(vlm, inputs))


def test_with_deepstack_the_input_of_the_next_block_is_changed():
    vlm, inputs = hand_made("Qwen3-VL")
    basis = random_basis(torch.zeros(vlm.n_layers, 1, vlm.d_model), seed=0)
    guard = Guard(SafetyDirection(basis, "random"), (0,), rule="ablate", gate="always", positions="all")
    is_token = inputs.batch["attention_mask"].bool()
    with torch.no_grad():
        plain = verify._stream(vlm, inputs.batch)[1][0]
        with guard.on(vlm):
            guarded = verify._stream(vlm, inputs.batch)[1][0]
    assert (coordinates(plain, basis[0])[is_token].abs() > 1e-3).any()
    assert (coordinates(guarded, basis[0])[is_token].abs() < 1e-5).all()


def test_a_different_reading_through_transformer_lens_is_found(family_vlm, monkeypatch):
    right = Lens.resid_post
    monkeypatch.setattr(Lens, "resid_post", lambda lens, batch: right(lens, batch).roll(1, dims=1))
    assert set(faults(check_vlm(family_vlm("LLaVA-1.5")))) == {claim_of("TransformerLens")}


def test_a_hook_that_remains_on_the_model_is_found(family_vlm, monkeypatch):
    vlm, hooks = family_vlm("LLaVA-1.5"), []

    def leaky(*args):
        hooks.append(vlm.blocks[1].register_forward_hook(lambda module, args, output: output * 1.001))
        return torch.zeros(2, vlm.n_layers, vlm.d_model)

    monkeypatch.setattr(verify, "resid_post", leaky)
    try:
        assert claim_of("Tracing and guarding") in faults(check_vlm(vlm))
    finally:
        for hook in hooks:
            hook.remove()


def test_a_prefix_that_looks_ahead_is_not_accepted_as_causal(family_vlm):
    vlm = family_vlm("PaliGemma")
    broken = VLM(vlm.model, vlm.processor, "broken")
    vars(broken)["family"] = replace(vlm.family, is_causal=True)
    failures = faults(check_vlm(broken))
    assert set(failures) == {claim_of("Later tokens")} and "not causal" in failures[claim_of("Later tokens")].measured


def test_sharing_a_prefix_that_looks_ahead_is_found(family_vlm, monkeypatch):
    monkeypatch.setattr(prefix, "_why_not", lambda vlm: None)
    monkeypatch.setattr(prefix, "_SHARING", WeakKeyDictionary())
    assert set(faults(check_vlm(family_vlm("PaliGemma")))) == {claim_of("Prompts that share")}


def test_parts_that_are_not_what_a_block_adds_are_found(family_vlm, monkeypatch):
    """Gemma 3 has a norm after each part, whose output is what is added."""
    monkeypatch.setattr(families, "NORMS_AFTER", ())
    assert set(faults(check_vlm(family_vlm("Gemma 3")))) == {claim_of("`attn_out` and `mlp_out`")}


def test_a_wrong_image_token_is_found(family_vlm):
    vlm = family_vlm("LLaVA-1.5")
    broken = VLM(vlm.model, vlm.processor, "broken")
    vars(broken)["family"] = Family(pictures_in_sequence=False)
    assert claim_of("Image positions") in faults(check_vlm(broken))


@pytest.mark.parametrize("positions", ["last_prefill", "generated", "text", "all"])
def test_positions_that_are_changed_too_often_are_found(family_vlm, monkeypatch, positions):
    """A guard that mistakes the end of every pass for the end of a prompt."""
    begin = PositionTracker.begin_pass

    def forgetful(places, ids, kwargs):
        is_new, cache = begin(places, ids, kwargs), kwargs.get("past_key_values")
        n_cached = cache.get_seq_length() if cache is not None else 0
        places.ends = torch.full((len(ids),), n_cached + ids.shape[1] - 1)
        is_token = kwargs.get("attention_mask")
        places.mask = places._mask_of_pass(ids, None if is_token is None else is_token.bool(), n_cached)
        return is_new

    monkeypatch.setattr(PositionTracker, "begin_pass", forgetful)
    monkeypatch.setattr(verify, "POSITIONS", (positions,))
    failures = faults(check_vlm(family_vlm("LLaVA-1.5")))
    assert (claim_of("Guards act") in failures) == (positions != "all")


def test_a_guard_that_changes_nothing_is_found(family_vlm, monkeypatch):
    monkeypatch.setattr(Guard, "change", lambda guard, resid, *others: resid)
    assert claim_of("Changing a block") in faults(check_vlm(family_vlm("LLaVA-1.5")))


def test_a_processor_that_fails_is_a_finding_not_a_traceback(family_vlm, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no pictures today")

    monkeypatch.setattr(verify, "collate", refuse)
    (finding,) = check_vlm(family_vlm("LLaVA-1.5"))
    assert finding.verdict == "error" and "no pictures today" in finding.measured


@pytest.mark.parametrize("family", DEEP, ids=lambda family: family.model_type)
def test_the_text_of_a_prompt_is_recovered(family, family_vlm):
    finding = next(f for f in check_vlm(family_vlm(family.name)) if f.claim == claim_of("Text-only prompts"))
    assert finding.verdict == "ok" and "explicitly" not in finding.measured


@pytest.mark.parametrize("family", DEEP, ids=lambda family: family.model_type)
def test_a_system_turn_is_written_or_refused_in_one_line(family, family_vlm):
    vlm = family_vlm(family.name)
    prompt = replace(text_prompt("How?"), system="Be kind.", pictures=(Image.new("RGB", (28, 28)),))
    if family.has_system_role:
        assert "Be kind." in vlm.tokenizer.decode(collate(vlm, [prompt])["input_ids"][0])
    else:
        with pytest.raises(ModelError, match="rejects turns of system, user"):
            collate(vlm, [prompt])


@pytest.mark.parametrize("family", DEEP, ids=lambda family: family.model_type)
def test_several_pictures_in_a_prompt(family, family_vlm):
    vlm = family_vlm(family.name)
    single = replace(text_prompt("How?"), pictures=(Image.new("RGB", (28, 28)),))
    double = replace(single, pictures=(*single.pictures, Image.new("RGB", (28, 28), "red")))
    n_tokens = [int((collate(vlm, [p])["input_ids"] == vlm.image_token_id).sum()) for p in (single, double)]
    assert n_tokens[1] == 2 * n_tokens[0]
    assert verify.resid_post(vlm, collate(vlm, [double])).isfinite().all()


def test_in_half_precision_gross_mistakes_are_found_and_a_sound_model_passes(tmp_path, monkeypatch):
    DEEP[0].build(tmp_path)
    vlm = VLM.from_pretrained(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert not faults(check_vlm(vlm)), faults(check_vlm(vlm))
    right = verify.resid_post
    monkeypatch.setattr(verify, "resid_post", lambda *args: right(*args).roll(1, dims=1))
    assert {claim_of("`resid_post` equals"), claim_of("TransformerLens")} <= set(faults(check_vlm(vlm)))
    monkeypatch.setattr(verify, "resid_post", lambda vlm, batch: right(vlm, batch).flip(0))
    assert claim_of("A left-padded batch") in faults(check_vlm(vlm))


def test_wrong_references_are_found(family_vlm, monkeypatch):
    from interp import guarded_prompts

    right = guarded_prompts.prompt_texts
    monkeypatch.setattr(guarded_prompts, "prompt_texts", lambda *args: right(*args)[::-1])
    assert claim_of("References that a guard") in faults(check_vlm(family_vlm("PaliGemma")))


def test_text_between_pictures_is_not_lost_silently(family_vlm):
    vlm = family_vlm("LLaVA-1.5")
    text = "USER: First <image>\nsecret <image>\nHow? ASSISTANT:"
    ids = torch.tensor([vlm.tokenizer(text.replace("<image>", "<image>" * 3))["input_ids"]])
    with pytest.raises(ModelError, match="pass references explicitly"):
        prompt_texts(vlm, ids)


def test_different_numbers_of_pictures_in_a_batch(family_vlm):
    picture = Image.new("RGB", (28, 28), "red")
    single = replace(text_prompt("How?"), pictures=(picture,))
    double = replace(single, pictures=(picture, picture))
    vlm = family_vlm("LLaVA-1.5")
    together = verify.resid_post(vlm, collate(vlm, [single, double]))
    alone = torch.cat([verify.resid_post(vlm, collate(vlm, [prompt])) for prompt in (single, double)])
    assert torch.allclose(together, alone, atol=1e-4)
    with pytest.raises(ModelError, match="needs the same number in every prompt"):
        collate(family_vlm("Mllama"), [single, double])


def test_a_projector_that_does_not_run_is_found(family_vlm):
    vlm = family_vlm("LLaVA-1.5")
    broken = VLM(vlm.model, vlm.processor, "broken")
    vars(broken)["projector"] = torch.nn.Linear(2, 2)
    assert claim_of("The final norm") in faults(check_vlm(broken))


def test_coordinates_that_are_not_written_back_exactly_are_found(family_vlm, monkeypatch):
    right = verify.set_coordinates
    monkeypatch.setattr(verify, "set_coordinates", lambda *args: right(*args) * (1 + 1e-6))
    assert claim_of("Writing a state's own") in faults(check_vlm(family_vlm("LLaVA-1.5")))


def test_image_positions_off_by_one_are_found(family_vlm, monkeypatch):
    right = VLM.image_positions
    monkeypatch.setattr(VLM, "image_positions", lambda vlm, ids: right(vlm, ids).roll(1, dims=1))
    assert claim_of("Image positions") in faults(check_vlm(family_vlm("LLaVA-1.5")))


def test_a_batch_that_generates_other_answers_than_its_prompts_is_found(family_vlm, monkeypatch):
    right = verify._generate

    def swapped(vlm, batch, use_cache=True):
        out = right(vlm, batch, use_cache)
        out.sequences = out.sequences.roll(len(out.sequences) - 1, dims=0) + (len(out.sequences) > 1)
        return out

    monkeypatch.setattr(verify, "_generate", swapped)
    assert claim_of("Greedy generation") in faults(check_vlm(family_vlm("LLaVA-1.5")))


def test_text_that_is_recovered_wrongly_is_found(family_vlm, monkeypatch):
    monkeypatch.setattr(verify, "prompt_texts", lambda *args: [[1], [2]])
    assert claim_of("Text-only prompts") in faults(check_vlm(family_vlm("LLaVA-1.5")))


PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEAD = """| family | `model_type` | tested | contract | prefix | TransformerLens | not given |
|---|---|---|---|---|---|---|
"""


def not_given(findings: dict[str, Finding]) -> Iterator[str]:
    """Yield what a family doesn't have, and why, as the contract found it."""
    parts, sums = (findings[claim_of(start)].measured for start in ("The final norm", "`attn_out`"))
    yield from (reason for reason in parts.split("; ") if "is not given" in reason)
    _, is_left_out, where = sums.partition("not given ")
    if is_left_out:
        yield f"`attn_out` and `mlp_out` {where}"
    yield from dict.fromkeys(finding.measured for finding in findings.values() if finding.verdict == "error")


def table() -> str:
    """Return the table of families, from the findings of the tests."""
    rows, through_folders = [], {family.name for family in FOLDERS}
    only_tensors = [family for family in HAND_MADE if family.name not in through_folders]
    tested = (("deep", (*DEEP, *FOLDERS)), ("hand-made tensors", only_tensors))
    for how, group in tested:
        for family in group:
            findings = {finding.claim: finding for finding in FOUND[family.name]}
            verdicts = [finding.verdict for finding in findings.values()]
            counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS[1:] if verdict in verdicts]
            prefix = findings[claim_of("Later tokens")].measured.split(":")[0]
            lens = findings[claim_of("TransformerLens")]
            reason = "needs torchvision" if "torchvision" in lens.measured else "not supported"
            bridge = "yes" if lens.verdict == "ok" else reason
            missing = "; ".join(not_given(findings))
            cells = (family.name, f"`{family.model_type}`", how, ", ".join(counts), prefix, bridge, missing)
            rows.append(f"| {' | '.join(cells)} |")
    rows.append("| any other | | not tested | `vlm-guard check --model MODEL` | | | |")
    return HEAD + "\n".join(rows) + "\n"


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="the table says what needs torchvision")
def test_the_table_of_families_matches_the_findings(tmp_path):
    """After a change, `VLM_GUARD_WRITE_MODELS=1 pytest tests/interp/test_contract.py` rewrites it."""
    if len(FOUND) < len(DEEP) + len(HAND_MADE):
        pytest.skip("needs the families' own tests, in the same run")
    for family in FOLDERS:
        family.build(tmp_path / family.name)
        FOUND[family.name] = check_vlm(VLM.from_pretrained(tmp_path / family.name, device="cpu"))
    text = PAGE.read_text(encoding="utf-8")
    start = text.index(HEAD)
    end = text.index("\n\n", start) + 1
    if os.environ.get("VLM_GUARD_WRITE_MODELS"):
        PAGE.write_text(text[:start] + table() + text[end:], encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8")[start:].startswith(table() + "\n")
