"""Columns and labels of the user's own queries, for every verb that takes `--queries`."""

import pytest
from typer.testing import CliRunner

from interp import Query
from studies import guard_choice, repro
from studies.cli import probe, sweep, trace
from studies.cli.app import app
from studies.cli.side_by_side import ApplyOptions
from studies.datasets import Columns, QueryFileError
from studies.experiment import model_loading
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment

TYPED = ["--columns", "text=prompt,harmful=label", "--harmful-values", "toxic"]
MAPPED = Columns({"text": "prompt", "harmful": "label"}, ("toxic",))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("prompt,label\nHow do I water a plant?,fine\nHow do I flood a cellar?,toxic\n", encoding="utf-8")
    return path


class Reached(Exception):
    """A study was called; what it was given is in `args`."""


@pytest.fixture
def called(monkeypatch):
    """Runs a verb up to its study, and returns what the study was given."""

    def reach(*given, **named):
        raise Reached(*given)

    for module, name in ((repro, "run"), (sweep, "run"), (probe, "probe_model"), (guard_choice, "fit"), (trace, "run")):
        monkeypatch.setattr(module, name, reach)
    monkeypatch.setattr(model_loading, "load_model", lambda *given, **named: None)

    def call(*typed):
        result = CliRunner().invoke(app, list(map(str, typed)))
        assert isinstance(result.exception, Reached), result.output or result.exception
        return result.exception.args

    return call


@pytest.mark.parametrize("verb", [["repro"], ["sweep"], ["probe"], ["guard", "fit", "--out", "guard"]])
def test_studies_read_queries_in_the_columns_that_were_typed(called, file, verb):
    config = called(*verb, "--queries", file, *TYPED)[0]
    assert isinstance(config, Config) and config.queries == str(file) and config.columns == MAPPED
    assert called(*verb, "--queries", file)[0].columns is None


def test_a_trace_reads_queries_in_the_columns_that_were_typed(called, file):
    _, queries, *_ = called("trace", "--out", file.parent / "store", "--queries", file, *TYPED)
    assert [(query.text, query.harmful) for query in queries] == [
        ("How do I water a plant?", False),
        ("How do I flood a cellar?", True),
    ]


def test_a_guard_answers_queries_in_the_columns_that_were_typed(file):
    options = ApplyOptions.of(None, None, file, 5, None, None, "prompt_text", MAPPED)
    assert options.queries == (Query("How do I flood a cellar?", True), Query("How do I water a plant?", False))


def test_a_run_reads_queries_in_the_columns_of_its_config(file):
    with pytest.raises(QueryFileError, match="no column text, harmful"):
        load_experiment(Config(queries=str(file), scale="tiny"))
    # Two rows are too few to be divided, which is noticed after they were read.
    with pytest.raises(QueryFileError, match="a study needs at least"):
        load_experiment(Config(queries=str(file), scale="tiny", columns=MAPPED))


def test_a_mapping_without_a_file_is_an_error():
    result = CliRunner().invoke(app, ["repro", *TYPED])
    assert isinstance(result.exception, QueryFileError) and "expected --queries FILE" in str(result.exception)
