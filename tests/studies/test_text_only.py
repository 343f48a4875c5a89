"""Studies of a model without pictures: the text half of everything."""

import pytest
from typer.testing import CliRunner

from interp import LLM
from studies import organism, repro
from studies.bookkeeping.tables import read_table, tidy, write_table
from studies.bookkeeping.verdict_words import NOT_TESTABLE
from studies.cli.app import app
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.guards.layer_criteria import ABOUT_PICTURES

LLM_FOLDER = str(organism.llm_path())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, thin_grid):
    """A whole run on the built-in model's aligned LLM."""
    folder = tmp_path_factory.mktemp("llm")
    repro.run(Config(model=LLM_FOLDER, scale="tiny", out=str(folder)))
    return folder


def test_a_checkpoint_without_pictures_is_loaded_as_an_llm(tmp_path):
    experiment = load_experiment(Config(model=LLM_FOLDER, scale="tiny", out=str(tmp_path)))
    assert isinstance(experiment.vlm, LLM) and experiment.sizes.modalities == ("text",)


def test_every_study_measures_text_and_nothing_else(finished):
    for name in ("separability", "layer_sweep", "readings", "defence", "changes", "signal_path"):
        modalities = set(read_table(finished, name).modality.dropna())
        assert modalities == {"text"}, name


def test_claims_about_pictures_are_not_testable_and_those_about_text_are_decided(finished):
    claims = read_table(finished, "claims").set_index("claim").verdict
    assert claims["harmful and harmless are separable as text: AUROC of a probe"] != NOT_TESTABLE
    about_pictures = [verdict for claim, verdict in claims.items() if "picture" in claim or "an image" in claim]
    assert about_pictures and set(about_pictures) == {NOT_TESTABLE}


def test_rules_that_compare_pictures_with_text_choose_no_layer(finished):
    table = read_table(finished, "layer_selection")
    criteria = table[table.setting == "criterion"].groupby("selection_rule").value.count()
    assert not criteria[list(ABOUT_PICTURES)].any() and criteria["probe_auroc"]
    assert not set(table[table.setting == "pick"].selection_rule) & set(ABOUT_PICTURES)


def test_the_page_and_figures_of_a_run_without_pictures_are_written(finished):
    assert (finished / "report.html").is_file() and (finished / "hidden_states.png").is_file()


def test_a_study_without_rows_is_a_table_that_can_be_read(tmp_path):
    """As the signal's path is, of a text-only model that TransformerLens does not support."""
    write_table(tidy([]), tmp_path, "signal_path")
    assert read_table(tmp_path, "signal_path").modality.empty


def test_trace_and_sweep_take_an_llm_and_check_says_what_it_is_about(tmp_path):
    runner = CliRunner()
    traced = runner.invoke(app, ["trace", "--model", LLM_FOLDER, "--out", str(tmp_path / "states")])
    assert traced.exit_code == 0 and "is complete" in traced.output
    refused = runner.invoke(app, ["trace", "--model", LLM_FOLDER, "--out", str(tmp_path / "x"), "--modality", "blank"])
    assert refused.exit_code != 0 and "accepts no pictures" in str(refused.exception)
    checked = runner.invoke(app, ["check", "--model", LLM_FOLDER])
    assert "accepts no pictures" in str(checked.exception)
