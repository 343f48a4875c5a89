"""Pictures that are small files and large in memory, and files that only pretend to be pictures."""

import io
import os
import struct
import zlib

import pytest
from PIL import Image, ImageFile

from interp import PictureError, Query, collate
from interp.inputs import Prompt
from interp.pictures import LONGEST, picture_from_bytes, read_picture, to_rgb


def png(width: int, height: int) -> bytes:
    """A picture of one colour, whose file is tiny whatever its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * ((width + 7) // 8 + 1) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 20_000_000), (8, 1_000_000), (1_000_000, 8), (1, LONGEST + 1)])
def test_a_thin_picture_is_refused_before_it_is_decoded(size, tmp_path, monkeypatch):
    path = tmp_path / "thin.png"
    path.write_bytes(png(*size))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(PictureError, match=f"has {size[0]} x {size[1]} pixels; expected sides of which one is at most"):
        read_picture(path)
    with pytest.raises(PictureError, match="expected sides"):
        picture_from_bytes(path.read_bytes(), "thin")


def test_a_thin_picture_that_is_given_as_an_image_is_refused_too(tiny_vlm):
    picture = Image.open(io.BytesIO(png(1, 5_000)))
    with pytest.raises(PictureError, match="a picture given as an image has 1 x 5000 pixels"):
        collate(tiny_vlm, [Prompt(Query("look", False), "scene", "look", (picture,))])


def test_the_longest_picture_that_is_read_stays_small(tmp_path):
    path = tmp_path / "long.png"
    path.write_bytes(png(1, LONGEST))
    assert to_rgb(read_picture(path)).size == (8, 8 * LONGEST)


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0\0\0\0", b""])
@pytest.mark.parametrize("suffix", ["png", "eps"])
def test_other_formats_are_not_read_whatever_they_are_called(content, suffix, tmp_path, monkeypatch):
    path = tmp_path / f"picture.{suffix}"
    path.write_bytes(content)
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("another program was started"))
    with pytest.raises(PictureError, match="can't be read: not a picture of a format that is read"):
        read_picture(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match="is not a file; expected one, not a folder, pipe or device"):
        read_picture(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match="is not a file"):
        read_picture(tmp_path)
