import numpy as np
import pytest
from PIL import Image

from interp.inputs import Prompt, Query, collate
from interp.pictures import to_rgb


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 3), (30, 50)])
def test_pictures_of_any_mode_and_size_reach_the_model(tiny_vlm, mode, size):
    picture = Image.new("L", size, 128).convert("RGB") if mode == "HSV" else Image.new("L", size, 128)
    picture = Image.new(mode, size) if mode in ("I;16", "PA", "LA", "YCbCr") else picture.convert(mode)
    prompt = Prompt(Query("hello", False), "scene", "hello", (picture,))
    assert to_rgb(picture).mode == "RGB" and min(to_rgb(picture).size) >= 8
    assert collate(tiny_vlm, [prompt])["pixel_values"].shape == (1, 3, 96, 96)


def test_deep_pictures_keep_their_greys():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    grey = np.asarray(to_rgb(Image.fromarray(ramp)))[..., 0]
    assert grey.min() == 0 and grey.max() == 255 and len(np.unique(grey)) == 256


def test_transparent_parts_become_white_and_rotated_pictures_upright():
    assert to_rgb(Image.new("RGBA", (9, 9), (0, 0, 0, 0))).getpixel((4, 4)) == (255, 255, 255)
    picture = Image.new("RGB", (20, 10))
    picture.getexif()[0x0112] = 6
    assert to_rgb(picture).size == (10, 20)


def test_an_ordinary_picture_is_left_alone():
    picture = Image.new("RGB", (20, 10))
    assert to_rgb(picture) is picture
