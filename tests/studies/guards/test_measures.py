"""Rows of outcomes; and on the built-in model the refusal score says which answers will be refusals."""

import numpy as np
import pytest
import torch

from interp import Guard
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.experiment.reference_states import read_references
from studies.generation.reference_texts import reference_for
from studies.guards.measures import outcome_rows, score_auroc_row
from studies.separability import fit_direction

LEAST_AUROC = 0.98


def test_the_auroc_is_the_share_of_pairs_in_the_right_order():
    row = score_auroc_row([True, True, False, False, None, True], [3.0, 1.0, 2.0, -1.0, 9.0, None], "x@1")
    assert row["value"] == 0.75 and row["n"] == 4 and row["judge"] == "x@1" and row["ci_low"] < 0.75 < row["ci_high"]


@pytest.mark.parametrize("refused", [True, False])
def test_where_one_verdict_occurs_there_is_no_auroc(refused):
    row = score_auroc_row([refused] * 3, [1.0, 2.0, float("nan")], "x@1")
    assert np.isnan(row["value"]) and row["n"] == 2 and row["metric"] == "score_auroc"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return load_experiment(Config(scale="quick", split="validation", out=str(tmp_path_factory.mktemp("measures"))))


@pytest.fixture(scope="module")
def direction(experiment):
    return fit_direction(experiment)


@pytest.mark.parametrize("modality", ["text", "blank", "noise", "scene", "typographic", "typographic_scene"])
def test_the_refusal_score_agrees_with_judged_refusal_of_the_whole_answer(experiment, direction, modality):
    guards = [None, *(Guard(direction, (7,), strength=strength) for strength in (1.0, 2.0))]
    prompts = experiment.prompts("validation", modality)
    states = read_references(experiment, prompts, reference_for(modality)).states
    n_measured = 0
    for outcome in experiment.cached_model.run_guards(prompts, guards, states):
        (row,) = [row for row in outcome_rows(experiment, prompts, outcome) if row["metric"] == "score_auroc"]
        refused = torch.tensor([experiment.judges[0].refuses(answer) for answer in outcome.answers])
        assert row["n"] == len(prompts) and np.isnan(row["value"]) == (len(refused.unique()) == 1)
        if not np.isnan(row["value"]):
            n_measured += 1
            assert row["value"] >= LEAST_AUROC
            # The score is near the true log-odds: it has the sign of the verdict, rare cases at the border apart.
            assert ((outcome.refusal_score > 0) == refused).double().mean() >= 0.95
    # Inside pictures nothing is refused unguarded.
    assert n_measured >= 2
