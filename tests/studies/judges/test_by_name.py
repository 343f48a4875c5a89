"""Judges by what is typed."""

import pytest
from typer.testing import CliRunner

import studies.benchmarks  # noqa: F401  (first imported where a test patches what it imports, it would keep the patch)
from studies.cli.app import app
from studies.judges import EXACT, ClassifierJudge, EndpointJudge, ModelJudge, by_name
from studies.judges.by_name import JudgeNameError, judges_named, labels_typed, rule_judges, settings_typed

ENDPOINT = "wildguard=some/judge@http://127.0.0.1:9/v1"


@pytest.fixture
def loaded(monkeypatch):
    """What judges by model would have been loaded with; nothing is."""
    told = []

    class Loaded:
        """Named by the last part of its model's name, as real ones are."""

        def __init__(self, *about, **loading):
            told.append((*about, loading))
            self.identity = next(str(one) for one in about if isinstance(one, str))
            self.name = f"loaded@1:{self.identity.split('/')[-1]}"

        def verdicts(self, cases, advance=lambda n: None):
            raise AssertionError("nothing is judged here")

    for kind in (ModelJudge, ClassifierJudge):
        monkeypatch.setattr(kind, "from_pretrained", Loaded)
    monkeypatch.setattr(EndpointJudge, "connect", Loaded)
    return told


def test_the_exact_judge_is_there_when_it_is_asked_for(tmp_path):
    assert judges_named(["exact", "xstest@1"], tmp_path)[0] is EXACT
    assert judges_named(["exact@1"], tmp_path) == [EXACT] and EXACT not in rule_judges().values()
    with pytest.raises(JudgeNameError, match="judge 'exact@2' does not exist; expected .*exact"):
        judges_named(["exact@2"], tmp_path)


def test_settings_are_numbers_words_or_left_out():
    typed = ["max_tokens=", "max_completion_tokens=64", "reasoning_effort=low", 'stop=["a=b"]', "temperature=null"]
    assert settings_typed(typed) == {
        "max_tokens": None,
        "max_completion_tokens": 64,
        "reasoning_effort": "low",
        "stop": ["a=b"],
        "temperature": None,
    }
    for wrong in ("max_tokens", "=64"):
        with pytest.raises(JudgeNameError, match=f"setting '{wrong}'; expected NAME=VALUE, or NAME= to leave it out"):
            settings_typed([wrong])


def test_labels_are_explained_by_known_words():
    assert labels_typed(["LABEL_0=refused", "a=b=harmful"]) == {"LABEL_0": "refused", "a=b": "harmful"}
    for wrong in ("LABEL_0", "LABEL_0=bad", "=refused"):
        with pytest.raises(JudgeNameError, match=f"label '{wrong}'; expected NAME= and one of refused, answered"):
            labels_typed([wrong])


def test_what_is_typed_arrives_where_it_belongs(loaded, tmp_path):
    names = ["llama_guard=a/guard", "classifier=a/classifier", ENDPOINT]
    how = {"dtype": "bfloat16"}, {"max_tokens": None}, {"x": "refused"}
    judges_named(names, tmp_path, *how)
    guard, classifier, endpoint = loaded
    assert guard[0] == "a/guard" and guard[-1] == {"dtype": "bfloat16"}
    assert classifier == ("a/classifier", {"x": "refused"}, {"dtype": "bfloat16"})
    assert endpoint[1:3] == ("some/judge", "http://127.0.0.1:9/v1") and endpoint[-1]["settings"] == {"max_tokens": None}
    judges_named(["classifier=a/classifier"], tmp_path)
    assert loaded[-1] == ("a/classifier", None, {})


def test_settings_and_labels_that_nobody_reads_are_refused_before_anything_is_loaded(loaded, tmp_path):
    with pytest.raises(JudgeNameError, match="settings seed are for endpoints; expected a judge RUBRIC=MODEL@URL"):
        judges_named(["llama_guard=a/guard"], tmp_path, settings={"seed": 1})
    with pytest.raises(JudgeNameError, match="labels x are for classifiers; expected a judge classifier=MODEL"):
        judges_named(["llama_guard=a/guard"], tmp_path, labels={"x": "refused"})
    assert loaded == []


def test_two_judges_of_one_name_are_refused_and_told_apart(loaded, tmp_path):
    with pytest.raises(
        JudgeNameError,
        match=r"judges 'llama_guard=a/guard' \(a/guard\) and 'llama_guard=b/guard' \(b/guard\) would both be called "
        "loaded@1:guard",
    ):
        judges_named(["llama_guard=a/guard", "llama_guard=b/guard"], tmp_path)
    for twice in (["llama_guard=a/guard"] * 2, ["xstest", "xstest@1"]):
        with pytest.raises(JudgeNameError, match="is named twice; expected each once"):
            judges_named(twice, tmp_path)


@pytest.mark.parametrize("command", ["judge", "judges"])
def test_the_command_line_says_how_judges_are_loaded_and_asked(command, monkeypatch, tmp_path):
    told = {}

    def named(names, folder, *how):
        told["how"] = (names, *how)
        raise JudgeNameError("far enough")

    monkeypatch.setattr(by_name, "judges_named", named)
    asked = ["--judge", ENDPOINT, "--judge-setting", "max_tokens=", "--label", "x=refused", "--dtype", "bfloat16"]
    asked += ["--device-map", "auto", "--trust-remote-code", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [command, str(tmp_path / "file"), *asked])
    assert isinstance(found.exception, JudgeNameError), found.output
    names, loading, *how = told["how"]
    assert names == [ENDPOINT] and how == [{"max_tokens": None}, {"x": "refused"}]
    assert loading == {"dtype": "bfloat16", "device_map": "auto", "revision": None, "trust_remote_code": True}
