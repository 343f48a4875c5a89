"""Damaged guards are refused in one line: a guard that loads damaged can be a guard that is off."""

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interp import Guard, SafetyDirection, collate, to_prompts, trace
from interp.errors import ModelError
from interp.guard_files import COMING, SETTINGS, TENSORS, GuardFileError, read_guard_settings
from interp.projection import ProbeGate


@pytest.fixture
def fitted(tiny_vlm, queries):
    return SafetyDirection.fit(trace(tiny_vlm, to_prompts(queries, "text", 96)), "mean_diff")


@pytest.fixture
def saved(tiny_vlm, fitted, tmp_path):
    """A folder with a guard."""
    Guard(fitted, (1,)).save_pretrained(tmp_path / "guard", tiny_vlm, {"refusal_rate": 0.9})
    return tmp_path / "guard"


def without_checksums(folder: Path) -> dict:
    """Turn a guard into one of the first format, and return its record."""
    record = json.loads((folder / SETTINGS).read_text())
    del record["checksums"]
    record["format"] = 1
    (folder / SETTINGS).write_text(json.dumps(record))
    return record


# --- flipped bits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_flips", [300, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [SETTINGS, TENSORS])
def test_every_flipped_bit_is_caught(name, n_flips, saved, tiny_vlm):
    whole = (saved / name).read_bytes()
    bits = np.arange(8 * len(whole))
    for bit in bits if n_flips is None else np.random.default_rng(0).choice(bits, n_flips, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        (saved / name).write_bytes(damaged)
        try:
            guard = Guard.from_pretrained(saved, tiny_vlm)
        except GuardFileError:
            continue
        # White space between the entries of JSON, and nothing else.
        assert name == SETTINGS and json.loads(damaged) == json.loads(whole) and guard.layers == (1,), bit


# --- guards of the first format, which has no checksums ------------------------------------------------------------


def test_a_guard_without_checksums_is_still_read(saved, tiny_vlm, fitted):
    without_checksums(saved)
    guard = Guard.from_pretrained(saved, tiny_vlm)
    assert torch.equal(guard.direction.basis, fitted.basis) and guard.validation == {"refusal_rate": 0.9}
    assert read_guard_settings(saved)["direction"]["rank"] == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("control", "sign_flipped", r"sets \['control'\], which a saved guard never does"),
        ("threshold", float("nan"), "threshold nan; expected a finite number"),
        ("strength", float("inf"), "strength inf; expected a finite number"),
        ("layers", [1.5], "layer 1.5; expected a whole number"),
        ("layers", ["1"], "layer '1'; expected a whole number"),
        ("direction_layer", 0.5, "layer 0.5; expected a whole number"),
    ],
)
def test_settings_that_no_guard_is_saved_with_are_refused(name, value, message, saved, tiny_vlm):
    record = without_checksums(saved)
    record["guard"][name] = value
    (saved / SETTINGS).write_text(json.dumps(record))
    with pytest.raises(GuardFileError, match=message):
        Guard.from_pretrained(saved, tiny_vlm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"basis": t["basis"] * float("nan")}, "the direction has no numbers at layer 1"),
        (lambda t: t | {"basis": t["basis"] * 1024}, r"not orthonormal \(lengths \[1024.0\]\)"),
        (lambda t: t | {"harmful": t["harmful"] * float("inf")}, "the direction has no numbers at layer 1"),
        (lambda t: t | {"harmful": t["harmful"][:1].clone()}, "harmful of shape"),
        (lambda t: t | {"centre": t["centre"][:, :3].clone()}, "centre of shape"),
        (lambda t: t | {"more": t["centre"].clone()}, "holds more of shape .* expected some of basis, centre"),
    ],
)
def test_tensors_that_no_guard_is_saved_with_are_refused(change, message, saved, tiny_vlm):
    without_checksums(saved)
    save_file(change(load_file(saved / TENSORS)), saved / TENSORS)
    with pytest.raises(GuardFileError, match=message):
        Guard.from_pretrained(saved, tiny_vlm)


def test_a_probe_without_a_border_is_refused(tiny_vlm, fitted):
    weight = torch.ones(tiny_vlm.d_model)
    for probe in (ProbeGate(weight, float("nan")), ProbeGate(weight * float("inf"), 0.0)):
        with pytest.raises(ValueError, match="the probe holds numbers that are not finite"):
            Guard(fitted, (1,), gate="probe", probe=probe)


