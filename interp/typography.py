"""Pictures of text, and pictures without text: blank, noise and scene.

Text is drawn with fonts that Pillow and Matplotlib ship, so that a picture has the same pixels on every machine.
"""

import textwrap
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from interp.pictures import PictureError

__all__ = [
    "SCENE_SHARE",
    "blank_picture",
    "drawn_characters",
    "figstep_picture",
    "mm_safety_picture",
    "mm_safety_scene",
    "noise_picture",
    "scene_content",
    "scene_picture",
    "scene_with_text",
    "text_picture",
    "text_top",
]

COLORS = {
    "red": (215, 48, 39),
    "green": (26, 152, 80),
    "blue": (49, 84, 190),
    "yellow": (250, 215, 40),
    "purple": (129, 60, 160),
    "orange": (245, 130, 30),
}
SHAPES = ("circle", "square", "triangle")
SCENE_SHARE = 1 / 3
"""Share of the height of a `scene_with_text` that the scene keeps; the strip of text takes the rest."""


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _layout(text: str, width: int, height: int) -> tuple[list[str], int]:
    """Return lines and their height: 15 characters per line as in FigStep, or one word in pictures under 224 pixels.

    Text that does not fit is set smaller and in longer lines until it does.
    """
    row, columns = max(16, width // 8), 15 if width >= 224 else 1
    while True:
        lines = textwrap.wrap(text, columns, break_long_words=False) or [""]
        widest = max(_font(_font_size(row)).getlength(line) for line in lines)
        if row <= 5 or (len(lines) * row <= height and widest <= width):
            return lines, row
        row, columns = row - max(1, row // 10), columns + max(2, columns // 5)


def _font_size(row: int) -> int:
    return round(row * 0.8)


def _write(picture: Image.Image, text: str, top: int) -> Image.Image:
    draw = ImageDraw.Draw(picture)
    lines, row = _layout(text, picture.width, picture.height - top)
    for i, line in enumerate(lines):
        draw.text((1, top + i * row), line, fill=(0, 0, 0), font=_font(_font_size(row)))
    return picture


def blank_picture(size: int, colour: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Return a square of `size` pixels in one colour: a picture without semantics, as the paper is described as using.

    Args:
        size: side in pixels.
        colour: red, green and blue; white by default. Other publications take grey, 128 each.
    """
    return Image.new("RGB", (size, size), colour)


def noise_picture(size: int, seed: int) -> Image.Image:
    """Return a square of `size` pixels with uniform noise in every pixel and channel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def scene_content(seed: int) -> tuple[str, str]:
    """Return the (colour, shape) shown in the scene of this seed."""
    rng = np.random.default_rng(seed)
    return str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))


def scene_picture(size: int, seed: int, height: int | None = None) -> Image.Image:
    """Draw one coloured shape over a pale ground and a horizon: a picture with harmless content.

    The scene fills `height` pixels (by default the whole picture) from the top; below that the picture is white.
    """
    height = height or size
    color, shape = scene_content(seed)
    rng = np.random.default_rng([seed, 1])
    picture = blank_picture(size)
    draw = ImageDraw.Draw(picture)
    horizon = int(height * rng.uniform(0.5, 0.7))
    sky, ground = (rng.integers(190, 240, 3) for _ in range(2))
    draw.rectangle((0, 0, size, horizon), fill=tuple(map(int, sky)))
    draw.rectangle((0, horizon, size, height - 1), fill=tuple(map(int, ground)))
    extent = height * rng.uniform(0.5, 0.8)
    left, top = rng.uniform(0, size - extent), rng.uniform(0, height - extent)
    box = (left, top, left + extent, top + extent)
    if shape == "circle":
        draw.ellipse(box, fill=COLORS[color])
    elif shape == "square":
        draw.rectangle(box, fill=COLORS[color])
    else:
        corners = [(left, top + extent), (left + extent, top + extent), (left + extent / 2, top)]
        draw.polygon(corners, fill=COLORS[color])
    return picture


def text_picture(text: str, size: int) -> Image.Image:
    """Draw black text on white, in the style of FigStep (arXiv:2311.05608)."""
    return _write(blank_picture(size), text, 0)


def scene_with_text(text: str, size: int, seed: int) -> Image.Image:
    """Draw a scene above a strip of text: the SD+OCR layout of MM-SafetyBench (arXiv:2311.17600)."""
    top = text_top(size)
    return _write(scene_picture(size, seed, height=top), text, top)


def text_top(size: int) -> int:
    """Return the row of pixels in which the text of a `scene_with_text` begins."""
    return round(size * SCENE_SHARE)


def drawn_characters(text: str, size: int, top: int = 0) -> tuple[list[tuple[str, float, float]], int]:
    """Return where a text is drawn.

    Args:
        text: drawn by `text_picture`, or by `scene_with_text` with `top` of `text_top`.
        size: of the picture, in pixels.
        top: row of pixels in which the text begins.

    Returns:
        Each character with the pixel coordinates x and y of its centre, in reading order; a line break at a space is a
        space after the end of its line. And the height of a line.
    """
    lines, row = _layout(text, size, size - top)
    font = _font(_font_size(row))
    drawn, rest = [], text
    for i, line in enumerate(lines):
        # Lines break after hyphens too, where nothing was left out.
        rest = rest.lstrip()[len(line) :]
        edges = [1 + font.getlength(line[:j]) for j in range(len(line) + 1)]
        y = top + (i + 0.5) * row
        drawn += [(char, (left + right) / 2, y) for char, left, right in zip(line, edges, edges[1:], strict=False)]
        drawn += [(" ", edges[-1], y)] if rest[:1].isspace() and i + 1 < len(lines) else []
    return drawn, row


# The page of FigStep, from its script (github:ThuCCSLab/FigStep, `src/generate_prompts.py`, MIT: 760 x 760, text from
# (20, 10), 80 px, 11 between lines) and measured on its pictures. Text above the empty items is wrapped at 15 columns.
FIGSTEP_COLUMNS, FIGSTEP_ROWS = 15, 10
FIGSTEP_LEFT, FIGSTEP_CELL = 20, 48
FIGSTEP_BASELINE, FIGSTEP_PITCH = 74, 75
FIGSTEP_SIZE = 760
FIGSTEP_ITEMS = ("1.", "2.", "3.")
MOST_ROWS = 40
"""Most lines on a FigStep page; small letters are then 9 pixels high, and about 2,200 characters fit."""
FLATTEN = 9 / 11
"""Height of FreeMonoBold, FigStep's font, relative to the equally wide DejaVu Sans Mono Bold (36 px to 44 for an x)."""


@cache
def _mono_font() -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans Mono Bold from Matplotlib, which ships the same file everywhere."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSansMono-Bold.ttf", 80)


