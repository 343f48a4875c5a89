"""Published results hold no answer of the model."""

import json

import pandas as pd
import pytest

from studies.bookkeeping.provenance import file_hash, write_provenance
from studies.bookkeeping.tables import write_table
from studies.llava_qwen.published import publish

SAID = ("Here is how to do it.", "I'm sorry, but I can't assist with that.")


@pytest.fixture
def run(tmp_path):
    """A finished run with a table of answers, a log and a page."""
    folder = tmp_path / "run"
    (folder / "traces").mkdir(parents=True)
    changes = pd.DataFrame({"text": ["How to a", "How to b", "How to c"], "answer": [*SAID, None]})
    changes["guarded_answer"] = [SAID[1], SAID[1], SAID[1]]
    paths = [write_table(changes, folder, "changes")]
    paths.append(write_table(pd.DataFrame({"metric": ["asr"], "value": [0.5]}), folder, "defence"))
    write_provenance(folder, {"model": "m"}, 0, paths)
    for name in ("answers.jsonl", "report.html", "defence.png", "config.json", "captions.md"):
        (folder / name).write_text(json.dumps({"answer": SAID[0]}) if name.endswith(("jsonl", "html")) else "{}")
    return folder


def test_answers_are_hashes_and_only_tables_and_figures_are_copied(run, tmp_path):
    publish(run, out := tmp_path / "published")
    assert {path.name for path in out.iterdir()} == {
        *("changes.csv", "defence.csv", "defence.png", "config.json", "captions.md", "provenance.json")
    }
    assert not any(said in path.read_text() for path in out.iterdir() for said in SAID)
    table = pd.read_csv(out / "changes.csv")
    assert table.answer[1] == table.guarded_answer[0] != table.answer[0] and pd.isna(table.answer[2])
    assert table.text.tolist() == ["How to a", "How to b", "How to c"]
    tables = json.loads((out / "provenance.json").read_text())["tables"]
    assert all(entry["sha256"] == file_hash([out / name]) for name, entry in tables.items())
    assert SAID[0] in (run / "changes.csv").read_text()
    assert json.loads((out / "config.json").read_text())["out"] == "results/run"


def test_an_unfinished_run_is_not_published(run, tmp_path):
    (run / "provenance.json").unlink()
    with pytest.raises(FileNotFoundError):
        publish(run, tmp_path / "published")
    assert not (tmp_path / "published").exists()