def test_a_direction_has_no_numbers_where_all_anchors_have_the_same_state(tiny_vlm, queries):
    activations = trace(tiny_vlm, to_prompts(queries, "text", 96)).load()
    activations["resid_post"].loc[{"layer": 1}] = 1.0
    direction = SafetyDirection.fit(activations, "paired_svd")
    assert Guard(direction, (2,))
    with pytest.raises(ValueError, match="no numbers at layer 1, which happens where all anchors have the same state"):
        Guard(direction, (1,))


# --- saving that is stopped ----------------------------------------------------------------------------------------


def stop_at(monkeypatch, n: int) -> None:
    """Let the n-th replacement of a file fail, as if the process had been killed before it."""
    real, calls = os.replace, []

    def counted(source, target):
        calls.append(target)
        if len(calls) == n:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", counted)


@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_guard_that_is_overwritten_is_the_old_one_or_the_new_one(n, has_checksums, saved, tiny_vlm, monkeypatch):
    if not has_checksums:
        without_checksums(saved)
    old = Guard.from_pretrained(saved, tiny_vlm)
    new = replace(old, direction=replace(old.direction, basis=-old.direction.basis), layers=(2,), strength=3.0)
    with monkeypatch.context() as patch:
        stop_at(patch, n)
        with pytest.raises(KeyboardInterrupt):
            new.save_pretrained(saved, tiny_vlm)
    found = Guard.from_pretrained(saved, tiny_vlm)
    expected = old if n <= 2 else new
    assert torch.equal(found.direction.basis, expected.direction.basis)
    assert (found.layers, found.strength) == (expected.layers, expected.strength)
    # Nothing of the stopped save disturbs the next one.
    new.save_pretrained(saved, tiny_vlm)
    assert Guard.from_pretrained(saved, tiny_vlm).layers == (2,) and not (saved / COMING).exists()
    assert sorted(path.name for path in saved.glob("[!.]*")) == ["README.md", TENSORS, SETTINGS]


def test_two_writers_leave_one_whole_guard(saved, tiny_vlm, fitted):
    flipped = replace(fitted, basis=-fitted.basis)
    guards = [Guard(fitted, (1,), strength=1.0), Guard(flipped, (2,), strength=2.0)]
    errors = []

    def write(guard):
        try:
            for _ in range(20):
                guard.save_pretrained(saved, tiny_vlm)
        except Exception as error:  # noqa: BLE001 (any is too many)
            errors.append(error)

    writers = [threading.Thread(target=write, args=(guard,)) for guard in guards]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = Guard.from_pretrained(saved, tiny_vlm)
    expected = guards[found.layers[0] - 1]
    assert not errors and found.strength == expected.strength
    assert torch.equal(found.direction.basis, expected.direction.basis)


# --- threads -------------------------------------------------------------------------------------------------------


def test_a_pass_from_another_thread_is_an_error_and_leaves_the_guard_on(tiny_vlm, fitted, queries):
    batch = collate(tiny_vlm, to_prompts(queries[:2], "blank", 96))
    guard, errors = Guard(fitted, (1,), rule="ablate", gate="always"), []

    def run():
        try:
            tiny_vlm.model(**batch)
        except ModelError as error:
            errors.append(str(error))

    with torch.no_grad(), guard.on(tiny_vlm):
        # Whichever thread is first.
        alone = tiny_vlm.model(**batch).logits
        other = threading.Thread(target=run)
        other.start()
        other.join()
        after = tiny_vlm.model(**batch).logits
    assert torch.equal(alone, after)
    assert len(errors) == 1 and "from another thread than the one that is guarded" in errors[0]


def test_generation_in_another_thread_than_that_of_the_block_is_guarded(tiny_vlm, fitted, queries):
    """`TextIteratorStreamer` needs this."""
    batch = collate(tiny_vlm, to_prompts(queries[:2], "blank", 96))
    guard, found = Guard(fitted, (1,), rule="ablate", gate="always"), []
    with torch.no_grad(), guard.on(tiny_vlm):
        here = tiny_vlm.model(**batch).logits

    def run():
        with torch.no_grad():
            found.append(tiny_vlm.model(**batch).logits)

    with guard.on(tiny_vlm):
        other = threading.Thread(target=run)
        other.start()
        other.join()
    assert torch.equal(found[0], here)


def test_a_direction_that_is_zero_is_no_guard(fitted):
    with pytest.raises(ValueError, match="the direction is zero at layer 1, so it would change nothing"):
        Guard(replace(fitted, basis=torch.zeros_like(fitted.basis)), (1,))
