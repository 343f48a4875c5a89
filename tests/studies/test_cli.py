"""Bad input: one clear line, exit code 2, no traceback, before any long work."""

import json
import sys

import pytest
from PIL import Image

from interp.verify import CHECKS
from studies import cli


@pytest.fixture
def run(monkeypatch, capsys):
    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["vlm-guard", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        return stopped.value.code or 0, shown.out, shown.err

    return called


@pytest.fixture
def query_file(tmp_path):
    def written(text):
        path = tmp_path / "mine.csv"
        path.write_text(text)
        return path

    return written


def fails_clearly(result, *words):
    code, _, err = result
    assert code == 2 and err.startswith("vlm-guard: ") and len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


def test_an_unknown_model(run, tmp_path):
    fails_clearly(run("repro", "--model", tmp_path / "nowhere", "--out", tmp_path / "out"), "nowhere' does not exist")
    fails_clearly(run("check", "nobody/nothing"), "nobody/nothing", "Expected a folder")


def test_a_folder_that_is_no_vlm(run, tmp_path):
    (tmp_path / "empty").mkdir()
    fails_clearly(run("repro", "--model", tmp_path / "empty", "--out", tmp_path / "out"), "can't be loaded")


def test_a_missing_a_malformed_and_a_one_sided_query_file(run, tmp_path, query_file):
    out = ("--out", tmp_path / "out")
    fails_clearly(run("repro", "--queries", tmp_path / "no.csv", *out), "no.csv' does not exist")
    fails_clearly(run("repro", "--queries", query_file("text,harmful\na,maybe\n"), *out), "line 2, column harmful")
    rows = "".join(f"query {i},true\n" for i in range(30))
    fails_clearly(
        run("repro", "--queries", query_file("text,harmful\n" + rows), *out), "0 harmless queries", "a study needs"
    )


def test_an_unwritable_output_folder(run, tmp_path):
    (tmp_path / "file").write_text("")
    fails_clearly(run("repro", "--out", tmp_path / "file" / "out"), "can't be written to")


def test_an_unknown_scale_and_split(run, tmp_path):
    fails_clearly(run("repro", "--scale", "huge", "--out", tmp_path / "out"), "expected one of tiny, quick, full")
    fails_clearly(run("repro", "--split", "anchors", "--out", tmp_path / "out"), "validation, test")


def test_an_unreadable_picture(run, tmp_path, query_file):
    rows = "".join(f"query {i},{label},{tmp_path / 'no.png'}\n" for i in range(10) for label in ("true", "false"))
    path = query_file("text,harmful,picture\n" + rows)
    fails_clearly(run("repro", "--queries", path, "--out", tmp_path / "out"), "line 2, column picture", "no.png")
    (tmp_path / "no.png").write_bytes(b"not a picture")
    fails_clearly(run("repro", "--queries", path, "--out", tmp_path / "out"), "line 2, column picture", "no.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "no.png")


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def broken():
        raise ValueError("not about input")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ValueError, match="not about input"):
        cli.main()


def test_check_passes_on_a_sound_model(run, tiny_folder):
    code, out, _ = run("check", tiny_folder)
    assert code == 0 and len(out.splitlines()) == len(CHECKS)
    assert all(line.startswith("ok ") for line in out.splitlines())


def test_check_for_machines(run, tiny_folder, monkeypatch):
    monkeypatch.setattr("interp.verify.CHECKS", CHECKS[:2])
    code, out, _ = run("check", tiny_folder, "--json")
    assert code == 0 and [set(row) for row in json.loads(out)] == [{"claim", "verdict", "measured"}] * 2


def test_check_fails_on_a_model_that_is_silently_wrong(run, tiny_folder, monkeypatch):
    monkeypatch.setattr("interp.guard.Guard.change", lambda guard, resid, *others: resid)
    code, out, _ = run("check", tiny_folder)
    assert code == 1 and "silently wrong  changing a block's output" in out


def test_help_names_both_commands(run):
    code, out, _ = run("--help")
    assert code == 0 and "repro" in out and "check" in out


def test_bad_guards_and_bad_precision(run, tmp_path, query_file):
    fails_clearly(run("guard", "show", tmp_path), "holds no guard: it has no guard.json")
    fails_clearly(run("guard", "show", "nobody/no-guard"), "neither a folder nor a repository that can be reached")
    for command in ("guard fit", "repro"):
        out = ("--out", tmp_path / "new", "--dtype", "float8")
        fails_clearly(run(*command.split(), *out), "dtype 'float8' does not exist")


def test_anchors_that_are_tested_on_are_refused_before_a_model_is_loaded(monkeypatch):
    """Splits of a file are made by text; a split of the built-in queries could only be broken by hand."""
    from interp.inputs import Query
    from studies import material

    same = {split: (Query("How?", True), Query(f"What, {split}?", False)) for split in material.SPLITS}
    monkeypatch.setattr(material.language, "queries", lambda split: same[split])
    monkeypatch.setattr(material, "load_model", lambda *args, **kwargs: pytest.fail("loaded a model first"))
    with pytest.raises(material.ConfigError, match=r"1 anchors are in the validation split too \('How\?'\)"):
        material.load(material.Config(scale="tiny"))
