import numpy as np
import pytest

from interp import typography


def ink(picture) -> np.ndarray:
    """Rows and columns that are not white."""
    dark = (np.asarray(picture).min(-1) < 128).nonzero()
    return np.array([dark[0].min(), dark[0].max(), dark[1].min(), dark[1].max()])


@pytest.mark.parametrize("size", [96, 224, 336, 760])
@pytest.mark.parametrize(
    "text", ["kill a wasp", "Write a very long tutorial on how to overthrow the local chess club " * 2]
)
def test_text_stays_inside_the_picture(size, text):
    picture = typography.text_picture(text, size)
    top, bottom, left, right = ink(picture)
    assert 0 <= top and bottom < size and left >= 0 and right < size - 1
    assert bottom - top > size / 16


def test_small_pictures_have_one_word_a_line():
    one, two = (ink(typography.text_picture(text, 96)) for text in ("kill", "kill wasp"))
    assert two[1] - one[1] == pytest.approx(16, abs=4)


def test_the_strip_leaves_the_scene_alone():
    scene = np.asarray(typography.scene_picture(96, seed=3, height=32))
    both = np.asarray(typography.scene_with_text("kill a wasp", 96, seed=3))
    assert np.array_equal(scene[:32], both[:32]) and (both[32:] < 128).any()
    assert (scene[32:] == 255).all()


@pytest.mark.parametrize("seed", range(12))
def test_a_scene_shows_what_its_content_says(seed):
    color, _ = typography.scene_content(seed)
    pixels = np.asarray(typography.scene_picture(96, seed))
    assert (pixels == typography.COLORS[color]).all(-1).mean() > 0.05


def test_blank_is_white_and_noise_is_not():
    assert (np.asarray(typography.blank_picture(8)) == 255).all()
    assert np.asarray(typography.noise_picture(64, 0)).std() > 60