@cache
def _mono_cell(character: str) -> Image.Image:
    """Draw a character in FigStep's proportions, baseline at row 72, on a mask wide enough for overhang."""
    ink = Image.new("L", (FIGSTEP_CELL + 16, 132))
    ImageDraw.Draw(ink).text((8, 88), character, fill=255, font=_mono_font(), anchor="ls")
    return ink.resize((ink.width, round(ink.height * FLATTEN)), Image.Resampling.LANCZOS)


def _figstep_layout(text: str) -> tuple[list[str], int]:
    """Return the lines, ending with the three empty items, and the number of lines that the page has room for.

    Text of more than 7 lines of 15 characters is set on a larger page of the same proportions, which is then scaled
    down. The published script lets it run over the lower edge (14 of its 500 pictures, all without item 3).

    Raises:
        PictureError: the text would need more than `MOST_ROWS` lines.
    """
    for rows in range(FIGSTEP_ROWS, MOST_ROWS + 1):
        lines = [*(textwrap.wrap(text, rows * FIGSTEP_COLUMNS // FIGSTEP_ROWS) or [""]), *FIGSTEP_ITEMS]
        if len(lines) <= rows:
            return lines, rows
    raise PictureError(
        f"a text of {len(text)} characters does not fit FigStep's page: expected at most {MOST_ROWS} lines of "
        f"{MOST_ROWS * FIGSTEP_COLUMNS // FIGSTEP_ROWS} characters, items included; shorten it"
    )


def figstep_picture(text: str) -> Image.Image:
    """Draw `text` above three empty numbered items in the published layout of FigStep (arXiv:2311.05608), 760 x 760.

    Line pitch, left edge, baselines, cells, line breaks and numbering are the published ones; the font differs.

    Raises:
        PictureError: the text is too long to be legible on a page of that size.
    """
    lines, rows = _figstep_layout(text)
    page = blank_picture(FIGSTEP_SIZE + (rows - FIGSTEP_ROWS) * FIGSTEP_PITCH)
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            corner = (FIGSTEP_LEFT + column * FIGSTEP_CELL - 8, FIGSTEP_BASELINE + row * FIGSTEP_PITCH - 72)
            page.paste((0, 0, 0), corner, _mono_cell(character))
    return page if rows == FIGSTEP_ROWS else page.resize((FIGSTEP_SIZE, FIGSTEP_SIZE), Image.Resampling.LANCZOS)


def _mm_safety_lines(phrase: str, fits: Callable[[str], bool]) -> list[str]:
    """Fill lines with words; every line but the first begins with a space, as published."""
    words = phrase.split()
    lines = words[:1] or [""]
    for word in words[1:]:
        if fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
        else:
            lines.append(f" {word}")
    return [part for line in lines for part in _break_word(line, fits)]


def _break_word(line: str, fits: Callable[[str], bool]) -> list[str]:
    """Break a word that is wider than the picture; the published layout lets it run over the edge."""
    if fits(line):
        return [line]
    n = max(n for n in range(1, len(line)) if fits(line[:n]))
    return [line[:n], *_break_word(" " + line[n:], fits)]


def mm_safety_picture(phrase: str, width: int = 1024) -> Image.Image:
    """Draw MM-SafetyBench's TYPO (arXiv:2311.17600): a strip one line higher than its text, in 90 px at width 1,024.

    Letters are in Pillow's default font instead of Arial. Sizes are those of OpenRT's `query_relevant` attack, which
    follows the authors' script; the published pictures were not available for measurement.
    """
    size = round(90 * width / 1024)
    lines = _mm_safety_lines(phrase, lambda line: _font(size).getlength(line) < width)
    strip = Image.new("RGB", (width, size * (len(lines) + 1)), (255, 255, 255))
    draw = ImageDraw.Draw(strip)
    for i, line in enumerate(lines):
        draw.text((0, size // 2 + i * size), line, fill=(0, 0, 0), font=_font(size))
    return strip


def mm_safety_scene(phrase: str, seed: int, width: int = 1024) -> Image.Image:
    """Draw MM-SafetyBench's SD_TYPO: a square above the strip; theirs is from Stable Diffusion, ours a drawn scene."""
    strip = mm_safety_picture(phrase, width)
    picture = Image.new("RGB", (width, width + strip.height))
    picture.paste(scene_picture(width, seed), (0, 0))
    picture.paste(strip, (0, width))
    return picture
