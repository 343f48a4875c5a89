"""Results of another run are not overwritten, pieces of work are checked, and a failed command leaves nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest

from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.provenance import write_config
from studies.bookkeeping.tables import write_table
from studies.experiment.config import Config, ConfigError, folder_of_run, writable_folder


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 1), ("split", "validation"), ("scale", "full"), ("model", "else")]
)
def test_a_folder_of_another_run_is_refused(name, value, tmp_path):
    config = Config(out=str(tmp_path / "out"), loading={"device": "cpu"})
    write_config(folder_of_run(config), config)
    moved = Config(out=str(tmp_path / "out"), loading={"device": "cuda"})
    assert folder_of_run(moved) == tmp_path / "out"
    other = Config(**{"out": str(tmp_path / "out"), name: value})
    with pytest.raises(ConfigError, match=f"holds results of another run .*{name} .*, now {value!r}"):
        folder_of_run(other)


@pytest.mark.parametrize("content", ["", "[1]", "3", "[" * 100_000, '{"seed": {}}x'])
def test_results_under_a_damaged_config_are_not_overwritten(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="config.json is damaged .* unknown whose results these are"):
        folder_of_run(Config(out=str(tmp_path)))


def test_the_same_run_under_other_names_goes_on(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    first = Config(str(tmp_path / "m"), out=str(tmp_path / "out"))
    write_config(folder_of_run(first), first)
    monkeypatch.chdir(tmp_path)
    again = Config("./m", out="out", generation=replace(first.generation, batch_size=3))
    assert folder_of_run(again).resolve() == tmp_path / "out"
    with pytest.raises(ConfigError, match="max_new_tokens"):
        folder_of_run(replace(again, generation=replace(first.generation, max_new_tokens=3)))


def test_checking_a_folder_leaves_nothing(tmp_path):
    assert writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n_flips", [200, pytest.param(None, marks=pytest.mark.slow)])
def test_a_piece_of_work_with_a_flipped_bit_is_done_again(n_flips, tmp_path):
    checkpoints = Checkpoints(tmp_path, {"a": 1})
    arrays = {"values": np.arange(12, dtype=np.float32), "labels": np.array([[1], [0]])}
    checkpoints.write("piece", arrays)
    path = checkpoints.folder / "piece.safetensors"
    whole = path.read_bytes()
    bits = np.arange(8 * len(whole))
    for bit in bits if n_flips is None else np.random.default_rng(0).choice(bits, n_flips, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        found = checkpoints.read("piece")
        # Padding of the header holds nothing.
        assert found is None or all(np.array_equal(found[name], arrays[name]) for name in arrays), bit


@pytest.mark.parametrize("content", ["", "{", "3", '{"texts": ["a"]}', '{"texts": ["b"], "checksum": "0"}', "[1]"])
def test_damaged_texts_are_made_again(content, tmp_path):
    checkpoints = Checkpoints(tmp_path, {"a": 1})
    checkpoints.write_texts("texts", ["a", "b"])
    assert checkpoints.read_texts("texts") == ["a", "b"]
    (checkpoints.folder / "texts.json").write_text(content)
    assert checkpoints.read_texts("texts") is None
    # As earlier versions wrote them.
    (checkpoints.folder / "texts.json").write_text(json.dumps(["a"]))
    assert checkpoints.read_texts("texts") == ["a"]


def test_a_table_is_replaced_whole(tmp_path, monkeypatch):
    import pandas as pd

    write_table(pd.DataFrame({"value": [1.0]}), tmp_path, "table")

    def full(self, path, **kwargs):
        path.write_text("val")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(pd.DataFrame({"value": [2.0]}), tmp_path, "table")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert (tmp_path / "table.csv").read_text() == "value\n1\n"
