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

LONGEST = 100
"""Largest ratio of sides. Image processors resize the shorter one, so a file of a kilobyte could become gigabytes."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO", "PCX", "HEIF")
"""Pictures made of pixels. Pillow reads others too, some by running other programs (EPS) or from other files."""


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
        PictureError: there is no such file, or it is no regular one; it is damaged or of another format than `FORMATS`;
            it is larger than Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`), which a file of a few kilobytes can exceed,
            or one side is more than `LONGEST` times the other.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # A pipe would be waited for.
        raise PictureError(f"picture {str(path)!r} is not a file; expected one, not a folder, pipe or device")
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
            with Image.open(source, formats=_formats()) as picture:
                check_size(picture, f"picture {name!r}")
                picture.load()
                return picture
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(
            f"picture {name!r} is too large: {error}; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except PictureError:
        raise
    except UNREADABLE as error:
        # Pillow's error names the source, which for bytes is an address in memory.
        is_unknown = isinstance(error, UnidentifiedImageError)
        reason = f"not a picture of a format that is read ({', '.join(_formats())})" if is_unknown else error
        raise PictureError(f"picture {name!r} can't be read: {reason}") from error


def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_size(picture: Image.Image, name: str) -> None:
    """Check the size of a picture before it is decoded.

    Raises:
        PictureError: it is too long for its width, or too large.
    """
    short, long = sorted(picture.size)
    if short == 0 or long > LONGEST * short:
        raise PictureError(
            f"{name} has {picture.width} x {picture.height} pixels; expected sides of which one is at most {LONGEST} "
            "times the other, since image processors enlarge the shorter one"
        )
    if Image.MAX_IMAGE_PIXELS and short * long > Image.MAX_IMAGE_PIXELS:
        raise PictureError(
            f"{name} is too large: {short * long} pixels, the limit is {Image.MAX_IMAGE_PIXELS}; make it smaller, or "
            "raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return the picture upright and in RGB, with transparency over white and deep pixels scaled to 8 bits.

    A picture with a side shorter than `SMALLEST` is enlarged by repeating pixels.

    Raises:
        PictureError: the picture is too long or too large.
    """
    check_size(picture, "a picture given as an image")
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
