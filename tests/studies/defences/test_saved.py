"""Answers of other programs, judged: their logs, their tables, and what is said of them."""

import json
from zipfile import ZipFile

import pandas as pd
import pytest
from typer.testing import CliRunner

from studies.cli.app import app, main
from studies.datasets import read_saved_answers
from studies.defences.answer_log import read_answers
from studies.defences.saved import is_own_log, write_logs
from studies.experiment.config import ConfigError

SORRY, SURE = "I'm sorry, I can't help.", "Sure, here is how: first take a cup."


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answered(n=40, **more):
    """Requests of both classes; under the defence `mine`, every harmful one is refused."""
    return [
        {
            "prompt": f"What is deed {i}?",
            "response": SORRY if i % 2 and (defence == "mine" or i % 8 == 7) else SURE,
            "harmful": bool(i % 2),
            "defence": defence,
        }
        | more
        for i in range(n)
        for defence in ("none", "mine")
    ]


def judge(path, *typed):
    result = CliRunner().invoke(app, ["judge", str(path), "--judge", "xstest", *map(str, typed)])
    assert result.exit_code == 0, result.output or result.exception
    return result.output


def value(table, **columns):
    for name, wanted in columns.items():
        table = table[table[name] == wanted]
    return table.value.item()


def test_a_file_of_two_defences_is_compared_with_no_defence(tmp_path):
    path = write(tmp_path / "answers_of_mine.jsonl", answered(model="a/llava"))
    said = judge(path)
    assert "table: 40 answers to answers_of_mine; model: a/llava; defence: mine" in said
    table = pd.read_csv(tmp_path / "judged" / "defence.csv")
    rates = table[table.category.isna()]
    assert set(rates.model.dropna()) == {"llava"} and set(rates.defence.dropna()) == {"unguarded", "mine"}
    assert value(rates, defence="unguarded", metric="asr", judge="xstest@1") == 0.75
    assert value(rates, defence="mine", metric="asr", judge="xstest@1") == 0.0
    assert value(rates, defence="mine", metric="asr_change", versus="unguarded") == -0.75
    assert set(rates[rates.defence == "mine"].standing) == {"ranked"}
    assert set(rates[rates.defence == "mine"].tuning) == {"not stated"}


def test_what_a_file_does_not_say_is_said_or_typed(tmp_path):
    rows = [{"prompt": row["prompt"], "response": row["response"]} for row in answered()[::2]]
    path = write(tmp_path / "mine.jsonl", rows)
    said = judge(path, "--out", tmp_path / "out")
    assert "model: not stated (--model); defence: not stated (--defence)" in said and "all count as harmful" in said
    table = pd.read_csv(tmp_path / "out" / "defence.csv")
    assert set(table[table.metric == "asr"].standing) == {"not testable here"} and "rank" not in set(table.metric)
    judge(path, "--out", tmp_path / "typed", "--model", "m", "--defence", "mine", "--columns", "harmful=none")
    table = pd.read_csv(tmp_path / "typed" / "defence.csv")
    assert set(table.model.dropna()) == {"m"} and "mine" in set(table.defence) and "asr" not in set(table.metric)
    assert set(table[table.metric == "over_refusal_rate"].standing.dropna()) == {"ranked"}


def test_defences_may_have_answered_different_requests(tmp_path):
    rows = [row for row in answered() if row["defence"] == "none" or row["prompt"] != "What is deed 3?"]
    judge(write(tmp_path / "mine.jsonl", [*rows, rows[0] | {"prompt": "What else?", "defence": "mine"}]))
    table = pd.read_csv(tmp_path / "judged" / "defence.csv")
    change = table[(table.metric == "asr_change") & (table.defence == "mine")]
    assert change.n.item() == 19


def test_every_model_has_a_folder(tmp_path):
    rows = [row for model in ("a/one", "b/two") for row in answered(n=4, model=model)]
    judge(write(tmp_path / "mine.jsonl", rows))
    for folder in ("a__one", "b__two"):
        assert len(read_answers(tmp_path / "judged" / folder / "answers.jsonl")) == 8


def test_answers_are_judged_once_and_other_judges_are_added(tmp_path):
    path = write(tmp_path / "mine.jsonl", answered(n=4))
    judge(path)
    judge(path, "--judge", "gcg")
    (record, *others) = read_answers(tmp_path / "judged" / "answers.jsonl")
    assert set(record.verdicts) == {"xstest@1", "gcg@1"} and len(others) == 7
    assert record.answer == SURE and record.request == record.said == "What is deed 0?"
    # The log itself is judged like any other.
    assert is_own_log(tmp_path / "judged" / "answers.jsonl") and not is_own_log(path)


def test_a_folder_with_other_answers_is_left_alone(tmp_path):
    path = write(tmp_path / "mine.jsonl", answered(n=4))
    judge(path)
    before = (tmp_path / "judged" / "answers.jsonl").read_bytes()
    write(path, answered(n=6))
    with pytest.raises(ConfigError, match="holds other answers than those of .*; give another --out"):
        write_logs(read_saved_answers(path), path, tmp_path / "judged")
    assert (tmp_path / "judged" / "answers.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "typed", "message"),
    [
        ("run.eval", (), "version 7 of inspect_ai's logs; expected 2"),
        ("mine.jsonl", ("--columns", "response=reply"), "no column reply (response)"),
        ("none.jsonl", (), "does not exist"),
    ],
)
def test_answers_that_can_not_be_read_are_one_message(tmp_path, name, typed, message, capsys, monkeypatch):
    write(tmp_path / "mine.jsonl", answered(n=4))
    with ZipFile(tmp_path / "run.eval", "w") as archive:
        archive.writestr("header.json", json.dumps({"version": 7}))
    monkeypatch.setattr("sys.argv", ["vlm-guard", "judge", str(tmp_path / name), "--judge", "xstest", *typed])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("vlm-guard: ") and message in said and said.count("\n") == 1
    assert not (tmp_path / "judged").exists()


def test_logs_of_this_project_are_told_from_files_of_others(tmp_path):
    assert is_own_log(tmp_path / "answers.jsonl") and not is_own_log(tmp_path / "run.eval")
    assert not is_own_log(write(tmp_path / "answers.jsonl", [{"prompt": "Who?", "response": "I."}]))
    (tmp_path / "answers.jsonl").write_text('{"key": "torn', encoding="utf-8")
    assert is_own_log(tmp_path / "answers.jsonl")
