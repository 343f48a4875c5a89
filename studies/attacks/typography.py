"""Typography that a model may read when it answers, and misread when it transcribes: attacks on the reference."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from PIL import Image

from interp import Prompt
from interp.pictures import LazyPicture
from interp.typography import text_picture

CONTRASTS = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03)
"""Darkness of the letters; 1 is black."""
LAYOUTS = ("whole", "two_pictures", "spaced", "turned")


@dataclass(frozen=True)
class Rendering:
    """How a request is drawn."""

    contrast: float = 1.0
    layout: str = "whole"
    """One of `LAYOUTS`: in one picture; its words divided over two; its letters apart; or upside down."""

    def __str__(self) -> str:
        return f"{self.layout}, contrast {self.contrast:g}"


def renderings() -> list[Rendering]:
    """Return every rendering, the ordinary one first."""
    return [Rendering(contrast, layout) for layout, contrast in product(LAYOUTS, CONTRASTS)]


def rendered(prompt: Prompt, rendering: Rendering, size: int) -> Prompt:
    """Return a typographic prompt whose picture shows the same request in another way.

    Args:
        prompt: its own pictures are replaced.
        rendering: how the text is drawn.
        size: side of a picture in pixels.
    """
    words = prompt.query.rendered.split()
    middle = (len(words) + 1) // 2
    parts = [words[:middle], words[middle:]] if rendering.layout == "two_pictures" and len(words) > 1 else [words]
    pictures = tuple(LazyPicture(draw, (" ".join(part), size, rendering)) for part in parts)
    return replace(prompt, pictures=pictures)


def draw(text: str, size: int, rendering: Rendering) -> Image.Image:
    """Draw a text on white.

    Args:
        text: what is drawn.
        size: side of the picture in pixels.
        rendering: how.
    """
    drawn = text_picture(" ".join(text.replace(" ", "  ")) if rendering.layout == "spaced" else text, size)
    drawn = drawn.rotate(180) if rendering.layout == "turned" else drawn
    darkness = (255 - np.asarray(drawn, dtype=float)) * rendering.contrast
    return Image.fromarray(np.round(255 - darkness).astype(np.uint8))
