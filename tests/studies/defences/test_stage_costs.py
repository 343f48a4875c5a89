"""Stages of a guarded answer: what is timed, and that the parts are those of the whole."""

import time
from dataclasses import replace

import numpy as np
import pytest

from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.inputs import to_prompts
from interp.stage_times import STAGES, stage, stage_times
from interp.trace import trace
from studies.defences.defence import unguarded
from studies.defences.guarded import guarded
from studies.defences.prompt_sets import PromptSet
from studies.defences.stage_costs import ANSWER, QUANTILES, WHOLE, seconds_by_stage, stage_rows
from studies.generation.cached_model import CachedModel
from studies.generation.generate import Generation


@pytest.fixture
def guard(tiny_vlm, queries):
    direction = SafetyDirection.fit(trace(tiny_vlm, to_prompts(queries, "text", 96)), "mean_diff")
    return Guard(direction, (1,), gate="sign")


@pytest.fixture
def model(tiny_vlm):
    return CachedModel(tiny_vlm, Generation(max_new_tokens=2))


def test_stages_are_timed_only_inside_the_block():
    with stage("gate"):
        pass
    with stage_times() as times:
        for _ in range(2):
            with stage("change"):
                time.sleep(0.02)
    with stage("change"):
        time.sleep(0.02)
    assert set(times) == {"change"} and 0.04 <= times["change"] < 0.06


def stages_that_run(model, guard, reference, queries, modality="typographic"):
    prompts = to_prompts(queries, modality, 96)[:2]
    by_stage = seconds_by_stage(model, guarded(guard, reference), prompts)
    assert all(len(seconds) == 2 for seconds in by_stage.values())
    for parts in zip(*(by_stage[name] for name in (*STAGES, ANSWER)), by_stage[WHOLE], strict=True):
        assert sum(parts[:-1]) == pytest.approx(parts[-1]) and min(parts) >= 0
    return {name for name in STAGES if all(seconds > 0 for seconds in by_stage[name])}


def test_each_guard_has_the_stages_that_it_needs(model, guard, queries):
    assert stages_that_run(model, guard, "prompt_text", queries) == {"reference", "gate", "change"}
    assert stages_that_run(model, guard, "transcription", queries) == set(STAGES)
    always = replace(guard, gate="always", rule="steer")
    assert stages_that_run(model, always, "prompt_text", queries) == {"change"}
    frozen = replace(guard, gate="always", frozen_shift=True)
    assert stages_that_run(model, frozen, "prompt_text", queries) == {"reference", "change"}


def test_a_table_has_the_median_and_the_95th_percentile_of_every_stage(model, guard, queries):
    prompt_set = PromptSet.of("plain", "blank", to_prompts(queries, "blank", 96), "mine")
    defences = [unguarded(), guarded(guard, "prompt_text"), guarded(guard, "oracle")]
    rows = list(stage_rows(model, prompt_set, defences, 3))
    assert len(rows) == 2 * len(QUANTILES) * (len(STAGES) + 2)
    assert {(row["setting"], row["n"]) for row in rows} == {("cost", 3)}
    by_key = {(row["defence"], row["category"], row["metric"]): row for row in rows}
    for (_, name, metric), row in by_key.items():
        assert row["ci_low"] <= row["value"] <= row["ci_high"], (name, metric)
    assert by_key["unguarded", "change", "seconds_p95"]["value"] == 0 < by_key["guard", WHOLE, "seconds_p50"]["value"]


def test_percentiles_are_those_of_numpy(model, guard, queries, monkeypatch):
    values = np.random.default_rng(0).exponential(size=200)
    monkeypatch.setattr("studies.defences.stage_costs.seconds_by_stage", lambda *args: {WHOLE: values.tolist()})
    prompt_set = PromptSet.of("plain", "blank", to_prompts(queries, "blank", 96), "mine")
    median, high = stage_rows(model, prompt_set, [unguarded()], 3)
    assert median["value"] == pytest.approx(np.median(values)) and high["value"] == pytest.approx(
        np.quantile(values, 0.95)
    )
    # Both percentiles of the exponential distribution lie inside.
    assert median["ci_low"] < np.log(2) < median["ci_high"] and high["ci_low"] < np.log(20) < high["ci_high"]
