"""Detectors on planted states: the layer is found, thresholds are set on validation, and sets are what they say."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm

from interp import Query, text_prompt
from studies.defences.prompt_sets import PromptSet
from studies.detectors.acting import GATES, REFUSES, Answered, refused
from studies.detectors.evidence import Evidence, pooled
from studies.detectors.fitted import BORDER, SSD, FitSet, best_layers, best_window, fitted_on, preferred, threshold_rows
from studies.detectors.sets import DetectionSet, check_sets, leaks
from studies.experiment.config import ConfigError
from studies.probing.settings import QueryLabels

D, DISTANCE, PLANTED = 6, 2.0, 1


def evidence(seed, n=400, name="a set, text", distance=DISTANCE, noise=()):
    """States of pairs whose classes are normal, `distance` apart at layer `PLANTED` and the same at others."""
    rng = np.random.default_rng(seed)
    is_harmful = np.arange(n) % 2 == 0
    states = rng.normal(size=(n, 3, 1, D))
    states[:, PLANTED, 0, 0] += distance * (is_harmful - 0.5)
    cosines = rng.normal(size=(n, 3)) * 0.1
    cosines[:, 1:] += 0.2 * is_harmful[:, None]
    pairs = [str(i // 2) for i in range(n)]
    texts = [f"request {i} of {name}" for i in range(n)]
    coords = {
        "layer": [0, 1, 2],
        "token": ["last"],
        "harmful": ("prompt", is_harmful),
        "pair": ("prompt", np.array(pairs, dtype=object)),
        "text": ("prompt", np.array(texts, dtype=object)),
        "prompt_hash": ("prompt", np.array(texts, dtype=object)),
    }
    dataset = xr.Dataset({"resid_post": (("prompt", "layer", "token", "d_model"), states.astype("float32"))}, coords)
    labels = QueryLabels(is_harmful, pairs, ["one"] * n, texts)
    scores = {("refusal_score", None): is_harmful + rng.normal(size=n), ("gate", "request_text"): rng.normal(size=n)}
    return Evidence(labels, np.array(pairs), np.array([name] * n, dtype=object), dataset, cosines, scores)


@pytest.fixture(scope="module")
def parts():
    return evidence(0), evidence(1), evidence(2, 2000)


def test_each_detector_is_fitted_where_the_classes_differ_and_reaches_the_analytic_auroc(parts):
    anchors, validation, applied = parts
    from probes import auroc

    found = {detector.name: detector for detector in best_layers(anchors, validation, (SSD, "linear_probe", "mcd"))}
    for detector in found.values():
        assert detector.columns["layer"] == PLANTED and len(detector.by_layer) == 3
        measured = auroc(applied.is_harmful, detector.score(applied), applied.groups)
        assert measured.ci_low < norm.cdf(DISTANCE / np.sqrt(2)) < measured.ci_high + 0.01


def test_a_threshold_from_validation_keeps_its_false_positive_rate_elsewhere(parts):
    anchors, validation, applied = parts
    (detector,) = best_layers(anchors, validation, ("linear_probe",))
    flagged = detector.flags(validation, "fpr_0.05")
    assert flagged[~validation.is_harmful].mean() <= 0.05
    rows = {
        (row["selection_rule"], row["metric"]): row
        for row in threshold_rows(detector, applied, detector.score(applied))
    }
    elsewhere = rows["fpr_0.05", "false_positive_rate"]
    assert 0.02 < elsewhere["value"] < 0.1 and elsewhere["n"] == 1000
    assert set(rows) == {
        (r, m) for r in ("fpr_0.01", "fpr_0.05", BORDER) for m in ("true_positive_rate", "false_positive_rate")
    }


def test_the_border_of_the_direction_is_half_way_between_the_classes(parts):
    anchors, validation, applied = parts
    (detector,) = best_layers(anchors, validation, (SSD,))
    scores = detector.score(anchors)
    means = [scores[anchors.is_harmful == label].mean() for label in (True, False)]
    assert detector.thresholds[BORDER] == pytest.approx(np.mean(means), abs=1e-4)
    right = (detector.score(applied) > detector.thresholds[BORDER]) == applied.is_harmful
    assert right.mean() == pytest.approx(norm.cdf(DISTANCE / 2), abs=0.04)


def test_the_window_of_layers_is_the_one_that_reads_like_refusal(parts):
    _, validation, _ = parts
    detector = best_window(validation)
    assert (detector.columns["layer"], detector.columns["last_layer"]) == (1, 2)
    by_hand = (validation.cosines[:, 1] + validation.cosines[:, 2]) / 2
    assert np.allclose(detector.score(validation), by_hand)


def test_pooled_sets_keep_each_set_as_a_cluster():
    both = pooled([evidence(0, 40, "a"), evidence(1, 40, "b")])
    assert len(both.is_harmful) == 80 and set(both.clusters) == {"a", "b"}
    assert both.scores["refusal_score", None].shape == (80,) and both.at(1).shape == (80, D)
    names = [detector.name for detector in fitted_on(both, both, 1)]
    assert names == [SSD, "linear_probe", "mcd", "kcd", "hidden_detect", "refusal_score", "gate"]


def test_validation_prefers_a_detector_that_detects_and_never_the_gate(parts):
    anchors, validation, _ = parts
    perfect = replace(validation, scores={("gate", "request_text"): validation.is_harmful + 0.0})
    fit = FitSet("a set", "text", tuple(fitted_on(anchors, perfect, 1)))
    choice = preferred([fit], [perfect], "fpr_0.05")
    gains = {each.name: each.flags(perfect, "fpr_0.05") for each in fit.detectors}
    best = max(
        (flags[perfect.is_harmful].mean() - flags[~perfect.is_harmful].mean(), name)
        for name, flags in gains.items()
        if name != "gate"
    )
    assert (choice.value, choice.detector.name) == (pytest.approx(best[0]), best[1])


def a_set(n_harmful, n_harmless, name="mine"):
    labels = [True] * n_harmful + [False] * n_harmless
    prompts = [replace(text_prompt(f"{i}"), query=Query(f"{i}", label)) for i, label in enumerate(labels)]
    return DetectionSet(PromptSet.of("plain", "text", prompts, name), tuple(prompts), tuple(prompts))


def test_sets_of_one_class_fit_nothing_and_say_so():
    with pytest.raises(ConfigError, match="mine, text: the anchors hold 3 harmful and 0 harmless prompts"):
        check_sets([a_set(3, 0)])
    with pytest.raises(ConfigError, match="no set with both classes"):
        check_sets([DetectionSet(a_set(3, 0).applied)])
    with pytest.raises(ConfigError, match="is there twice"):
        check_sets([a_set(2, 2), a_set(2, 2)])
    check_sets([a_set(2, 2), a_set(2, 2, "yours")])


def test_requests_that_another_set_is_fitted_on_are_named():
    mine, yours = a_set(2, 2), a_set(2, 2, "yours")
    assert [str(found) for found in leaks([mine])] == []
    (of_mine, _) = leaks([mine, yours])
    assert len(of_mine.rows) == 4 and "mine, text" in str(of_mine)


def test_a_detector_that_detects_all_refuses_all_or_gives_the_answers_of_the_open_guard():
    from studies.defences.answer_log import AnswerRecord
    from studies.judges import EXACT

    def record(answer):
        question = {name: "" for name in "dataset row setting modality expected category request named said".split()}
        question |= {name: "" for name in "prompt model weights defence kind".split()}
        dicts = {"about": {}, "settings": {}, "generation": {}}
        return replace(AnswerRecord.unanswered(**question, harmful=True, pair=None, **dicts), answer=answer)

    plain, always = [record("plain")] * 2, [record("changed")] * 2
    refusals = [refused(each, [EXACT]) for each in plain]
    answered = Answered(a_set(2, 0).applied, "prompt_text", plain, plain, always, refusals)
    filtered = answered.under(np.array([True, False]), REFUSES)
    assert filtered[0].verdicts[EXACT.name]["refused"] and filtered[1].answer == "plain"
    gated = answered.under(np.array([True, False]), GATES)
    assert [each.answer for each in gated] == ["changed", "plain"]
