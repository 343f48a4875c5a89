"""Files that were damaged at random are refused with an error about input, or read; guards and stores as they were.

A few of each kind run always, 250 of each with the marker `slow`: 2,000 in all.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from interp import Guard, SafetyDirection, collate, open_store, to_prompts, trace
from interp.activations import Store
from interp.pictures import digest, read_picture
from interp.vlm import VLM
from studies.bookkeeping.tables import read_table, write_table
from studies.cli.errors import is_about_input
from studies.datasets import read_queries
from studies.defences.answer_log import read_answers
from studies.judges import Replies

FEW, MANY = 25, 250
WORDS = [b"null", b"NaN", b"-1", b"1e999", b"[]", b"{}", b'"', b"\x00", b"\xff\xfe", b"\\ud800"]
WORDS += [b"[" * 2_000, b"9" * 5_000]
OLD = Path(__file__).parents[1] / "studies" / "old_files"


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return content with a flipped bit, or with a part cut off, left out, doubled, moved or overwritten."""
    if not content:
        return WORDS[rng.integers(len(WORDS))]
    start, end = sorted(rng.integers(0, len(content) + 1, 2))
    kind = rng.integers(7)
    if kind == 0:
        changed = bytearray(content)
        changed[start % len(content)] ^= 1 << rng.integers(8)
        return bytes(changed)
    if kind == 1:
        return content[:start]
    if kind == 2:
        return content[:start] + content[end:]
    if kind == 3:
        return content[:end] + content[start:]
    if kind == 4:
        return content[end:] + content[:start]
    word = WORDS[rng.integers(len(WORDS))]
    return content[:start] + word + content[start + (len(word) if kind == 5 else 0) :]


def is_refused_or_read(read: Callable[[], object]) -> bool:
    """Return whether something was read, and pass over errors about input; any other error is a fault."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except (ValueError, OSError, RuntimeError) as error:
        assert is_about_input(error), f"{type(error).__name__}: {error}"
        assert str(error) and len(str(error)) < 2_000
        return False
    return True


@pytest.fixture
def guard_of(tiny_vlm, queries):
    def write(folder: Path):
        direction = SafetyDirection.fit(trace(tiny_vlm, to_prompts(queries, "text", 96)), "mean_diff")
        Guard(direction, (1,)).save_pretrained(folder, tiny_vlm, {"refusal_rate": 0.9})
        whole = (folder / "guard.json").read_bytes(), (folder / "direction.safetensors").read_bytes()

        def read():
            Guard.from_pretrained(folder, tiny_vlm)
            # It was read, so nothing that counts has changed.
            assert json.loads((folder / "guard.json").read_bytes()) == json.loads(whole[0])
            assert (folder / "direction.safetensors").read_bytes() == whole[1]

        return read

    return write


@pytest.fixture
def store_of(tiny_vlm, queries):
    def write(folder: Path):
        before = trace(tiny_vlm, to_prompts(queries[:4], "text", 96), out=folder, batch_size=2).load()

        def read():
            Store(folder).check()
            assert open_store(folder).load().identical(before)

        return read

    return write


@pytest.fixture
def model_of(tiny_folder, queries):
    def write(folder: Path):
        shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)

        def read():
            vlm = VLM.from_pretrained(folder, device="cpu")
            collate(vlm, to_prompts(queries[:1], "text", 96))

        return read

    return write


def answers_of(folder: Path):
    folder.mkdir()
    shutil.copy(OLD / "answers.jsonl", folder)
    return lambda: read_answers(folder / "answers.jsonl")


def table_of(folder: Path):
    write_table(pd.DataFrame({"metric": ["asr", "kl"], "value": [0.5, 1e-3], "n": [60, 60]}), folder, "table")
    return lambda: read_table(folder, "table")


def picture_of(folder: Path):
    folder.mkdir()
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        picture.save(folder / f"picture.{suffix}")
    return lambda: [digest(read_picture(path)) for path in sorted(folder.iterdir())]


def replies_of(folder: Path):
    replies = Replies(folder / "replies.jsonl")
    for i in range(5):
        replies.keep(f"key {i}", "yes", "harmbench@2:m", "m at u")
    return lambda: [Replies(folder / "replies.jsonl").get(f"key {i}") for i in range(5)]


def queries_of(folder: Path):
    folder.mkdir()
    rows = "".join(f'"How do I open door {i}, quickly?",{i % 2},c,{i // 2}\n' for i in range(12))
    (folder / "queries.csv").write_text("text,harmful,category,pair\n" + rows)
    return lambda: read_queries(folder / "queries.csv")


KINDS = ("guard", "store", "model", "answers", "table", "picture", "replies", "queries")


@pytest.mark.parametrize("n", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_or_read(kind, n, request, tmp_path):
    name = f"{kind}_of"
    write = globals()[name] if kind in ("answers", "table", "picture", "replies", "queries") else None
    write = write or request.getfixturevalue(name)
    folder, rng = tmp_path / kind, np.random.default_rng(n)
    read = write(folder)
    read()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    n_read = 0
    for _ in range(n):
        path = files[rng.integers(len(files))]
        path.write_bytes(mutated(whole[path], rng))
        n_read += is_refused_or_read(read)
        path.write_bytes(whole[path])
        for extra in set(folder.rglob("*")) - set(whole):
            if extra.is_file():
                extra.unlink()
    # Whatever was tried, the file itself is still read.
    read()
    assert n_read < n or kind == "replies"
