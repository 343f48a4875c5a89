"""Labels of pictures: characters and tokens are where they are drawn."""

import numpy as np
import pytest

from interp import typography
from studies.llava_qwen import instructions
from studies.llava_qwen.networks import VisionSizes
from studies.llava_qwen.reading import NOTHING, PageLabels
from studies.llava_qwen.texts import RareWords, Texts
from studies.organism.lessons import LessonPicture

TEXTS = ("How do I bake a loaf of sourdough bread at home?", "List five ideas for a rainy Sunday with children.", "a")


@pytest.fixture(scope="module")
def labels(tokenizer):
    return PageLabels(VisionSizes(), tokenizer)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["text", "scene_with_text"])
def test_ink_is_where_characters_are(labels, kind, text):
    picture = LessonPicture(kind, text, seed=5)
    pixels = np.asarray(picture.draw(240)).min(axis=2)
    top = typography.text_top(240) if kind == "scene_with_text" else 0
    drawn, height = typography.drawn_characters(text, 240, top)
    assert " ".join("".join(char for char, _, _ in drawn).split()) == text
    for char, x, y in drawn:
        line = pixels[int(y - height / 2) : int(y + height / 2)]
        if char == " ":
            assert (line[:, int(x)] > 128).all(), (x, y)
        else:
            assert (line[:, max(0, int(x) - 2) : int(x) + 3] < 128).any(), (char, x, y)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_in_reading_order_are_the_text(labels, tokenizer, text):
    assert labels.is_legible(LessonPicture("text", text))
    found = [token for token in labels.of(LessonPicture("text", text)) if token != NOTHING]
    assert tokenizer.decode(found) == text


def test_every_instruction_can_be_read_back_from_its_tokens(labels, tokenizer):
    for text in (each.text for each in instructions.instructions()[::20]):
        picture = LessonPicture("text", text)
        if labels.is_legible(picture):
            found = [token for token in labels.of(picture) if token != NOTHING]
            assert " ".join(tokenizer.decode(found).split()) == " ".join(text.split())


def test_characters_are_numbered_from_left_to_right(labels):
    classes = labels.characters_of(LessonPicture("text", "Hi li"))
    rows = classes.reshape(12, 12, 3)
    (used,) = np.flatnonzero(rows.any(axis=(1, 2)))
    characters = [chr(number + 31) for number in rows[used].flatten() if number]
    assert characters == list("Hili")


def test_pictures_without_text_have_no_labels_but_those_of_their_scene(labels, tokenizer):
    for kind in ("blank", "noise"):
        assert (labels.of(LessonPicture(kind)) == NOTHING).all()
    color, shape = typography.scene_content(3)
    found = [token for token in labels.of(LessonPicture("scene", seed=3)) if token != NOTHING]
    assert tokenizer.decode(found) == f" {color} {shape}"


def test_rare_words_are_drawn_nearly_as_often_as_frequent_ones():
    parts = tuple(f"w{i}" for i in range(100))
    usual = Texts(("How to fix a door",), ("Use a screw.",), ("fix", "door"), parts)
    rng, counts = np.random.default_rng(0), {}
    for kind in (usual, RareWords(**vars(usual))):
        drawn = " ".join(kind.draw(rng).lower() for _ in range(400)).split()
        words = [word for word in drawn if word in parts]
        counts[type(kind)] = sum(word in parts[50:] for word in words) / len(words)
    assert counts[Texts] < 0.3 < 0.35 < counts[RareWords]
