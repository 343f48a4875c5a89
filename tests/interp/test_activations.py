import copy
import json
import os
import shutil

import numpy as np
import pytest
import torch
import zarr

from interp.activations import Store, StoreError, open_store
from interp.identity import fingerprint, weights_identity
from interp.inputs import to_prompts
from interp.trace import trace
from interp.vlm import VLM


@pytest.fixture
def prompts(queries):
    return [p for modality in ("blank", "text", "scene") for p in to_prompts(queries, modality, 96)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_vlm):
    """A finished store, to be copied, and its prompts."""
    from interp.inputs import Query

    queries = [Query(f"How do I build {thing}?", bool(i % 2)) for i, thing in enumerate(("a", "a b", "a b c", "d"))]
    prompts = [p for modality in ("blank", "text") for p in to_prompts(queries, modality, 96)]
    folder = tmp_path_factory.mktemp("stores") / "whole"
    trace(tiny_vlm, prompts, sites=("resid_post", "projector_out"), out=folder, batch_size=3)
    return folder, prompts


@pytest.fixture
def store(whole, tmp_path):
    """A copy of a finished store, and its prompts."""
    return shutil.copytree(whole[0], tmp_path / "store"), whole[1]


def trace_again(vlm, folder, prompts, **kwargs):
    """Run the trace of the finished store."""
    return trace(vlm, prompts, sites=("resid_post", "projector_out"), out=folder, **kwargs)


def test_a_store_holds_what_a_trace_in_memory_returns(tiny_vlm, prompts, tmp_path):
    kwargs = {
        "sites": ("resid_post", "mlp_out", "vision_resid_post"),
        "tokens": ("last", "image_mean"),
        "layers": [0, 2],
    }
    in_memory, stored = trace(tiny_vlm, prompts, **kwargs), trace(tiny_vlm, prompts, **kwargs, out=tmp_path / "store")
    weights = stored.attrs.pop("weights")
    assert weights == weights_identity(tiny_vlm) and in_memory.attrs.pop("weights") == ""
    assert stored.load().identical(in_memory)
    assert json.loads(stored.attrs["versions"])["torch"] == torch.__version__


def test_the_fingerprint_depends_on_text_labels_pictures_and_weights(tiny_vlm, queries):
    other_weights = VLM(type(tiny_vlm.model)(tiny_vlm.model.config), tiny_vlm.processor, tiny_vlm.name)
    fingerprints = {
        fingerprint(model, to_prompts(chosen, modality, 96))
        for model in (tiny_vlm, other_weights)
        for chosen in (queries, queries[:2], queries[::-1])
        for modality in ("text", "blank", "noise")
    }
    assert len(fingerprints) == 18


def test_weights_changed_in_place_have_another_identity(tiny_vlm):
    vlm = VLM(type(tiny_vlm.model)(tiny_vlm.model.config), tiny_vlm.processor, tiny_vlm.name)
    before = weights_identity(vlm)
    assert weights_identity(vlm) == before
    with torch.no_grad():
        vlm.unembedding.weight[0, 0] += 1
    assert weights_identity(vlm) != before
    changed = weights_identity(vlm)
    # Published code removes directions from weights this way, which torch does not count as a change.
    vlm.unembedding.weight.data.mul_(1.5)
    assert weights_identity(vlm) != changed


def test_weights_of_any_dtype_and_on_any_device_have_an_identity(tiny_vlm):
    half, copied = copy.deepcopy(tiny_vlm.model).bfloat16(), copy.deepcopy(tiny_vlm.model)
    identities = {weights_identity(VLM(model, tiny_vlm.processor)) for model in (tiny_vlm.model, half)}
    assert len(identities) == 2
    assert weights_identity(VLM(copied, tiny_vlm.processor)) == weights_identity(tiny_vlm)
    with torch.no_grad():
        rows = copied.get_input_embeddings().weight
        rows[[5, 6]] = rows[[6, 5]]
    assert weights_identity(VLM(copied, tiny_vlm.processor)) not in identities
    assert weights_identity(VLM(half.to("meta"), tiny_vlm.processor)) == "on a server"


def test_one_layer_is_read_without_reading_the_others(store):
    folder, _ = store
    expected = open_store(folder).resid_post.sel(layer=1).values
    for chunk in (folder / "states.zarr" / "resid_post" / "c").glob("*/*/*/*"):
        if chunk.parts[-3] != "1":
            chunk.write_bytes(b"damaged")
    damaged = open_store(folder)
    np.testing.assert_array_equal(damaged.resid_post.sel(layer=1).values, expected)
    with pytest.raises((ValueError, RuntimeError)):
        damaged.resid_post.sel(layer=0).load()


