"""Files that an earlier version has written are still read: a guard, a store of activations, and answers.

`old_files/` was written on the built-in model, by these commands:

    guard                    vlm-guard guard fit --scale tiny
    store                    vlm-guard trace --queries queries.csv --modality text,blank --layers 2,6 --batch-size 2
                             --sites resid_post,mlp_out --tokens last,image_mean
    answers.jsonl            vlm-guard repro: answers of every defence, setting and modality
    benchmark_answers.jsonl  vlm-guard defend: a question of ability, and mine.csv with its picture missing
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from interp import open_store
from interp.guard import Guard
from studies import benchmarks
from studies.cli.trace import TraceOptions, queries_of
from studies.cli.trace import run as run_trace
from studies.defences.answer_log import read_answers
from studies.experiment.model_loading import load_model
from studies.judges import attack_succeeds
from studies.judges.by_name import VERSIONED
from tests.studies.cli.test_app import run  # noqa: F401

OLD = Path(__file__).parent / "old_files"
ANSWER_FILES = ("answers.jsonl", "benchmark_answers.jsonl")
SITES = ("resid_post", "mlp_out")


@pytest.fixture(scope="module")
def vlm():
    return load_model("organism")


# --- guards ----------------------------------------------------------------------------------------------------


def test_a_guard_has_the_tensors_and_settings_that_were_saved(vlm):
    guard, saved = Guard.from_pretrained(OLD / "guard", vlm), json.loads((OLD / "guard" / "guard.json").read_text())
    tensors = load_file(OLD / "guard" / "direction.safetensors")
    assert set(tensors) == {"basis", "centre", "explained", "harmful", "harmless"}
    for name, tensor in tensors.items():
        assert torch.equal(getattr(guard.direction, name), tensor)
    for name, value in saved["guard"].items():
        assert getattr(guard, name) == (tuple(value) if name == "layers" else value)
    for name, value in saved["direction"].items():
        assert getattr(guard.direction, name) == value
    assert guard.validation == saved["validation"] and len(guard.validation) == 20


def test_a_guard_is_saved_again_as_it_was(vlm, tmp_path):
    Guard.from_pretrained(OLD / "guard", vlm).save_pretrained(tmp_path, vlm)
    name = "direction.safetensors"
    assert (tmp_path / name).read_bytes() == (OLD / "guard" / name).read_bytes()
    old, new = (json.loads((folder / "guard.json").read_text()) for folder in (OLD / "guard", tmp_path))
    # Checksums came with the second format.
    assert new.pop("checksums") and new | {"format": 1} == old


# --- stores ----------------------------------------------------------------------------------------------------


def trace_into(folder, vlm):
    options = TraceOptions.of("text,blank", ",".join(SITES), "last,image_mean", "2,6", 2, "float32", False)
    return run_trace(vlm, queries_of(OLD / "queries.csv"), options, folder).load()


@pytest.fixture(scope="module")
def fresh_store(vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh") / "store"
    trace_into(folder, vlm)
    return folder


def header_of(folder):
    """Content of a store's header, and apart from it what depends on the machine: the processor's hash covers paths."""
    header = json.loads((folder / "header.json").read_text())
    return header, {name: header["about"].pop(name) for name in ("processor", "versions")}


def assert_same_states(first, second):
    assert set(first.data_vars) == set(second.data_vars) and set(first.coords) == set(second.coords)
    for site in SITES:
        np.testing.assert_allclose(first[site], second[site], rtol=1e-4, atol=1e-4)
    for name in set(first.coords) | {"position"}:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_store_holds_what_a_trace_gives_today(fresh_store):
    old, fresh = open_store(OLD / "store").load(), open_store(fresh_store).load()
    assert old.resid_post.shape == (4, 2, 2, 160) and not old.resid_post[2:].isnull().any()
    assert_same_states(old, fresh)
    assert header_of(OLD / "store")[0] == header_of(fresh_store)[0]
    assert (OLD / "store" / "prompts.jsonl").read_text() == (fresh_store / "prompts.jsonl").read_text()


def test_an_interrupted_trace_is_resumed(vlm, fresh_store, tmp_path):
    copy = shutil.copytree(OLD / "store", tmp_path / "store")
    (copy / "done" / "000001").unlink()
    header, _ = header_of(copy)
    header["about"] |= header_of(fresh_store)[1]
    (copy / "header.json").write_text(json.dumps(header))
    resumed, old = trace_into(copy, vlm), open_store(OLD / "store").load()
    assert_same_states(resumed, old)
    # The first batch, prompts 3 and 2, is kept; nothing in it is computed again.
    assert header["plan"]["order"][:2] == [3, 2]
    for site in SITES:
        np.testing.assert_array_equal(resumed[site][2:], old[site][2:])


# --- answers ---------------------------------------------------------------------------------------------------


def test_the_old_answers_are_of_every_kind():
    answers = [answer for name in ANSWER_FILES for answer in read_answers(OLD / name)]
    assert {answer.kind for answer in answers} == {"none", "prompt", "bound", "guard", "control", "detour"}
    assert {answer.setting for answer in answers} == {"plain", "jailbreak", "multimodal", "ability"}
    assert {answer.acted for answer in answers} == {None, True, False}
    assert {answer.is_stand_in for answer in answers} == {True, False}
    assert any(answer.right and answer.choices for answer in answers)
    verdicts = [verdict for answer in answers for verdict in answer.verdicts.values()]
    assert {verdict["coherent"] for verdict in verdicts} == {None, True, False}


@pytest.mark.parametrize("name", ANSWER_FILES)
def test_answers_are_read_field_by_field(name):
    lines = [json.loads(line) for line in (OLD / name).read_text().splitlines()]
    # What a later version has added is not known of them.
    assert [vars(answer) for answer in read_answers(OLD / name)] == [line | {"openings": None} for line in lines]


@pytest.mark.parametrize("name", ANSWER_FILES)
def test_a_judge_comes_to_the_old_verdicts(name):
    for answer in read_answers(OLD / name):
        for judge, verdict in answer.verdicts.items():
            (new,) = VERSIONED[judge].verdicts([answer.case])
            # Since then coherence is apart from the verdicts of lists, which count every answer that is not refused.
            same = {"harmful": attack_succeeds(asdict(new)), "judge": judge}
            assert asdict(new) | same == verdict and attack_succeeds(verdict) == verdict["harmful"]


def test_old_verdicts_by_rule_are_given_again(tmp_path):
    """Old verdicts of lists had coherence in them, measured in the old way."""
    path = Path(shutil.copy(OLD / ANSWER_FILES[1], tmp_path))
    before = read_answers(path)
    names = {name for record in before for name in record.verdicts}
    benchmarks.judge_again(path, [VERSIONED["gcg@1"]], tmp_path)
    for record in read_answers(path):
        for name in names & set(record.verdicts):
            assert record.verdicts[name]["judge"] == VERSIONED[name].identity


@pytest.mark.parametrize("name", ANSWER_FILES)
def test_old_answers_are_judged_again(run, name, tmp_path):  # noqa: F811
    path = shutil.copy(OLD / name, tmp_path)
    code, _, _ = run("judge", path, "--judge", "gcg", "--judge", "xstest", "--out", tmp_path / "judged")
    assert code == 0 and (tmp_path / "judged" / "defence.csv").exists()
    for old, new in zip(read_answers(OLD / name), read_answers(path), strict=True):
        assert set(new.verdicts) == ({"gcg@1", "xstest@1"} | set(old.verdicts) if not old.right else set())
        for judge, verdict in old.verdicts.items():
            same = ("refused", "state", "said") if VERSIONED[judge].coherence else verdict
            assert all(new.verdicts[judge][field] == verdict[field] for field in same)


def test_a_benchmark_run_is_resumed_without_new_answers(run, tmp_path):  # noqa: F811
    (tmp_path / "out").mkdir()
    path = shutil.copy(OLD / "benchmark_answers.jsonl", tmp_path / "out" / "answers.jsonl")
    options = ("--guard", OLD / "guard", "--defences", "guard,ecso", "--stand-in", "--max-new-tokens", "12")
    code, said, err = run("defend", "--data", OLD / "mine.csv", *options, "--out", tmp_path / "out")
    assert code == 0, (said, err)
    # Verdicts of lists are new: their coherence is measured in another way. And of scores, the old file does not say
    # which openings they are of.
    files, unlike = (path, OLD / ANSWER_FILES[1]), {"verdicts": {}, "refusal_score": None}
    kept, old = ([replace(record, **unlike) for record in read_answers(file)] for file in files)
    assert kept == old
    assert (tmp_path / "out" / "defence.csv").exists()
