"""Damaged stores are refused by name, and mended where what they hold can be trusted."""

import json
import shutil

import pytest

from interp import StoreError, open_store, to_prompts, trace
from interp.activations import Store


@pytest.fixture
def traced(tiny_vlm, queries, tmp_path):
    """A complete store, what is in it, and how it is traced again."""
    prompts, folder = to_prompts(queries, "text", 96), tmp_path / "store"

    def again():
        return trace(tiny_vlm, prompts, ("resid_post", "mlp_out"), out=folder, batch_size=2)

    return folder, again().load(), again


DAMAGED = {
    "empty": lambda path: path.write_text(""),
    "not JSON": lambda path: path.write_text("{"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "missing": lambda path: path.unlink(),
    "another shape": lambda path: path.write_text(path.read_text().replace('"shape"', '"shapes"', 1)),
    "another format": lambda path: path.write_text(path.read_text().replace('"zarr_format": 3', '"zarr_format": 2')),
}


@pytest.mark.parametrize("place", ["", "resid_post"])
@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_metadata_is_mended_from_the_header_and_nothing_is_lost(kind, place, traced):
    folder, before, again = traced
    path = folder / "states.zarr" / place / "zarr.json"
    if kind == "another shape" and not place:
        pytest.skip("a group has no shape")
    DAMAGED[kind](path)
    with pytest.raises(StoreError, match="can't be opened .* --mend"):
        open_store(folder).load()
    assert Store(folder).mend() == []
    assert open_store(folder).load().identical(before) and again().load().identical(before)


def test_a_deleted_site_is_not_complete(traced):
    folder, before, again = traced
    shutil.rmtree(folder / "states.zarr" / "mlp_out")
    with pytest.raises(StoreError, match="can't be opened .* --mend"):
        open_store(folder)
    n_batches = Store(folder).plan.n_batches
    assert Store(folder).mend() == list(range(n_batches))
    assert again().load().identical(before)


@pytest.mark.parametrize("content", [b"\xff\xfe\xfd", b"", b"0" * 16])
def test_a_mark_that_vouches_for_something_else_is_found(content, traced):
    folder, before, again = traced
    (folder / "done" / "000001").write_bytes(content)
    assert Store(folder).damaged() == [1]
    assert Store(folder).mend() == [1]
    assert again().load().identical(before)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', "[" * 100_000, '{"format": ' + "9" * 5_000 + "}"])
def test_a_damaged_header_is_named(content, traced):
    folder, _, again = traced
    (folder / "header.json").write_text(content)
    for act in (again, lambda: open_store(folder), lambda: Store(folder)):
        with pytest.raises(StoreError, match="store"):
            act()


def test_a_header_of_another_plan_is_named(traced):
    folder, _, _ = traced
    header = json.loads((folder / "header.json").read_text())
    header["plan"]["order"] = header["plan"]["order"][:-1]
    (folder / "header.json").write_text(json.dumps(header))
    with pytest.raises(StoreError, match="with another shape or type"):
        open_store(folder)