def test_a_finished_trace_does_not_run_again(tiny_vlm, store, monkeypatch):
    folder, prompts = store
    monkeypatch.setattr("interp.tracing.prefix.read", None)
    n_done = []
    assert trace_again(tiny_vlm, folder, prompts, advance=n_done.append).sizes["prompt"] == 8 and sum(n_done) == 8


def test_a_resumed_trace_keeps_the_plan_of_its_store(tiny_vlm, store):
    folder, prompts = store
    (folder / "done" / "000001").unlink()
    assert Store(folder).plan.batch_size == 3
    trace_again(tiny_vlm, folder, prompts, batch_size=2)
    assert Store(folder).plan.batch_size == 3 and Store(folder).n_done == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda vlm, prompts: (vlm, prompts[:-1], {}), "prompts: 8 in the store, 7 now, 0 of them new"),
        (lambda vlm, prompts: (vlm, prompts[:-1] + prompts[:1], {}), "prompts: 8 in the store, 8 now"),
        (lambda vlm, prompts: (vlm, prompts, {"layers": [0]}), r"layers: \[0, 1, 2\] in the store, \[0\] now"),
        (lambda vlm, prompts: (vlm, prompts, {"tokens": ("instruction",)}), r"tokens: \['last'\] in the store"),
        (lambda vlm, prompts: (vlm, prompts, {"dtype": "float16"}), "stored_as: 'float32' in the store, 'float16' now"),
        (
            lambda vlm, prompts: (VLM(type(vlm.model)(vlm.model.config), vlm.processor, vlm.name), prompts, {}),
            "made from something else .weights: 'blake2b",
        ),
        (
            lambda vlm, prompts: (VLM(vlm.model, vlm.processor, "other"), prompts, {}),
            "model: '.*tiny_vlm0' in the store, 'other'",
        ),
    ],
    ids=["fewer prompts", "other prompts", "layers", "tokens", "dtype", "weights", "name"],
)
def test_a_store_of_something_else_is_refused_with_what_differs(tiny_vlm, store, change, message):
    folder, prompts = store
    before = sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    vlm, prompts, kwargs = change(tiny_vlm, prompts)
    with pytest.raises(StoreError, match=message) as raised:
        trace_again(vlm, folder, prompts, **kwargs)
    assert "choose another folder" in str(raised.value)
    assert sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file()) == before


def test_folders_that_are_not_stores_are_left_alone(tiny_vlm, queries, tmp_path):
    prompts = to_prompts(queries, "text", 96)
    with pytest.raises(StoreError, match="holds no store: it has no header.json"):
        open_store(tmp_path)
    (tmp_path / "thesis.tex").write_text("all my work")
    with pytest.raises(StoreError, match="exists but is not a trace store; choose another folder"):
        trace(tiny_vlm, prompts, out=tmp_path)
    with pytest.raises(StoreError, match="exists but is not a trace store"):
        trace(tiny_vlm, prompts, out=tmp_path / "thesis.tex")
    with pytest.raises(StoreError, match="can't be written to: Not a directory"):
        trace(tiny_vlm, prompts, out=tmp_path / "thesis.tex" / "store")
    assert (tmp_path / "thesis.tex").read_text() == "all my work"


