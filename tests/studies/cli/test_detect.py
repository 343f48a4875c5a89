"""`vlm-guard detect`: input that can't be used is reported in one line."""

import sys

import pandas as pd
import pytest

from studies.cli import app


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs the command line and returns exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vlm-guard", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def table_of(path, labels):
    pd.DataFrame({"text": [f"request number {i}" for i in range(len(labels))], "harmful": labels}).to_csv(
        path, index=False
    )
    return path


def test_queries_of_one_class_end_in_one_line_before_anything_is_loaded(run, tmp_path):
    queries = table_of(tmp_path / "mine.csv", [True] * 40)
    code, _, errors = run("detect", "--queries", queries, "--out", tmp_path / "out")
    assert code == 2 and len(errors.splitlines()) == 1
    assert "0 harmless queries" in errors and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "none.csv"], "none.csv"),
        (["--guard", "nowhere"], "nowhere"),
        (["--modality", "smell"], "modality 'smell' does not exist"),
        (["--scale", "huge"], "expected one of tiny, brief, quick, full"),
    ],
)
def test_what_does_not_exist_is_said_in_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, errors = run("detect", *arguments, "--out", tmp_path / "out")
    assert code == 2 and message in errors and "Traceback" not in errors
