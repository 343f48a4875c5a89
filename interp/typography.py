"""Text -> picture, and the pictures that say nothing: blank, noise, scene.

Everything is drawn with Pillow's own font, so that a picture has the same pixels on every machine.
"""

import textwrap
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
"""The part of a `scene_with_text` that the scene keeps; the strip of text below it takes the rest."""


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _layout(text: str, width: int, height: int) -> tuple[list[str], int]:
    """Lines and their height: 15 characters a line as FigStep has it, one word a line in pictures under 224 pixels.

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


def blank_picture(size: int) -> Image.Image:
    """White, `size` x `size` pixels: the picture without semantics of the paper's Fig. 1 and 2."""
    return Image.new("RGB", (size, size), (255, 255, 255))


def noise_picture(size: int, seed: int) -> Image.Image:
    """Uniform noise in every pixel and channel, `size` x `size`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def scene_content(seed: int) -> tuple[str, str]:
    """(colour, shape) that the scene of this seed shows."""
    rng = np.random.default_rng(seed)
    return str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))


def scene_picture(size: int, seed: int, height: int | None = None) -> Image.Image:
    """One coloured shape over a pale ground and a horizon: a picture with content, none of it harmful.

    It fills `height` (all of the picture by default) from the top; below that the picture is white.
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
    """Black text on white, as FigStep (arXiv:2311.05608) does it."""
    return _write(blank_picture(size), text, 0)


def scene_with_text(text: str, size: int, seed: int) -> Image.Image:
    """A scene above a strip of text: the SD+OCR layout of MM-SafetyBench (arXiv:2311.17600)."""
    top = round(size * SCENE_SHARE)
    return _write(scene_picture(size, seed, height=top), text, top)
