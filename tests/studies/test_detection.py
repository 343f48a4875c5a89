"""The table of detectors on the built-in model, with a set of the user's own next to its queries."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

import figures
from interp import Guard, SafetyDirection
from studies import detection
from studies.defences.benchmark_sets import BenchmarkFile, BenchmarkOptions
from studies.experiment.config import Config, ConfigError
from studies.experiment.experiment import load_experiment
from studies.organism import language


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection")
    queries = [query for query in language.queries("train")[:120]]
    mine = pd.DataFrame({"text": [query.text for query in queries], "harmful": [query.harmful for query in queries]})
    mine.to_csv(folder / "mine.csv", index=False)
    mine[mine.harmful].to_csv(folder / "harmful.csv", index=False)
    files = BenchmarkOptions.of([BenchmarkFile(folder / "mine.csv"), BenchmarkFile(folder / "harmful.csv")])
    experiment = load_experiment(Config(scale="tiny", split="validation", out=str(folder / "out")))
    direction = SafetyDirection.fit(experiment.activations("anchors", "text"))
    guard = Guard(direction, (6,), gate="threshold", threshold=direction.midpoint(6), strength=2.0)
    with pytest.MonkeyPatch.context() as patch:
        # This scale has one pair per category.
        patch.setattr(detection, "LEAST_OF_CATEGORY", 1)
        return detection.run(experiment.config, experiment, guard, files)


def test_a_guard_that_reads_another_model_needs_it(tmp_path):
    experiment = load_experiment(Config(scale="tiny", split="validation", out=str(tmp_path)))
    alone = replace(experiment, scorer=experiment.vlm)
    guard = Guard(SafetyDirection(torch.eye(8, 192)[:, None], "given"), (6,), source="llm")
    with pytest.raises(ConfigError, match="reads states of the aligned LLM"):
        detection.run(alone.config, alone, guard)


def rows(table, **columns):
    for column, value in columns.items():
        table = table[table[column].isna()] if value is None else table[table[column] == value]
    return table


def test_every_detector_is_applied_to_every_set_wherever_it_was_fitted(found):
    cells = rows(found.table, metric="auroc", detector="mcd", fit_category=None, split="validation")
    cells = cells[cells.setting.notna()]
    fitted = set(zip(cells.fit_dataset, cells.fit_modality, strict=True))
    assert ("organism", "text") in fitted and ("organism", "typographic") in fitted and ("all", "all") in fitted
    assert len({dataset for dataset, _ in fitted}) == 3
    for _, own in cells.groupby(["fit_dataset", "fit_modality"]):
        assert {"text", "blank", "typographic"} <= set(own[own.dataset == "organism"].modality)


def test_a_set_of_one_class_is_applied_to_and_not_fitted_on(found):
    names = set(found.table.dataset) - {"organism", detection.ALL}
    assert len(names) == 2
    harmful = next(name for name in names if name not in set(found.table.fit_dataset))
    own = rows(found.table, dataset=harmful)
    assert set(own.metric) == {"true_positive_rate"} and (own.ci_low <= own.value).all()


def test_as_text_harmful_requests_are_detected_and_inside_a_picture_only_what_reads_it_detects_them(found):
    plain = rows(found.table, metric="auroc", dataset="organism", fit_category=None, split="validation")
    text = rows(plain, modality="text", setting="plain", fit_modality="text")
    assert (text[text.detector.isin(["mcd", "linear_probe", "ssd_coordinate"])].value > 0.9).all()
    inside = rows(plain, modality="typographic", setting="multimodal", detector="gate")
    by_reference = inside.set_index("reference").value
    assert by_reference["request_text"] > by_reference["prompt_text"] + 0.2


def test_categories_are_a_matrix(found):
    cells = rows(found.table, metric="auroc", detector="ssd_coordinate", modality="text")
    cells = cells[cells.fit_category.notna()]
    names = {category.name for category in language.CATEGORIES}
    single = cells[cells.fit_category != "others"]
    assert set(zip(single.fit_category, single.category, strict=True)) == set(product(names, names))
    assert set(cells[cells.fit_category == "others"].category) == names


def test_detectors_are_compared_with_the_guard_on_the_same_prompts(found):
    table = rows(found.defences, dataset="organism", setting="plain", modality="blank", judge="exact@1")
    assert {"unguarded", "guard", "guard_always", "detector_refuser", "detector_gate"} == set(table.defence)
    guard = rows(table, defence="guard", metric="asr").value.item()
    for _, own in rows(table, defence="detector_refuser").groupby(
        ["detector", "reference", "fit_dataset", "fit_modality"]
    ):
        by_metric = own.set_index("metric").value
        assert by_metric["asr_change"] == pytest.approx(by_metric["asr"] - guard)
        assert by_metric["asr_change_p"] <= by_metric["asr_change_p_holm"]


def test_the_claim_names_its_detector_and_decides(found):
    assert [verdict.claim.split(", ")[1] for verdict in found.verdicts][0].startswith("fitted on text")
    assert all("threshold fpr_0.05 of validation" in verdict.ours for verdict in found.verdicts)


def test_the_figures_draw_what_the_table_says(found):
    matrix = figures.detection_matrix(found.table)
    assert "applied in another" in figures.caption(matrix)
    drawn = figures.detection_auroc(found.table)
    shown = [np.asarray(line.get_xdata(), dtype=float) for axis in drawn.axes for line in axis.lines]
    values = rows(found.table, metric="auroc", modality="blank", setting="plain", detector="mcd", fit_modality="text")
    assert any(np.isclose(values.value.iloc[0], x).any() for x in shown)
