"""The page that figures are drawn for: how wide it is, how panels share it, and text that fits when it is placed.

Figures are drawn at the width at which they are placed, and saved without cropping, so that 8 points stay 8 points:

    with figures.page(3.25):
        figures.save(figures.pareto(table), folder, "pareto")
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.textpath import TextPath

__all__ = [
    "LEAST_CONTRAST",
    "PAGE_WIDTHS",
    "contrast",
    "ink_on",
    "legend_below",
    "page",
    "page_width",
    "panels",
    "wrapped",
]

PAGE_WIDTHS = {
    5.5: "text of one column (NeurIPS, ICLR)",
    3.25: "one of two columns (ICML, ACL, CVPR)",
    6.75: "both columns",
}
"""Widths in inches at which venues place figures; the first is the default."""
NARROWEST, WIDEST = 3.0, 10.0
LEAST_CONTRAST = 4.5
"""Contrast that text needs (WCAG 2.2, level AA)."""
FONT_SIZE = 8.0

_width: ContextVar[float] = ContextVar("page_width", default=5.5)


def page_width() -> float:
    """Return the width in inches that figures are drawn at."""
    return _width.get()


def page(width: float | int) -> AbstractContextManager[None]:
    """Return the context in which figures are drawn at this width.

    Raises:
        ValueError: a width that no text of 8 points fits, or that no page has.
    """
    if not NARROWEST <= width <= WIDEST:
        raise ValueError(
            f"a page of {width:g} in; expected {NARROWEST:g} to {WIDEST:g}, such as "
            + ", ".join(f"{known:g} for {what}" for known, what in PAGE_WIDTHS.items())
        )
    return _drawn_at(float(width))


@contextmanager
def _drawn_at(width: float) -> Iterator[None]:
    token = _width.set(width)
    try:
        yield
    finally:
        _width.reset(token)


def panels(n: int, least_width: float | int, height: float | int, **options) -> tuple[Figure, list[Axes]]:
    """Return a figure with `n` panels, as many in a row as the page has room for.

    Args:
        n: how many.
        least_width: of a panel with its labels, in inches.
        height: of a row, in inches.
        **options: of `plt.subplots`, such as `sharey`.
    """
    n_columns = max(1, min(n, int(page_width() / least_width)))
    n_rows = -(-n // n_columns)
    # Rows are filled evenly: four panels are two rows of two, not three and one.
    n_columns = -(-n // n_rows)
    figure, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(page_width(), height * n_rows),
        squeeze=False,
        layout="constrained",
        **options,
    )
    axes = list(grid.flat)
    for axis in axes[n:]:
        axis.remove()
    for axis in axes[max(0, n - n_columns) : n]:
        axis.tick_params(labelbottom=True)
    return figure, axes[:n]


def legend_below(figure: Figure, handles: Sequence, labels: Sequence[str] | None = None) -> Legend:
    """Put a legend below the panels, with as many columns as fit the page; the figure grows by its height."""
    names = [handle.get_label() for handle in handles] if labels is None else labels
    names = [wrapped(name, page_width() - 0.5) for name in names]
    for n_columns in range(len(names), 0, -1):
        legend = figure.legend(handles, names, loc="outside lower center", ncols=n_columns, columnspacing=1.2)
        box = legend.get_window_extent(figure.canvas.get_renderer())
        if box.width <= figure.bbox.width - 4 or n_columns == 1:
            break
        legend.remove()
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + box.height / figure.dpi)
    return legend


@lru_cache(maxsize=4096)
def _inches(text: str, size: float | int) -> float:
    return TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0.0


def wrapped(text: str, inches: float | int, size: float | int = FONT_SIZE) -> str:
    """Break a text into lines that are at most this wide; single words stay whole."""
    lines = []
    for line in text.split("\n"):
        words = ""
        for word in textwrap.wrap(line, 1, break_long_words=False, break_on_hyphens=False):
            longer = f"{words} {word}".strip()
            if words and _inches(longer, size) > inches:
                lines.append(words)
                longer = word
            words = longer
        lines.append(words)
    return "\n".join(lines)


def _luminance(color) -> float:
    """Return the relative luminance of WCAG 2.2."""
    channels = np.asarray(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def ink_on(color) -> str:
    """Return black or white, whichever is read better on a colour; its contrast is at least 4.58."""
    return max("black", "white", key=lambda ink: contrast(ink, color))
