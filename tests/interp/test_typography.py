import csv
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published import BENCHMARKS

from interp import typography


def ink(picture) -> np.ndarray:
    """Return the bounding box of what is not white: top, bottom, left, right."""
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


def test_small_pictures_have_one_word_per_line():
    one_line, two_lines = (ink(typography.text_picture(text, 96)) for text in ("kill", "kill wasp"))
    assert two_lines[1] - one_line[1] == pytest.approx(16, abs=4)


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


@pytest.fixture(scope="module")
def published() -> list[tuple[str, Path]]:
    """FigStep's own pictures with their texts, where they are available; the project ships none."""
    folder = BENCHMARKS / "figstep"
    if not folder.is_dir():
        pytest.skip(f"no published pictures in {folder}; set VLM_GUARD_BENCHMARKS")
    with (folder / "question" / "SafeBench-Tiny.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    name = "images/SafeBench-Tiny/query_{dataset}_{category_id}_{task_id}_6.png"
    return [(row["instruction"], folder / name.format(**row)) for row in rows if (folder / name.format(**row)).exists()]


def full_stop(dark, line: int, column: int) -> tuple[int, float]:
    """Return the lowest row and the middle column of a full stop; cells are 48 x 75 from (20, 10)."""
    top, left = 60 + 75 * line, 20 + 48 * column
    rows, columns = dark[top : top + 19, left : left + 48].nonzero()
    return top + int(rows.max()), left + (columns.min() + columns.max()) / 2


def geometry(picture, text: str) -> dict:
    """Measure a FigStep page, theirs or ours; `text` ends with a full stop."""
    lines = textwrap.wrap(text, 15)
    dark, last = np.asarray(picture.convert("L")) < 128, len(lines) - 1
    stops = [full_stop(dark, last + item, 1) for item in (1, 2, 3)]
    column, middle = len(lines[-1]) - 1, full_stop(dark, last, len(lines[-1]) - 1)[1]
    page = dark[10:, 20:740].reshape(10, 75, 15, 48)[:, 14:64].mean((1, 3))
    return {
        "page": (picture.size, picture.mode),
        "pitch": (stops[1][0] - stops[0][0], stops[2][0] - stops[1][0]),
        "advance": (middle - stops[0][1]) / (column - 1),
        # A cell holds a letter where 3 % of it is dark: neighbours overhang by a pixel or two.
        "cells": ["".join("#" if share > 0.03 else " " for share in row).rstrip() for row in page],
        "baseline": stops[0][0],
        "stop": stops[0][1],
        "box": ink(picture),
        "dark": dark.mean(),
    }


def test_figsteps_page_has_the_measures_of_the_published_pictures(published):
    """Lines, breaks, numbering, pitch and advance match to the pixel; the rest as closely as another font allows."""
    for text, path in published:
        with Image.open(path) as opened:
            theirs = geometry(opened, text)
        ours = geometry(typography.figstep_picture(text), text)
        for exact in ("page", "pitch", "advance", "cells"):
            assert ours[exact] == theirs[exact], (text, exact)
        assert abs(ours["baseline"] - theirs["baseline"]) <= 1
        assert abs(ours["stop"] - theirs["stop"]) <= 1
        assert (abs(ours["box"] - theirs["box"]) <= (3, 1, 4, 7)).all(), (text, ours["box"], theirs["box"])
        assert ours["dark"] == pytest.approx(theirs["dark"], rel=0.06)


@pytest.mark.parametrize("text", ["Steps to fold a paper lantern.", "List of ways to water a garden at night quietly."])
def test_figsteps_page_has_the_published_geometry(text):
    """Measures of the published pictures, as numbers, for when these are not available."""
    measured = geometry(typography.figstep_picture(text), text)
    assert measured["page"] == ((760, 760), "RGB") and measured["pitch"] == (75, 75) and measured["advance"] == 48
    lines = [*textwrap.wrap(text, 15), "1.", "2.", "3."]
    cells = ["".join("# "[character == " "] for character in line) for line in lines]
    assert measured["cells"] == cells + [""] * (10 - len(lines))
    # In theirs a full stop ends in row 74 + 75 k and spans columns 18 to 29 of its cell; letters start at row 24 to 26.
    assert measured["baseline"] + 1 - 75 * (len(lines) - 3) == pytest.approx(74.5, abs=1)
    assert measured["stop"] == pytest.approx(20 + 48 + 23.5, abs=1)
    assert measured["box"][0] == pytest.approx(25, abs=4) and measured["box"][2] == pytest.approx(21, abs=4)


@pytest.mark.parametrize("n_words", [5, 6, 7, 8, 9, 12, 40, 140, 200])
def test_longer_text_on_figsteps_page_is_smaller_and_complete(n_words):
    """The published script lets such text run over the lower edge."""
    text = " ".join(f"lantern{i}" for i in range(n_words))
    lines, rows = typography._figstep_layout(text)
    assert " ".join(lines).split() == [*text.split(), "1.", "2.", "3."]
    assert len(lines) <= rows and (rows > 10) == (n_words > 7)
    picture = typography.figstep_picture(text)
    shrink = 760 / (10 + 75 * rows)
    top, bottom, left, right = ink(picture)
    assert picture.size == (760, 760) and top > 0 and left > 0
    assert bottom == pytest.approx((74 + 75 * (len(lines) - 1)) * shrink, abs=2)
    assert right <= (20 + 48 * max(map(len, lines))) * shrink < 760


def test_figsteps_page_breaks_long_words_and_rejects_illegible_text():
    assert typography._figstep_layout("x" * 20) == (["x" * 15, "x" * 5, "1.", "2.", "3."], 10)
    assert typography._figstep_layout("") == (["", "1.", "2.", "3."], 10)
    with pytest.raises(ValueError, match="a text of 3000 characters does not fit FigStep's page: expected at most 40"):
        typography.figstep_picture("lantern or " * 272 + "lantern.")


def test_the_strip_of_mm_safetybench_grows_with_its_lines():
    short, long = (typography.mm_safety_picture(text) for text in ("paper lantern", "a very long paper lantern " * 3))
    assert short.size == (1024, 180) and long.size[0] == 1024 and long.size[1] % 90 == 0 and long.size[1] > 270
    for strip in (short, long):
        top, bottom, left, right = ink(strip)
        assert top >= 45 and bottom < strip.height - 1 and left >= 0 and right < 1023
    assert typography.mm_safety_picture("paper lantern", 512).size == (512, 90)


@pytest.mark.parametrize("phrase", ["W" * 40, "paper " + "W" * 40, "a very long paper lantern " * 5, ""])
def test_no_word_of_a_strip_is_cut_off(phrase):
    font = typography._font(90)
    lines = typography._mm_safety_lines(phrase, lambda line: font.getlength(line) < 1024)
    assert "".join(lines).replace(" ", "") == phrase.replace(" ", "")
    assert all(font.getlength(line) < 1024 for line in lines)
    assert all(line.startswith(" ") for line in lines[1:])


def test_the_scene_of_mm_safetybench_is_a_square_above_the_strip():
    picture, strip = (
        typography.mm_safety_scene("paper lantern", 3, 256),
        typography.mm_safety_picture("paper lantern", 256),
    )
    pixels = np.asarray(picture)
    assert picture.size == (256, 256 + strip.height)
    assert np.array_equal(pixels[:256], np.asarray(typography.scene_picture(256, 3)))
    assert np.array_equal(pixels[256:], np.asarray(strip))
