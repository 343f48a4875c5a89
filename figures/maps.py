"""Heat maps with numbers in their cells, as far as numbers fit."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from figures.page import ink_on

__all__ = ["CellNotes", "fit_cells", "value_map"]

CELL = "cell"
"""Group of the texts in cells."""
CELL_SIZE = 7
MARK = "•"


class CellNotes(NamedTuple):
    """Words of a caption about the cells of a map."""

    intervals: str
    marks: str
    """How significant values look."""


def two_digits(value: float) -> str:
    """Write a number with two digits, without the zero before the point."""
    text = f"{value:z.2f}"
    return text.replace("0.", ".", 1).replace("-", "−") if abs(value) < 0.995 else text


def value_map(
    axis: Axes,
    cells: pd.DataFrame,
    rows: str,
    columns: str,
    order: Sequence,
    number: Callable[[float], str] | None = two_digits,
    **heatmap,
) -> None:
    """Draw a heat map with the value in each cell, and below it the interval if there is one; see `fit_cells`.

    Args:
        axis: where to draw.
        cells: columns `rows`, `columns`, `value`; optionally `ci_low` and `ci_high`, and `is_significant`, whose values
            are bold.
        rows: column whose values are the rows of the map.
        columns: column whose values are the columns of the map.
        order: rows of the map, from the top.
        number: writes a number; None for a map that has only marks.
        **heatmap: arguments of `seaborn.heatmap`.
    """
    names = [name for name in ("value", "ci_low", "ci_high", "is_significant") if name in cells]
    wide = {name: cells.pivot(index=rows, columns=columns, values=name).reindex(order) for name in names}
    bar = {"shrink": 0.9, "pad": 0.02} | heatmap.pop("cbar_kws", {})
    sns.heatmap(wide["value"], linewidths=0.4, cbar_kws=bar, ax=axis, **heatmap)
    mesh = axis.collections[0]
    mesh.set_rasterized(wide["value"].size > 2000)
    for i, row in enumerate(wide["value"].index):
        for j, column in enumerate(wide["value"].columns):
            value = wide["value"].loc[row, column]
            if pd.isna(value):
                continue
            is_significant = "is_significant" in wide and wide["is_significant"].loc[row, column] == 1
            label = number(value) if number else MARK if is_significant else ""
            if number and "ci_low" in wide and pd.notna(wide["ci_low"].loc[row, column]):
                low, high = (number(wide[name].loc[row, column]) for name in ("ci_low", "ci_high"))
                label += f"\n{low}, {high}"
            axis.text(
                j + 0.5,
                i + 0.5,
                label,
                ha="center",
                va="center",
                fontsize=CELL_SIZE,
                linespacing=1.0,
                fontweight="bold" if is_significant else "normal",
                color=ink_on(mesh.cmap(mesh.norm(value))),
                gid=CELL,
            )
    axis.set_yticks([i + 0.5 for i in range(len(order))], [str(name) for name in wide["value"].index], rotation=0)
    axis.tick_params(length=0)
    axis.set(xlabel="", ylabel="")
    axis.grid(visible=False)


def fit_cells(figure: Figure) -> CellNotes:
    """Shorten what is written in the cells of all maps until it fits: without intervals, then marks alone.

    Numbers of columns are thinned too.

    Returns:
        What the caption has to say about it.
    """
    figure.draw_without_rendering()
    axes = [axis for axis in figure.findobj(Axes) if any(text.get_gid() == CELL for text in axis.texts)]
    texts = [text for axis in axes for text in axis.texts if text.get_gid() == CELL and text.get_text()]
    for axis in axes:
        _thin_columns(axis)
    below, in_table = "95 % intervals below each value", "95 % intervals are in the table"
    if any("\n" in text.get_text() for text in texts):
        if all(_fits(text) for text in texts):
            return CellNotes(below, "bold")
        for text in texts:
            text.set_text(text.get_text().partition("\n")[0])
    if all(_fits(text) for text in texts):
        return CellNotes(in_table, "bold")
    for text in texts:
        text.set_text(MARK if text.get_fontweight() == "bold" else "")
    return CellNotes(in_table, "marked by a dot")


def _fits(text: Text) -> bool:
    axis = text.axes
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    width, height = axis.bbox.width / abs(right - left), axis.bbox.height / abs(high - low)
    box = text.get_window_extent()
    pixel = axis.figure.dpi / 72
    return text.get_text() == MARK or bool(box.width <= width - 1.5 * pixel and box.height <= height + 2 * pixel)


def _thin_columns(axis: Axes) -> None:
    """Label every second, third, ... column if the labels would touch; the last one is kept if it is a word."""
    ticks, labels = list(axis.get_xticks()), axis.get_xticklabels()
    if not ticks:
        return
    boxes = [label.get_window_extent() for label in labels]
    gap = 2 * axis.figure.dpi / 72
    for step in range(1, len(ticks) + 1):
        kept = list(range(0, len(ticks), step))
        if not labels[-1].get_text().isdigit() and kept[-1] != len(ticks) - 1:
            kept = [i for i in kept if boxes[i].x1 + gap <= boxes[-1].x0] + [len(ticks) - 1]
        if all(boxes[i].x1 + gap <= boxes[j].x0 for i, j in zip(kept, kept[1:], strict=False)):
            break
    rotation = labels[0].get_rotation()
    axis.set_xticks([ticks[i] for i in kept], [labels[i].get_text() for i in kept], rotation=rotation)
