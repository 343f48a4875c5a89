"""Faults that make a drawn figure unreadable: small text, text on text, text beyond the page, ink without contrast."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from figures.page import LEAST_CONTRAST, contrast

SMALLEST = 7.0
"""Points."""
TOUCH = 0.5
"""Points by which boxes of text may reach into each other: boxes include the room above and below letters."""


def problems(figure: Figure) -> list[str]:
    """Return everything that can't be read, one line each."""
    canvas, layout = FigureCanvasAgg(figure), figure.get_layout_engine()
    canvas.draw()
    # Without its texts, the figure would be laid out anew.
    figure.set_layout_engine("none")
    texts = list(dict.fromkeys(drawn_texts(figure)))
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    pixel = figure.dpi / 72
    found = [f"{text.get_fontsize():g} pt: {_short(text)}" for text in texts if text.get_fontsize() < SMALLEST]
    for text, box in zip(texts, boxes, strict=True):
        if not _contains(figure.bbox, box, pixel):
            found.append(f"beyond the page: {_short(text)}")
    for (one, a), (other, b) in combinations(zip(texts, boxes, strict=True), 2):
        if _overlap(a, b, TOUCH * pixel):
            found.append(f"overlap: {_short(one)} and {_short(other)}")
    for text in texts:
        text.set_visible(False)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3] / 255
    for text, box in zip(texts, boxes, strict=True):
        text.set_visible(True)
        ground = _ground(pixels, box)
        if ground is not None and contrast(text.get_color(), ground) < LEAST_CONTRAST:
            found.append(f"contrast {contrast(text.get_color(), ground):.1f}: {_short(text)}")
    figure.set_layout_engine(layout)
    return found


def drawn_texts(figure: Figure) -> Iterator[Text]:
    """Yield the texts that a reader sees: of axes and their visible ticks, of legends, and of the figure."""
    for part in [figure, *figure.subfigs]:
        own = [*part.texts, part._suptitle, part._supxlabel, part._supylabel]
        own += [text for legend in part.legends for text in _legend_texts(legend)]
        yield from (text for text in own if _is_seen(text))
    for axis in figure.findobj(Axes):
        if axis.get_visible():
            own = [axis.title, axis._left_title, axis._right_title, *axis.texts]
            if axis.get_legend():
                own += _legend_texts(axis.get_legend())
            for side in (axis.xaxis, axis.yaxis):
                own += [side.label, side.offsetText]
                own += [label for tick in side._update_ticks() for label in (tick.label1, tick.label2)]
            yield from (text for text in own if _is_seen(text))


def _legend_texts(legend: Legend) -> list[Text]:
    return [legend.get_title(), *legend.get_texts()]


def _is_seen(text: Text | None) -> bool:
    return text is not None and text.get_visible() and bool(text.get_text().strip())


def _contains(page: Bbox, box: Bbox, slack: float) -> bool:
    return (
        page.x0 - slack <= box.x0
        and box.x1 <= page.x1 + slack
        and page.y0 - slack <= box.y0
        and box.y1 <= page.y1 + slack
    )


def _overlap(one: Bbox, other: Bbox, slack: float) -> bool:
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    along = min(one.y1, other.y1) - max(one.y0, other.y0)
    return across > slack and along > slack


def _ground(pixels: np.ndarray, box: Bbox) -> np.ndarray | None:
    """Return the colour that most of a text stands on."""
    left, right = (int(np.clip(x, 0, pixels.shape[1])) for x in (box.x0, box.x1))
    low, high = (int(np.clip(y, 0, pixels.shape[0])) for y in (box.y0, box.y1))
    own = pixels[low:high, left:right].reshape(-1, 3)
    return np.median(own, axis=0) if len(own) else None


def _short(text: Text) -> str:
    return repr(text.get_text()[:40])
