"""A guard has one name, in full, wherever it is mentioned."""

import io
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from interp import read_guard_settings
from interp.guard import Guard
from studies import guard_choice, layer_sweep
from studies.bookkeeping.tables import read_table, write_table
from studies.claims import verdicts
from studies.cli.guard import show
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.guards.anchor_fits import AnchorFits
from studies.guards.choice_rule import FALLBACK_RULE, SELECTION_RULE
from studies.guards.configuration import guard_columns
from studies.guards.wording import EITHER_REFERENCE, chosen_in_words, guard_in_words, saved_in_words
from studies.report.gallery import DrawnFigure, draw_figures
from studies.report.results import Results
from tests.studies.report.report_results import changes
from tests.studies.test_claims import tables

COLUMNS = {"layer": 6.0, "direction_layer": 6.0, "token": "last", "estimator": "paired_svd", "rank": 1.0}
COLUMNS |= {"source": "vlm_text", "rule": "substitute", "gate": "sign", "gate_scope": "change"}
COLUMNS |= {"positions": "last_prefill", "strength": 2.0, "last_layer": float("nan")}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """The smallest sweep, and the guard that `vlm-guard guard fit` saves from the same settings."""
    folder = tmp_path_factory.mktemp("wording")
    config = Config(scale="tiny", out=str(folder / "run"), split="validation")
    Path(config.out).mkdir()
    experiment = load_experiment(config)
    sweep = layer_sweep.run(config, experiment)
    write_table(sweep.table, Path(config.out), "layer_sweep")
    guard = guard_choice.fit(config, folder / "guard")
    return folder, sweep, guard, experiment


def test_the_same_sentence_is_in_report_claims_captions_and_show(chosen):
    folder, sweep, guard, _ = chosen
    run = folder / "run"
    sentence = chosen_in_words(read_table(run, "layer_sweep"))
    assert sentence == guard_in_words(sweep.chosen.columns("") | {"reference": None}, sweep.best.mark)
    for word in (guard.rule, f"layer {guard.layers[0]}", guard.gate, guard.positions, EITHER_REFERENCE, "validation"):
        assert word in sentence
    assert sentence.endswith((f"by {SELECTION_RULE}", f"by {FALLBACK_RULE}"))
    # 1. `vlm-guard guard show`, from the files of a saved guard
    console = Console(record=True, width=80, file=io.StringIO())
    show(str(folder / "guard"), console)
    assert f"Guard: {sentence}." in console.export_text()
    # 2. head of the report, and captions
    points = [
        {"modality": modality, "layer": 7, "harmful": i % 2 == 0, "text": f"request {i}", "coordinate": 1.0 - i}
        for modality in ("text", "blank")
        for i in range(6)
    ]
    changes(pd.DataFrame(points), 7).to_csv(run / "changes.csv", index=False)
    results = Results.of(run)
    assert results.guard == sentence
    captions = {each.name: each.caption for each in draw_figures(results) if isinstance(each, DrawnFigure)}
    assert {"layer_sweep", "pareto", "gate_roc", "what_changed"} <= set(captions)
    assert all(sentence in caption for caption in captions.values()), captions
    # 3. claims
    judged = verdicts(replace(tables(), layer_sweep=read_table(run, "layer_sweep")))
    named = [entry for entry in judged if "the guard" in entry.claim]
    assert named and sentence in {entry.guard for entry in named}
    end = sentence.partition(EITHER_REFERENCE)[2]
    assert all(entry.guard.endswith(end) for entry in named), "only the reference differs"


def test_a_saved_guard_keeps_the_rule_that_chose_it(chosen):
    folder, sweep, guard, experiment = chosen
    assert guard.chosen_by == sweep.best.mark
    loaded = Guard.from_pretrained(folder / "guard", experiment.vlm)
    assert loaded.chosen_by == guard.chosen_by and loaded.layers == guard.layers


def test_every_setting_is_named():
    assert guard_in_words(COLUMNS) == (
        "rule substitute, layer 6, strength 2, gate sign (scope change), positions last_prefill, reference prompt_text "
        "(transcription if the request is in a picture) read by vlm_text, direction paired_svd of rank 1 at token last"
    )
    for changed, words in (
        ({"last_layer": 7.0, "direction_layer": float("nan")}, ", layers 6 to 7, "),
        ({"last_layer": 7.0, "direction_layer": 5.0}, ", layers 6 to 7 (direction of layer 5), "),
        ({"direction_layer": 5.0}, ", layer 6 (direction of layer 5), "),
        ({"gate": "probe", "gate_scope": "target"}, ", gate probe (scope target), "),
        ({"reference": "transcription"}, ", reference transcription read by vlm_text, "),
        ({"source": "llm"}, " read by llm, "),
        ({"strength": 0.25}, ", strength 0.25, "),
    ):
        assert words in guard_in_words(COLUMNS | changed), words
    alone = guard_in_words(COLUMNS | {"rule": "ablate", "gate": "always", "strength": float("nan")}, "some_rule")
    assert alone == (
        "rule ablate, layer 6, gate always, positions last_prefill, direction paired_svd of rank 1 at token last; "
        "chosen on validation by some_rule"
    )


def test_two_guards_that_differ_have_different_names(chosen):
    experiment = chosen[3]
    base = Guard(AnchorFits.on(experiment).direction(), (6,))
    others = [
        replace(base, **change)
        for change in (
            {"layers": (5,)},
            {"layers": (5, 6)},
            {"layers": (4, 5, 6)},
            {"layers": (4, 6)},
            {"rule": "ablate"},
            {"gate": "always"},
            {"gate_scope": "target"},
            {"positions": "last"},
            {"strength": 2.0},
            {"source": "llm"},
            {"direction_layer": 3},
        )
    ]
    names = [guard_in_words(guard_columns(each, each.reference, each.source)) for each in (base, *others)]
    assert len(set(names)) == len(names)


def test_layers_with_a_gap_are_not_named_like_a_window(chosen, tmp_path):
    experiment = chosen[3]
    guard = Guard(AnchorFits.on(experiment).direction(), (3, 7))
    guard.save_pretrained(tmp_path, experiment.vlm)
    assert saved_in_words(read_guard_settings(tmp_path)).startswith("rule substitute, layers 3, 7, ")
    columns = guard_columns(guard, "prompt_text")
    assert columns["layers"] == "3, 7" and columns["layer"] is None and "last_layer" not in columns


def test_a_sweep_without_a_choice_names_nothing():
    assert chosen_in_words(pd.DataFrame({"setting": ["ranked"], "selection_rule": [None], "layer": [1]})) == ""
