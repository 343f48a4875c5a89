"""Pictures of any kind -> what image processors expect: RGB, upright, 8 bits per channel."""

import hashlib
import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "LazyPicture",
    "Picture",
    "PictureError",
    "open_picture",
    "picture_from_bytes",
    "read_picture",
]

SMALLEST = 8
"""Shortest side in pixels. Image processors would take an array whose first side is 1 or 3 for channels-first."""


class PictureError(ValueError):
    """Raised for a picture that can't be read; the message says which and why."""


UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, NotImplementedError, struct.error)
"""Errors that Pillow's readers raise on damaged files of any format."""


@dataclass(frozen=True, slots=True)
class LazyPicture:
    """A picture that is drawn or read each time it is opened, so that a prompt costs no memory until it runs."""

    draw: Callable[..., Image.Image]
    args: tuple = ()


Picture = Image.Image | LazyPicture


def open_picture(picture: Picture) -> Image.Image:
    """Return the picture itself, drawn or read if it is lazy.

    Raises:
        PictureError: the picture can't be read.
    """
    return picture.draw(*picture.args) if isinstance(picture, LazyPicture) else picture


def read_picture(path: str | Path) -> Image.Image:
    """Read a picture from a file, with its size checked before it is decoded.

    Raises:
        PictureError: the file does not exist, is damaged, or is larger than Pillow's limit
            (`PIL.Image.MAX_IMAGE_PIXELS`), which a file of a few kilobytes can exceed.
    """
    return _read(path, str(path))


def picture_from_bytes(content: bytes | None, name: str) -> Image.Image:
    """Read a picture from the contents of a file; the name is used in errors.

    Raises:
        PictureError: see `read_picture`.
    """
    if not content:
        raise PictureError(f"picture {name!r} is empty; expected the bytes of a picture")
    return _read(io.BytesIO(content), name)


def _read(source: str | Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns above its limit, and raises above twice the limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as picture:
                picture.load()
                return picture
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(
            f"picture {name!r} is too large: {error}; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except UNREADABLE as error:
        # Pillow's error names the source, which for bytes is an address in memory.
        reason = "not a picture" if isinstance(error, UnidentifiedImageError) else error
        raise PictureError(f"picture {name!r} can't be read: {reason}") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return the picture upright and in RGB, with transparency over white and deep pixels scaled to 8 bits.

    A picture with a side shorter than `SMALLEST` is enlarged by repeating pixels.
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
    """Scale integers from 16 bits and floats from 0-1, unless their values say otherwise.

    Pillow would clip them at 255 and turn a 16-bit picture white.
    """
    pixels = np.asarray(picture).astype(np.float64)
    largest = pixels.max(initial=0)
    if picture.mode == "F":
        scale = 1.0 if largest <= 1 else 255.0
    else:
        scale = 65535.0 if picture.mode.startswith("I;16") or largest > 255 else 255.0
    return Image.fromarray(np.clip(pixels / scale * 255, 0, 255).round().astype(np.uint8))


def digest(picture: Picture) -> str:
    """Return a hash of the picture as a model sees it, in 16 hex digits.

    Raises:
        PictureError: the picture can't be read.
    """
    try:
        rgb = to_rgb(open_picture(picture))
    except PictureError:
        raise
    except UNREADABLE as error:
        # Pillow opens a file without decoding it, so damage shows up only here.
        raise PictureError(f"a picture given as an image can't be read: {error}") from error
    state = hashlib.blake2b(repr(rgb.size).encode(), digest_size=8)
    state.update(rgb.tobytes())
    return state.hexdigest()
