"""A preset gives other verbs its model and its data, where nothing else is typed."""

import pytest
from typer.testing import CliRunner

from studies import guard_choice, repro
from studies.cli import benchmark_run, probe, sweep
from studies.cli.app import app
from studies.cli.arguments import ArgumentError
from studies.experiment import model_loading
from studies.presets.preset import PresetError, read_preset


class Reached(Exception):
    """A study was called; what it was given is in `args`."""


@pytest.fixture
def called(monkeypatch, tmp_path):
    """Runs a verb in an empty folder up to its study, and returns what the study was given."""

    def reach(*given, **named):
        raise Reached(*given, named)

    for module, name in ((repro, "run"), (sweep, "run"), (probe, "probe_model"), (guard_choice, "fit")):
        monkeypatch.setattr(module, name, reach)
    monkeypatch.setattr(model_loading, "load_model", reach)
    monkeypatch.setattr(benchmark_run, "load_model", reach)
    monkeypatch.chdir(tmp_path)

    def call(*typed):
        result = CliRunner().invoke(app, list(map(str, typed)))
        assert isinstance(result.exception, Reached), (result.output, result.exception)
        return result.exception.args

    return call


@pytest.mark.parametrize("verb", ["repro", "probe", "sweep", "guard fit"])
def test_a_study_gets_the_model_as_published_and_the_requests_of_the_preset(called, tmp_path, verb):
    config = called(*verb.split(), "--preset", "llava-1.5-7b")[0]
    model = read_preset("llava-1.5-7b").model
    assert (config.model, config.queries) == (model.name, None)
    assert (config.loading["dtype"], config.loading["revision"]) == (model.dtype, model.revision)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.csv").write_text("text,harmful\n")
    config = called(*verb.split(), "--preset", "llava-1.5-7b", "--dtype", "float32")[0]
    assert config.queries == "data/pairs.csv" and config.loading["dtype"] == "float32"


@pytest.mark.parametrize("verb", ["check", "trace"])
def test_a_verb_that_loads_a_model_loads_the_presets(called, verb):
    name, named = called(verb, "--preset", "qwen2.5-vl-7b")
    assert name == "Qwen/Qwen2.5-VL-7B-Instruct" and named["dtype"] == "bfloat16"
    _, named = called(verb, "--preset", "refusal-direction-gemma-2b")
    assert named.get("chat_template") == (read_preset("refusal-direction-gemma-2b").model.template or None)


def test_defences_answer_the_benchmarks_of_the_preset(called, tmp_path):
    def failed(*typed):
        return CliRunner().invoke(app, ["defend", *typed]).exception

    missing = failed("--preset", "qwen2.5-vl-7b")
    assert isinstance(missing, ArgumentError) and "harmful_test.json does not exist (git clone" in str(missing)
    assert "expected --data NAME=PATH" in str(failed())
    path = tmp_path / "data" / "refusal_direction" / "dataset" / "splits" / "harmful_test.json"
    path.parent.mkdir(parents=True)
    path.write_text('[{"instruction": "How?", "category": ""}]')
    name, named = called("defend", "--preset", "qwen2.5-vl-7b")
    assert name == "Qwen/Qwen2.5-VL-7B-Instruct" and named["dtype"] == "bfloat16"


def test_two_models_code_that_was_not_allowed_and_unknown_presets_are_errors():
    def failed(*typed):
        return CliRunner().invoke(app, list(typed)).exception

    both = failed("repro", "--preset", "llava-1.5-7b", "--model", "other")
    assert isinstance(both, ArgumentError) and "both name a model" in str(both)
    own_code = failed("probe", "--preset", "refusal-direction-qwen-1.8b")
    assert isinstance(own_code, ArgumentError) and "--trust-remote-code" in str(own_code)
    assert isinstance(failed("sweep", "--preset", "llava"), PresetError)
