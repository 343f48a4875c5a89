from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from studies import layer_selection
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.guards import layer_criteria


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    config = Config(scale="tiny", split="validation", out=str(tmp_path_factory.mktemp("selection")))
    return load_experiment(config)


@pytest.fixture(scope="module")
def selected(experiment):
    return layer_selection.run(experiment.config, experiment)


def test_every_rule_picks_a_layer_and_is_measured_by_the_guard_there(selected):
    picks = selected[(selected.setting == "pick") & (selected.metric == "refusal_rate")]
    expected = {*layer_criteria.CRITERIA, "validation", "middle_to_last", "fixed", "random", "best_on_test"}
    assert set(picks.selection_rule) == expected
    everywhere = selected[(selected.setting == "every_layer") & (selected.metric == "refusal_rate")]
    single = everywhere[everywhere.last_layer.isna()]
    for rule in ("sas", "validation", "fixed"):
        picked = picks[picks.selection_rule == rule]
        guard_rows = single[single.layer == picked.layer.iloc[0]]
        assert sorted(picked.value) == sorted(guard_rows.value)
    keys = ["modality", "judge"]
    random = selected[(selected.setting == "pick") & (selected.selection_rule == "random")]
    assert not random.duplicated(["modality", "judge", "category", "metric"]).any()
    mean = picks[picks.selection_rule == "random"].set_index(keys).value
    # Picks are no random layers: the mean is over those of the scale.
    of_scale = single[single.layer.isin([0, 4])]
    assert set(single.layer) > {0, 4}
    pd.testing.assert_series_equal(mean.sort_index(), of_scale.groupby(keys).value.mean(), check_names=False)
    assert len(layer_selection.summary_lines(selected)) == len(expected)


def test_the_pick_is_the_largest_criterion(selected):
    criteria = selected[selected.setting == "criterion"]
    assert set(criteria.split) == {"validation"}
    for rule, rows in criteria.groupby("selection_rule"):
        layer = selected[(selected.setting == "pick") & (selected.selection_rule == rule)].layer.iloc[0]
        if rule == "patching":
            near = rows[rows.value >= 0.9 * rows.value.max()]
            assert layer == near.layer.min()
        else:
            assert layer == rows.layer[rows.value.idxmax()]
    arditi = criteria[criteria.selection_rule == "kl_and_refusal_score"]
    # They number the states before a block: the last fifth of eight layers is ours from 5 on.
    assert {5, 6, 7} <= set(arditi[arditi.value.isna()].layer)


def test_layers_without_a_criterion_are_never_picked():
    assert layer_selection.picked(np.array([1.0, np.nan, 3.0, 3.0])) == 2
    assert layer_selection.picked(np.array([0.5, 0.92, 1.0]), near=0.9) == 1
    assert layer_selection.picked(np.full(3, np.nan)) is None


def test_safety_awareness_is_the_mean_cosine_of_any_two_differences():
    rng = np.random.default_rng(0)
    harmful, harmless = rng.normal(size=(2, 7, 5)) + 1
    units = [(a - b) / np.linalg.norm(a - b) for a, b in zip(harmful, harmless, strict=True)]
    cosines = [units[i] @ units[j] for i in range(7) for j in range(7) if i != j]
    assert layer_criteria.safety_awareness(harmful, harmless) == pytest.approx(np.mean(cosines))


def test_the_openings_of_refusals_are_found_once_from_whole_answers(experiment, selected):
    # From answers of one token nothing is a refusal, and the score would be that of other openings.
    found = list((Path(experiment.config.out) / "openings").glob("*/openings.json"))
    assert len(found) == 1 and experiment.refusal_openings.n_refused > 0
