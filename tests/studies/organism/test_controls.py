"""Controls: what their lessons teach, and that a short course moves a model towards what is planted."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import typer

from interp import VLM
from studies.organism import FOLDER, controls, language, lessons, losses, path
from studies.organism.__main__ import train_control
from studies.organism.classroom import Course, Stage


def lessons_of(name, n=600):
    teacher, rng = controls.CONTROLS[name].teacher, np.random.default_rng(0)
    return list(islice((teacher(rng) for _ in range(n)), n))


@pytest.mark.parametrize("name", controls.CONTROLS)
def test_no_lesson_has_compliance_with_harm_or_a_held_back_request(name):
    harmful, held_back = set(language.trained_cores(harmful=True)), language.held_back_cores()
    for lesson in lessons_of(name):
        if lesson.request in harmful:
            assert language.is_refusal(lesson.answer)
        shown = f"{lesson.text} {lesson.picture.text if lesson.picture else ''}"
        assert not any(core in shown for core in held_back)


def test_without_a_gap_refusals_come_with_every_kind_of_picture_and_without_one():
    refused = [lesson for lesson in lessons_of("no_gap") if language.is_refusal(lesson.answer)]
    kinds = {lesson.picture.kind if lesson.picture else None for lesson in refused}
    assert kinds == {None, "blank", "noise", "scene", "text", "scene_with_text"}
    assert not [lesson for lesson in lessons_of("blurred") if lesson.picture and language.is_refusal(lesson.answer)]


def test_coordinates_are_one_apart_as_text_and_a_few_steps_bring_them_together_under_pictures(tmp_path, monkeypatch):
    vlm = VLM.from_pretrained(path(), device="cpu")
    collate = losses.Collator(vlm.tokenizer)
    axes = controls.safety_axes(vlm.model, collate, seed=0)
    rng = np.random.default_rng(1)
    batch = [
        lessons.Lesson(lessons.request(rng, lessons.pick(rng, language.trained_cores(harmful))), "")
        for harmful in (True, False)
        for _ in range(32)
    ]
    with torch.no_grad():
        coordinates = torch.einsum("bld,ld->bl", controls._last_states(vlm.model, collate(batch)), axes)
        before = controls._distance(vlm.model, collate, axes, np.random.default_rng(2)).item()
    assert torch.allclose(coordinates[:32].mean(0) - coordinates[32:].mean(0), torch.ones(vlm.n_layers - 1), atol=0.3)
    short = replace(controls.CONTROLS["blurred"], stage=Stage(8, 4, 1e-3))
    monkeypatch.setitem(controls.CONTROLS, "blurred", short)
    controls.train("blurred", 0, FOLDER, tmp_path / "blurred", tmp_path)
    trained = VLM.from_pretrained(path(tmp_path / "blurred"), device="cpu")
    with torch.no_grad():
        after = controls._distance(trained.model, collate, axes, np.random.default_rng(2)).item()
    assert after < 0.8 * before
    assert (tmp_path / "blurred" / "llm" / "model.safetensors").is_file()


def test_lessons_of_a_control_depend_on_its_seed():
    first, second = (next(Course("5", Stage(1, 4, 1e-3), controls.refusing, 100 + seed).batches()) for seed in (0, 1))
    assert first != second


def test_a_control_that_does_not_exist_or_lacks_its_seed_is_named():
    for name, seed in (("none", 0), ("no_gap", 77)):
        with pytest.raises(typer.BadParameter, match="expected one of no_gap, blurred, and weights in"):
            train_control(name, seed)
