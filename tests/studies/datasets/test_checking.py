import pytest
from PIL import Image
from typer.testing import CliRunner

from studies.cli.app import app
from studies.datasets import check
from tests.studies.datasets.benchmark_files import (
    FORMS,
    figstep,
    harmbench,
    in_csv,
    in_json,
    requests,
    vlguard,
    write_form,
)


@pytest.fixture
def folder(tmp_path):
    """FigStep with one picture, one damaged, and two missing."""
    write_form(tmp_path, FORMS["FigStep"][0])
    pictures = tmp_path / "images" / "SafeBench"
    pictures.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(pictures / "query_ForbidQI_1_1_6.png")
    (pictures / "query_ForbidQI_1_2_6.png").write_bytes(b"<html>")
    return tmp_path


def test_a_check_reports_what_is_there_and_what_is_missing(folder):
    checked = check(folder)
    lines = dict(checked.lines())
    assert lines["recognised"] == "FigStep" and lines["licence"] == "MIT" and "ThuCCSLab/FigStep" in lines["source"]
    assert lines["rows"] == "4" and lines["class"] == "harmful: 2, caveat: 2"
    assert lines["expected"] == "refuse: 2, caveat: 2" and lines["modality"] == "typographic: 4"
    assert lines["categories"] == "category 1: 2, category 8: 2"
    assert lines["pictures"] == "1 present, 2 missing, 1 damaged"
    assert lines["missing"] == "query_ForbidQI_8_1_6.png, query_ForbidQI_8_2_6.png"
    assert lines["damaged"].endswith("images/SafeBench/query_ForbidQI_1_2_6.png") and not checked.is_whole
    assert "anchors" not in lines and "stand-ins" not in lines and "repeated ids" not in lines


def test_stand_ins_are_counted_as_missing_pictures(folder):
    checked = check(folder, stand_in=True)
    lines = dict(checked.lines())
    assert lines["pictures"] == "1 present, 2 missing, 1 damaged" and lines["stand-ins"] == "2 rows"
    assert not checked.is_whole and "not drawn" not in lines


def test_stand_ins_make_a_set_usable_unless_a_picture_is_damaged_or_decides(folder, tmp_path):
    assert not check(folder).is_usable and not check(folder, stand_in=True).is_usable
    (folder / "images" / "SafeBench" / "query_ForbidQI_1_2_6.png").unlink()
    assert not check(folder).is_usable and check(folder, stand_in=True).is_usable
    decided = check(write_form(tmp_path / "siuo", FORMS["SIUO"][0]), stand_in=True)
    assert dict(decided.lines())["not drawn"] == "the picture decides what is right: 1" and not decided.is_usable


def test_data_check_exits_1_while_pictures_are_damaged(folder):
    def code(*more):
        return CliRunner().invoke(app, ["data", "check", str(folder), *more]).exit_code

    assert (code(), code("--stand-in")) == (1, 1)
    (folder / "images" / "SafeBench" / "query_ForbidQI_1_2_6.png").unlink()
    assert (code(), code("--stand-in")) == (1, 0)


def test_ten_missing_pictures_are_named_and_the_rest_counted(tmp_path):
    path = write_form(tmp_path, ("f.csv", in_csv(figstep(7)), 0))
    line = dict(check(path).lines())["missing"]
    assert line.count("query_") == 10 and line.endswith(" and 4 more")


def test_anchors_are_looked_for_among_the_true_requests(folder):
    checked = check(folder, anchors=["How can SOMEONE do deed 1-2", "Feed a wasp"])
    assert dict(checked.lines())["anchors"].startswith("1 of 4 test requests are among the 2 anchors: 1 word for word")
    assert checked.leakage.ids == {"1/2"}


def test_a_check_reports_skipped_and_repeated_rows_and_the_licence(tmp_path):
    lines = dict(check(write_form(tmp_path, ("h.csv", in_csv(harmbench()), 0))).lines())
    assert lines["left out"] == "copyright: scored by hash, not by harm: 1"
    lines = dict(check(write_form(tmp_path, ("test.json", in_json(vlguard() * 2), 0))).lines())
    assert lines["repeated ids"].startswith("Ads_3/safe_unsafe, ") and lines["repeated rows"] == "5"
    lines = dict(check(write_form(tmp_path / "moss", FORMS["MOSSBench"][0])).lines())
    assert lines["licence"].endswith("test only: nothing may be fitted on it")


def test_a_text_only_set_is_whole_and_pairs_are_counted(tmp_path):
    checked = check(write_form(tmp_path, FORMS["XSTest"][0]))
    lines = dict(checked.lines())
    assert checked.is_whole and lines["pairs"] == "16" and lines["pictures"] == "0 present, 0 missing, 0 damaged"
    rows = [{"goal": text, "target": ""} for text in requests(1) * 3]
    assert dict(check(write_form(tmp_path, ("a.csv", in_csv(rows), 0))).lines())["repeated rows"] == "2"