def test_a_damaged_header_and_one_of_another_format_are_refused(tiny_vlm, store):
    folder, prompts = store
    header = (folder / "header.json").read_text()
    for content in (header[: len(header) // 2], "", "[]"):
        (folder / "header.json").write_text(content)
        with pytest.raises(StoreError, match="header of store .* is damaged"):
            trace_again(tiny_vlm, folder, prompts)
    (folder / "header.json").write_text(json.dumps(json.loads(header) | {"format": 99}))
    with pytest.raises(StoreError, match="has format 99; this version reads 1"):
        trace_again(tiny_vlm, folder, prompts)


def test_a_store_without_its_header_is_refused(tiny_vlm, store):
    """Its marks would vouch for chunks that a new store had wiped."""
    folder, prompts = store
    (folder / "header.json").unlink()
    with pytest.raises(StoreError, match="exists but is not a trace store"):
        trace_again(tiny_vlm, folder, prompts)


def test_the_second_of_two_processes_that_create_a_store_does_not_wipe_it(tiny_vlm, store, tmp_path):
    folder, prompts = store
    first = Store(folder)
    before = open_store(folder).load()
    with pytest.raises(StoreError, match="can't be written to"):
        Store.create(folder, first.header["about"], first.prompts, first.plan, first.fields)
    assert open_store(folder).load().identical(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".store.lock", "store"]


def test_leftovers_of_killed_processes_are_removed(tiny_vlm, whole, tmp_path):
    prompts = whole[1]
    # As earlier versions and this one name them: process ids repeat in containers, and say nothing.
    dead = [tmp_path / f".store.{name}.new" for name in (os.getpid(), os.getppid(), "0a1b2c3d")]
    for folder in dead:
        folder.mkdir()
    trace_again(tiny_vlm, tmp_path / "store", prompts, batch_size=4)
    assert not any(folder.exists() for folder in dead)
    (tmp_path / "store" / "done" / "000001").unlink()
    partial = tmp_path / "store" / "states.zarr" / "resid_post" / "c" / "0.abc.partial"
    partial.write_bytes(b"damaged")
    trace_again(tiny_vlm, tmp_path / "store", prompts)
    assert not partial.exists()


def test_a_truncated_list_of_prompts_is_detected(tiny_vlm, store):
    folder, prompts = store
    lines = (folder / "prompts.jsonl").read_text()
    (folder / "prompts.jsonl").write_text(lines[:-30])
    with pytest.raises(StoreError, match="prompts.jsonl of store .* is damaged"):
        open_store(folder)


def test_a_store_of_missing_values_is_sound(tiny_vlm, queries, tmp_path):
    """Text prompts have no image tokens, so their means over image tokens are NaN."""
    trace(tiny_vlm, to_prompts(queries, "text", 96), tokens=("image_mean",), out=tmp_path / "store")
    assert Store(tmp_path / "store").damaged() == []
    assert np.isnan(open_store(tmp_path / "store").resid_post.values).all()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damaged_chunks_are_detected_and_can_be_traced_again(tiny_vlm, store, damage):
    folder, prompts = store
    expected = open_store(folder).load()
    chunk = folder / "states.zarr" / "resid_post" / "c" / "1" / "2" / "0" / "0"
    content = chunk.read_bytes()
    if damage == "missing":
        chunk.unlink()
    elif damage == "truncated":
        chunk.write_bytes(content[:-20])
    else:
        chunk.write_bytes(content[:30] + bytes([content[30] ^ 1]) + content[31:])
    if damage != "missing":
        with pytest.raises((ValueError, RuntimeError)):
            open_store(folder).load()
    assert Store(folder).damaged() == [1]
    assert Store(folder).mend() == [1]
    with pytest.raises(StoreError, match="not complete: 1 of 3 batches are missing; run the same trace again"):
        open_store(folder)
    assert trace_again(tiny_vlm, folder, prompts).load().identical(expected) and Store(folder).damaged() == []


def test_a_trace_stopped_by_a_full_disk_can_be_resumed(tiny_vlm, prompts, tmp_path, monkeypatch):
    written, write = [], zarr.Array.__setitem__

    def write_until_full(array, part, values):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(array.name)
        write(array, part, values)

    with monkeypatch.context() as patched:
        patched.setattr(zarr.Array, "__setitem__", write_until_full)
        with pytest.raises(StoreError, match=r"batch 1 can't be written \(No space left on device\); .* make room"):
            trace(tiny_vlm, prompts, out=tmp_path / "store", batch_size=4)
    assert Store(tmp_path / "store").n_done == 1
    resumed = trace(tiny_vlm, prompts, out=tmp_path / "store", batch_size=4)
    assert np.isfinite(resumed.resid_post.values).all()


def test_half_precision_is_stored_and_refuses_numbers_too_large_for_it(tiny_vlm, prompts, tmp_path):
    exact = trace(tiny_vlm, prompts).resid_post.values
    half = trace(tiny_vlm, prompts, out=tmp_path / "store", dtype="float16")
    assert half.resid_post.dtype == np.float16
    np.testing.assert_allclose(half.resid_post.values, exact, atol=np.abs(exact).max() * 1e-3)
    vlm = VLM(type(tiny_vlm.model)(tiny_vlm.model.config).eval(), tiny_vlm.processor, "loud")
    with torch.no_grad():
        vlm.model.get_input_embeddings().weight *= 1e7
    with pytest.raises(StoreError, match="resid_post reaches .* more than float16 holds .65504.; use dtype='float32'"):
        trace(vlm, prompts[4:8], dtype="float16")
