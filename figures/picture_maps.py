"""Maps of where a model looks, drawn over the picture, layer by layer."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from figures.page import page_width, wrapped
from figures.style import add_caption, paper_style, require_values

MEASURES = {
    "attention": ("attention", "viridis"),
    "rollout": ("attention rollout", "viridis"),
    "gradient": ("gradient", "vlag"),
    "patching": ("lost when patched", "vlag"),
}
"""Label of each measure, and its colours: one colour for shares, two for what adds and what takes away."""
SIGNED = ("gradient", "patching")
LEAST_PANEL = 0.95
"""Inches of a picture."""
FADED = 0.45
"""Share of white over the picture, so that maps are seen."""


def picture_map(table: pd.DataFrame, picture: Image.Image | np.ndarray, layers: Sequence[int] | None = None) -> Figure:
    """Draw maps of one prompt over its picture: a row for each measure, a column for each layer.

    Each row has its own scale: all of its layers are coloured alike. The stronger a place, the less is seen of the
    picture below it.

    Args:
        table: `interp.picture_maps.to_table` of one prompt, with the columns `measure`, `layer`, `row`, `column` and
            `value`.
        picture: the picture of the prompt.
        layers: layers that are drawn; by default as many as fit the page, from the first to the last.

    Raises:
        ValueError: columns or layers that are missing, or several prompts.
    """
    require_values(table, ["measure", "layer", "row", "column", "value"], "picture_map")
    if table.duplicated(["measure", "layer", "row", "column"]).any():
        raise ValueError("picture_map got several values for one place; expected the maps of one prompt")
    available = sorted(int(layer) for layer in table.layer.unique())
    layers = _spread(available, int((page_width() - 1.3) / LEAST_PANEL)) if layers is None else list(layers)
    absent = [layer for layer in layers if layer not in available]
    if absent:
        raise ValueError(f"picture_map has no layer {absent[0]}; expected some of {available[0]} to {available[-1]}")
    measures = [name for name in MEASURES if name in set(table.measure)]
    below = _faded(picture)
    shape = below.shape[0] / below.shape[1]
    width = (page_width() - 1.3) / len(layers)
    with paper_style():
        size = (page_width(), len(measures) * (min(width, 1.6) * shape + 0.1) + 0.3)
        figure, axes = plt.subplots(len(measures), len(layers), figsize=size, squeeze=False, layout="constrained")
        for row, measure in zip(axes, measures, strict=True):
            own = table[(table.measure == measure) & table.layer.isin(layers)]
            norm = _scale(own.value, measure in SIGNED)
            for axis, layer in zip(row, layers, strict=True):
                cells = own[own.layer == layer].pivot(index="row", columns="column", values="value").to_numpy()
                _overlay(axis, below, cells, norm, MEASURES[measure][1])
            row[0].set_ylabel(wrapped(MEASURES[measure][0], 0.9), rotation=0, ha="right", va="center")
            mappable = plt.cm.ScalarMappable(norm, MEASURES[measure][1])
            bar = figure.colorbar(mappable, ax=list(row), shrink=0.8, pad=0.01, aspect=12)
            bar.ax.yaxis.set_major_locator(plt.MaxNLocator(3))
            bar.outline.set_visible(False)
        for axis, layer in zip(axes[0], layers, strict=True):
            axis.set_title(f"layer {layer}" if layer == layers[0] else f"{layer}")
        plt.close(figure)
    about = {
        "attention": "the last prompt token's attention to each place, mean over heads",
        "rollout": "the same through all layers up to this one",
        "gradient": "what the score gains by each place, to first order, in units of the score",
        "patching": "what it loses if the place's state is that of a picture without content",
    }
    told = "; ".join(f"{MEASURES[name][0]}: {about[name]}" for name in measures)
    return add_caption(
        figure,
        f"""Where the model looks in one picture (n = 1, without interval), after each layer. {told.capitalize()}.
        Attention shows what is read, not what it changes.""",
    )


def _spread(layers: Sequence[int], most: int) -> list[int]:
    """Return all layers if they fit, otherwise evenly spaced ones from the first to the last."""
    places = np.linspace(0, len(layers) - 1, min(len(layers), max(2, most))).round().astype(int)
    return [layers[i] for i in dict.fromkeys(places.tolist())]


def _faded(picture: Image.Image | np.ndarray) -> np.ndarray:
    """Return the picture in grey, towards white."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    grey = np.asarray(image.convert("L"), dtype=float) / 255
    return FADED + (1 - FADED) * grey


def _scale(values: pd.Series, is_signed: bool) -> Normalize:
    most = float(values.abs().max()) or 1.0
    return Normalize(-most, most) if is_signed else Normalize(0, most)


def _overlay(axis: Axes, below: np.ndarray, cells: np.ndarray, norm: Normalize, colors: str) -> None:
    """Draw a map over a picture; what is near zero is transparent."""
    height, width = below.shape
    extent = (0, width, height, 0)
    axis.imshow(below, cmap="gray", vmin=0, vmax=1, extent=extent)
    shades = colormaps[colors](norm(cells))
    shades[..., 3] = 0.85 * np.sqrt(np.abs(cells) / norm.vmax)
    axis.imshow(shades, extent=extent, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(True)
        side.set_color("0.7")
