"""Results of another run are not overwritten, pieces of work are checked, and a failed command leaves nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest

from interp.whole_files import replaced
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.provenance import write_config, write_json
from studies.bookkeeping.tables import write_table
from studies.experiment.config import Config, ConfigError, writable_folder
from studies.experiment.run_folder import check_settings, held, run_folder


def begin(config, options=None):
    """Begin a run as commands do, up to its first table."""
    with run_folder(config, options) as out:
        write_config(out, config, options)
        (out / "table.csv").write_text("value\n1\n")


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 1), ("split", "validation"), ("scale", "full"), ("model", "else")]
)
def test_a_folder_of_another_run_is_refused(name, value, tmp_path):
    begin(Config(out=str(tmp_path / "out"), loading={"device": "cpu"}))
    begin(Config(out=str(tmp_path / "out"), loading={"device": "cuda"}))
    with pytest.raises(ConfigError, match=f"holds results of another run .*{name} .*, now {value!r}"):
        begin(Config(**{"out": str(tmp_path / "out"), name: value}))


@pytest.mark.parametrize("content", ["", "[1]", "3", "[" * 100_000, '{"seed": {}}x'])
def test_results_under_a_damaged_config_are_not_overwritten(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "table.csv").write_text("value\n1\n")
    with pytest.raises(ConfigError, match="config.json is damaged .* unknown whose results these are"):
        begin(Config(out=str(tmp_path)))


def test_the_same_run_under_other_names_goes_on(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    first = Config(str(tmp_path / "m"), out=str(tmp_path / "out"))
    begin(first)
    monkeypatch.chdir(tmp_path)
    again = Config("./m", out="out", generation=replace(first.generation, batch_size=3))
    begin(again)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        begin(replace(again, generation=replace(first.generation, max_new_tokens=3)))


def test_options_of_another_run_are_refused(tmp_path):
    config = Config(out=str(tmp_path / "out"))
    begin(config, {"layers": (1, 2), "top": 3})
    begin(config, {"layers": [1, 2], "top": 3})
    with pytest.raises(ConfigError, match=r"\(layers \[1, 2\], now \[4\]\)"):
        begin(config, {"layers": (4,), "top": 3})
    with pytest.raises(ConfigError, match="top 3, now 'not set'"):
        begin(config)


def test_probes_of_another_store_are_refused(tmp_path):
    settings = {"store": str(tmp_path / "a"), "split": "", "seed": 0, "options": {"n_folds": 5}}
    write_json(tmp_path / "config.json", settings)
    check_settings(tmp_path, settings | {"store": str(tmp_path / "b")})
    (tmp_path / "separability.csv").write_text("value\n1\n")
    check_settings(tmp_path, settings)
    with pytest.raises(ConfigError, match="store .*a', now .*b'"):
        check_settings(tmp_path, settings | {"store": str(tmp_path / "b")})


def test_folders_of_earlier_versions_are_gone_on_with(tmp_path):
    write_json(tmp_path / "config.json", {"seed": 0})
    begin(Config(out=str(tmp_path)), {"layers": (1, 2)})


def test_a_run_that_ended_before_its_first_table_does_not_bind_the_next_one(tmp_path):
    for layers in ((99,), (1,)):
        with run_folder(Config(out=str(tmp_path)), {"layers": layers}) as out:
            write_config(out, Config(out=str(tmp_path)), {"layers": layers})


def test_a_second_writer_is_refused(tmp_path):
    with held(tmp_path / "out") as folder:
        (folder / "table.csv").write_text("")
        with pytest.raises(ConfigError, match="is being written by another process; wait for it, or give another"):
            begin(Config(out=str(tmp_path / "out")))
    begin(Config(out=str(tmp_path / "out")))


def test_a_run_that_fails_before_it_writes_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), run_folder(Config(out=str(tmp_path / "a" / "b"))):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_what_killed_writers_left_half_written_is_removed_and_what_others_write_is_not(tmp_path):
    killed = tmp_path / ".table.csv.0123abcd.new"
    killed.write_text("val")
    (tmp_path / ".other.csv.0123abcd.new").write_text("")
    with replaced(tmp_path / "table.csv") as first, replaced(tmp_path / "table.csv") as second:
        assert not killed.exists() and first.exists() and second.exists()
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "table.csv").read_text() == "1"
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", ".other.csv.0123abcd.new"}


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
