"""Pictures of any kind -> what image processors expect: RGB, upright, 8 bits a channel."""

import hashlib
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SMALLEST = 8
"""Pixels. Image processors take an array whose first side is 1 or 3 long for channels-first."""


class PictureError(ValueError):
    """A picture that can't be shown; says which, and why."""


UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, NotImplementedError, struct.error)
"""What Pillow's readers raise on damaged files, whatever the format."""


@dataclass(frozen=True)
class LazyPicture:
    """A picture that is drawn, or read, each time that it is looked at: a prompt costs no memory until it is run."""

    draw: Callable[..., Image.Image]
    args: tuple = ()


Picture = Image.Image | LazyPicture


def open_picture(picture: Picture) -> Image.Image:
    """The picture itself.

    Raises:
        PictureError: it can't be read.
    """
    return picture.draw(*picture.args) if isinstance(picture, LazyPicture) else picture


def read_picture(path: str | Path) -> Image.Image:
    """The picture in a file, its size known before anything of it is unpacked.

    Raises:
        PictureError: there is none, it is damaged, or it is larger than Pillow's own limit
            (`PIL.Image.MAX_IMAGE_PIXELS`), which a file of a few kilobytes can be.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of a picture above its limit, and raises above twice that.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                return picture
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(
            f"picture {str(path)!r} is too large: {error}; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except UNREADABLE as error:
        raise PictureError(f"picture {str(path)!r} can't be read: {error}") from error


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


def digest(picture: Picture) -> str:
    """Hash of what a model is shown of a picture, 16 hex digits.

    Raises:
        PictureError: it can't be read.
    """
    try:
        shown = to_rgb(open_picture(picture))
    except PictureError:
        raise
    except UNREADABLE as error:
        # Pillow opens a file without reading it; what is wrong with it shows here.
        raise PictureError(f"a picture given as an image can't be read: {error}") from error
    about = hashlib.blake2b(repr(shown.size).encode(), digest_size=8)
    about.update(shown.tobytes())
    return about.hexdigest()
