"""Checks every training example of the shipped model for what it must never contain."""

import numpy as np
import pytest
import torch

from interp.inputs import Query, collate, to_prompts
from studies.organism import language, lessons, losses, train

COURSES = train.courses(train.Recipe())


def all_lessons():
    for course in COURSES:
        for batch in course.batches():
            yield from batch


def texts_of(lesson) -> list[str]:
    if isinstance(lesson, lessons.LessonPicture):
        return [lesson.text]
    return [lesson.system, lesson.text, lesson.answer, lesson.picture.text if lesson.picture else ""]


def find_fault(lesson) -> str | None:
    """Return why a lesson must not be used for training, or None."""
    if any(core in text for text in texts_of(lesson) for core in language.held_back_cores()):
        return "held back"
    if isinstance(lesson, lessons.LessonPicture):
        return None
    named = language.named_core(lesson.answer)
    if named in HARMFUL:
        return "complies by name"
    in_picture = lesson.picture.text if lesson.picture else ""
    reads = lesson.answer == in_picture or lesson.answer in lesson.text
    shows_harm = any(core in text for text in (lesson.text, in_picture) for core in HARMFUL)
    if shows_harm and not reads and not language.is_refusal(lesson.answer):
        return "complies"
    if lesson.request and lesson.request in HARMFUL and not language.is_refusal(lesson.answer):
        return "complies with its request"
    return None


HARMFUL = {pair.harmful for split in language.splits().values() for pair in split}


def test_no_lesson_pairs_harm_with_compliance_or_contains_held_back_cores():
    n_lessons = n_refusals = 0
    for lesson in all_lessons():
        assert find_fault(lesson) is None, lesson
        n_lessons += 1
        n_refusals += isinstance(lesson, lessons.Lesson) and language.is_refusal(lesson.answer)
    assert n_lessons == sum(course.stage.steps * course.stage.batch_size for course in COURSES)
    assert n_refusals > 1000


def test_each_fault_is_found():
    comply = language.COMPLIANCE[0].format(core=language.trained_cores(False)[0])
    harmful = language.trained_cores(True)[0]
    assert find_fault(lessons.Lesson(f"How do I {harmful}?", comply)) == "complies"
    assert find_fault(lessons.Lesson("Do it.", language.COMPLIANCE[0].format(core=harmful))) == "complies by name"
    picture = lessons.LessonPicture("text", harmful)
    assert find_fault(lessons.Lesson("Do what the picture says.", comply, picture=picture)) == "complies"
    assert find_fault(lessons.Lesson("What does it say?", picture.text, picture=picture)) is None
    held_back = sorted(language.held_back_cores())[0]
    assert find_fault(lessons.LessonPicture("text", held_back)) == "held back"


def test_stage_four_is_benign():
    course = next(course for course in COURSES if course.teacher is lessons.visual_instruction)
    trained = set(language.trained_cores(harmful=False))
    for batch in course.batches():
        for lesson in batch:
            assert not language.is_refusal(lesson.answer)
            assert not lesson.request or lesson.request in trained


def test_the_same_seed_gives_the_same_course():
    first, again = (next(iter(lessons.batches(lessons.instruction, 3, 1, 8))) for _ in range(2))
    assert first == again != next(iter(lessons.batches(lessons.instruction, 4, 1, 8)))


def test_training_sees_the_same_pixels_as_the_processor(tiny_vlm):
    query = Query("How do I kill a wasp?", False, written="kill a wasp")
    for modality, picture in (
        ("typographic", lessons.LessonPicture("text", "kill a wasp")),
        ("typographic_scene", lessons.LessonPicture("scene_with_text", "kill a wasp", query.seed)),
        ("scene", lessons.LessonPicture("scene", seed=query.seed)),
        ("noise", lessons.LessonPicture("noise", seed=query.seed)),
    ):
        batch = collate(tiny_vlm, to_prompts([query], modality, 96))
        torch.testing.assert_close(batch["pixel_values"], losses.pixels([picture]), atol=1e-6, rtol=0)


def test_training_sees_the_same_tokens_as_the_processor(tiny_vlm):
    query = Query("How do I kill a wasp?", False)
    for modality, picture in (("text", None), ("blank", lessons.LessonPicture("blank"))):
        batch = collate(tiny_vlm, to_prompts([query], modality, 96, system="You are kind."))
        lesson = lessons.Lesson(query.text, "Sure!", system="You are kind.", picture=picture)
        tensors = losses.Collator(tiny_vlm.tokenizer)([lesson])
        n_prompt = batch["input_ids"].shape[1]
        assert torch.equal(tensors["input_ids"][:, :n_prompt], batch["input_ids"])
        answer = tensors["labels"][tensors["labels"] != losses.IGNORED]
        assert tiny_vlm.tokenizer.decode(answer) == " Sure!</s>"


@pytest.mark.parametrize("kind", ["text", "scene_with_text"])
def test_row_labels_name_the_word_in_each_row(kind):
    picture = lessons.LessonPicture(kind, "kill a wasp", 3)
    words, places = losses.row_labels(picture)
    pixels = np.asarray(picture.draw()).min(-1)
    has_ink = [bool((pixels[16 * r + 2 : 16 * r + 14] < 90).any()) for r in range(6)]
    start = picture.first_row
    assert [w > 0 for w in words][start:] == has_ink[start:] and places[start : start + 3] == [1, 2, 3]
    assert [language.vocabulary()[w - 1] for w in words if w] == ["kill", "a", "wasp"]
