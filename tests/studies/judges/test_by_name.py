"""Judges by name, and the options that are typed with them."""

import pytest
from typer.testing import CliRunner

import studies.benchmarks  # noqa: F401  (first imported where a test patches what it imports, it would keep the patch)
from studies.cli.app import app
from studies.cli.judge_options import classifier_labels, endpoint_settings
from studies.judges import EXACT, KEYWORDS, KEYWORDS_1, PUBLISHED, ClassifierJudge, EndpointJudge, ModelJudge, by_name
from studies.judges.by_name import (
    JudgeNameError,
    JudgeOptions,
    is_keyword_judge,
    judges_named,
    rule_judges,
    with_keywords,
)

ENDPOINT = "wildguard=some/judge@http://127.0.0.1:9/v1"


@pytest.fixture
def loaded(monkeypatch):
    """Arguments that judges by model would have been loaded with; nothing is loaded."""
    calls = []

    class Loaded:
        """Named by the last part of its model's name, as real judges are."""

        def __init__(self, *args, **loading):
            calls.append((*args, loading))
            self.identity = next(argument for argument in args if isinstance(argument, str))
            self.name = f"loaded@1:{self.identity.split('/')[-1]}"

        def verdicts(self, cases, advance=lambda n: None):
            raise AssertionError("nothing is judged here")

    for kind in (ModelJudge, ClassifierJudge):
        monkeypatch.setattr(kind, "from_pretrained", Loaded)
    monkeypatch.setattr(EndpointJudge, "connect", Loaded)
    return calls


def test_the_exact_judge_must_be_named(tmp_path):
    assert judges_named(["exact", "xstest@1"], tmp_path)[0] is EXACT
    assert judges_named(["exact@1"], tmp_path) == [EXACT] and EXACT not in rule_judges().values()
    with pytest.raises(JudgeNameError, match="judge 'exact@2' does not exist; expected .*exact"):
        judges_named(["exact@2"], tmp_path)


def test_earlier_versions_are_found_by_their_full_name(tmp_path):
    assert judges_named(["keywords", "keywords@1"], tmp_path) == [KEYWORDS, KEYWORDS_1]
    assert judges_named(["keywords@2"], tmp_path) == [KEYWORDS] and KEYWORDS_1 not in rule_judges().values()
    with pytest.raises(JudgeNameError, match="judge 'keywords@3' does not exist"):
        judges_named(["keywords@3"], tmp_path)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("xtest", "xstest"),
        ("keyword", "keywords"),
        ("lmmseval", "lmms_eval"),
        ("keyword@2", "keywords"),
        ("wildgard", "wildguard=MODEL"),
        ("wildguard", "wildguard=MODEL"),
        ("llamaguard=a/guard", "llama_guard"),
        ("clasifier=a/model", "classifier"),
    ],
)
def test_a_misspelt_judge_gets_a_suggestion(name, meant, tmp_path):
    with pytest.raises(JudgeNameError, match=rf"does not exist; expected .*; did you mean '{meant}'\?"):
        judges_named([name], tmp_path)


def test_keywords_are_judged_next_to_models(loaded, tmp_path):
    (model,) = judges_named(["harmbench=one/m"], tmp_path)
    assert with_keywords([model]) == [model, KEYWORDS]
    for alone in ([model, KEYWORDS_1], [PUBLISHED["gcg@1"]], [EXACT]):
        assert with_keywords(alone) == alone
    names = ["keywords@1", "keywords@2", "xstest@1"]
    assert all(map(is_keyword_judge, names)) and not any(map(is_keyword_judge, ["exact@1", model.name]))


def test_endpoint_settings_are_numbers_words_json_or_left_out():
    typed = ["max_tokens=", "max_completion_tokens=64", "reasoning_effort=low", 'stop=["a=b"]', "temperature=null"]
    assert endpoint_settings(typed) == {
        "max_tokens": None,
        "max_completion_tokens": 64,
        "reasoning_effort": "low",
        "stop": ["a=b"],
        "temperature": None,
    }
    for wrong in ("max_tokens", "=64"):
        with pytest.raises(JudgeNameError, match=f"setting '{wrong}'; expected NAME=VALUE, or NAME= to leave it out"):
            endpoint_settings([wrong])


def test_classifier_labels_have_known_meanings():
    assert classifier_labels(["LABEL_0=refused", "a=b=harmful"]) == {"LABEL_0": "refused", "a=b": "harmful"}
    for wrong in ("LABEL_0", "LABEL_0=bad", "=refused"):
        with pytest.raises(JudgeNameError, match=f"label '{wrong}'; expected NAME= and one of refused, answered"):
            classifier_labels([wrong])


def test_options_reach_the_judges_that_they_are_for(loaded, tmp_path):
    names = ["llama_guard=a/guard", "classifier=a/classifier", ENDPOINT]
    judges_named(names, tmp_path, JudgeOptions({"dtype": "bfloat16"}, {"max_tokens": None}, {"x": "refused"}))
    guard, classifier, endpoint = loaded
    assert guard[0] == "a/guard" and guard[-1] == {"dtype": "bfloat16"}
    assert classifier == ("a/classifier", {"x": "refused"}, {"dtype": "bfloat16"})
    assert endpoint[1:3] == ("some/judge", "http://127.0.0.1:9/v1") and endpoint[-1]["settings"] == {"max_tokens": None}
    judges_named(["classifier=a/classifier"], tmp_path)
    assert loaded[-1] == ("a/classifier", None, {})


def test_settings_and_labels_that_no_judge_uses_are_an_error_before_anything_is_loaded(loaded, tmp_path):
    with pytest.raises(JudgeNameError, match="settings seed are for endpoints; expected a judge RUBRIC=MODEL@URL"):
        judges_named(["llama_guard=a/guard"], tmp_path, JudgeOptions(settings={"seed": 1}))
    with pytest.raises(JudgeNameError, match="labels x are for classifiers; expected a judge classifier=MODEL"):
        judges_named(["llama_guard=a/guard"], tmp_path, JudgeOptions(labels={"x": "refused"}))
    assert loaded == []


def test_two_judges_of_one_name_are_an_error_that_identifies_both(loaded, tmp_path):
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
def test_the_command_line_passes_on_how_judges_are_loaded_and_asked(command, monkeypatch, tmp_path):
    calls = []

    def named(names, folder, options):
        calls.append((names, options))
        raise JudgeNameError("far enough")

    monkeypatch.setattr(by_name, "judges_named", named)
    typed = ["--judge", ENDPOINT, "--judge-setting", "max_tokens=", "--label", "x=refused", "--dtype", "bfloat16"]
    typed += ["--device-map", "auto", "--trust-remote-code", "--out", str(tmp_path / "out")]
    (tmp_path / "file.csv").write_text("prompt,response,refused\nWho?,No.,yes\n", encoding="utf-8")
    result = CliRunner().invoke(app, [command, str(tmp_path / "file.csv"), *typed])
    assert isinstance(result.exception, JudgeNameError), result.output
    [(names, options)] = calls
    assert names == [ENDPOINT] and options.settings == {"max_tokens": None} and options.labels == {"x": "refused"}
    assert options.loading == {
        "dtype": "bfloat16",
        "device": "auto",
        "device_map": "auto",
        "revision": None,
        "trust_remote_code": True,
    }
