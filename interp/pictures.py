"""Pictures of any kind -> what image processors expect: RGB, upright, 8 bits a channel."""

import numpy as np
from PIL import Image, ImageOps

SMALLEST = 8
"""Pixels. Image processors take an array whose first side is 1 or 3 long for channels-first."""


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture upright, in RGB, transparent parts over white, deep ones scaled to 8 bits.

    A side shorter than `SMALLEST` is enlarged to it, each pixel repeated.
    """
    if picture.mode == "RGB" and not picture.getexif() and min(picture.size) >= SMALLEST:
        return picture
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        picture = _to_eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, picture)
    picture = picture.convert("RGB")
    if min(picture.size) < SMALLEST:
        factor = -(-SMALLEST // min(picture.size))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Integers as 16 bits deep, floats as 0 to 1, unless their values say otherwise.

    Pillow would cut them off at 255: a 16-bit picture came out white.
    """
    pixels = np.asarray(picture).astype(np.float64)
    largest = pixels.max(initial=0)
    if picture.mode == "F":
        scale = 1.0 if largest <= 1 else 255.0
    else:
        scale = 65535.0 if picture.mode.startswith("I;16") or largest > 255 else 255.0
    return Image.fromarray(np.clip(pixels / scale * 255, 0, 255).round().astype(np.uint8))
