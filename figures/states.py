"""Hidden states in a plane, and their coordinate on the safety direction."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from scipy.stats import chi2, gaussian_kde

from figures.page import legend_below, page_width, panels
from figures.style import (
    CLASS_COLORS,
    CLASS_LINES,
    CLASS_MARKERS,
    add_caption,
    modalities_in,
    number_range,
    paper_style,
    require_values,
)
from figures.words import in_words

LEAST_PANEL = 1.25
"""Inches that a panel of one layer needs with its ticks."""
COVERED = 0.9
"""Share of a normal distribution inside the ellipse of a class."""


def hidden_states(points: pd.DataFrame, layers: Sequence[int] | None = None) -> Figure:
    """Draw hidden states in the plane of the text's first two principal components, by modality and layer.

    Args:
        points: returned by `studies.separability.points`.
        layers: layers that are drawn, counted from 0; by default as many as fit the page, from the first to the
            last. A single layer gets larger panels, next to each other.

    Raises:
        ValueError: columns or layers that are missing, by name.
    """
    require_values(points, ["modality", "layer", "harmful", "pc1", "pc2"], "hidden_states")
    available = sorted(int(layer) for layer in points.layer.unique())
    layers = list(layers) if layers is not None else _evenly_spaced(available)
    absent = [layer for layer in layers if layer not in available]
    if absent:
        raise ValueError(f"hidden_states has no layer {absent[0]}; expected some of {available[0]} to {available[-1]}")
    names = modalities_in(points.modality)
    if len(layers) == 1:
        figure = _one_layer(points, names, layers[0])
    else:
        figure = _grid_of_layers(points, names, layers)
    first_layer = points[points.layer == layers[0]]
    return add_caption(
        figure,
        f"""Hidden states at the last prompt token, in the plane of the first two principal components of the
        text-only states of each layer; other modalities are projected into it. Crosses and solid ellipses: harmful
        requests; circles and dashed ellipses: harmless ones; ellipses contain {COVERED:.0%} of a normal distribution
        with the class's mean and covariance. Axes are shared within {"a layer" if len(layers) > 1 else "the figure"}.
        {_sample_size(first_layer)}""",
    )


def _evenly_spaced(layers: Sequence[int]) -> list[int]:
    """Return all layers if they fit the page, otherwise evenly spaced ones from the first to the last."""
    most = max(2, int(page_width() / LEAST_PANEL))
    if len(layers) <= most:
        return list(layers)
    return [layers[i] for i in np.linspace(0, len(layers) - 1, most).round().astype(int)]


def _grid_of_layers(points: pd.DataFrame, names: Sequence[str], layers: Sequence[int]) -> Figure:
    """Draw a row for each modality and a column for each layer, whose axes are shared."""
    with paper_style():
        size = (page_width(), 1.05 * len(names) + 0.5)
        options = {"sharex": "col", "sharey": "col", "squeeze": False, "layout": "constrained"}
        figure, axes = plt.subplots(len(names), len(layers), figsize=size, **options)
        for row, name in zip(axes, names, strict=True):
            for axis, layer in zip(row, layers, strict=True):
                _scatter(axis, points[(points.modality == name) & (points.layer == layer)], 4.0)
            row[0].set_ylabel(in_words(name, "modality").replace(" ", "\n", 1))
        for axis, layer in zip(axes[0], layers, strict=True):
            axis.set_title(f"layer {layer}")
        for axis in axes[-1]:
            axis.set_xlabel("PC 1 of text")
        figure.supylabel("PC 2 of text", fontsize=8)
        legend_below(figure, _class_handles())
        plt.close(figure)
    return figure


def _one_layer(points: pd.DataFrame, names: Sequence[str], layer: int) -> Figure:
    with paper_style():
        figure, axes = panels(len(names), 1.6, 1.8, sharex=True, sharey=True)
        for axis, name in zip(axes, names, strict=True):
            _scatter(axis, points[(points.modality == name) & (points.layer == layer)], 14.0)
            axis.set(title=in_words(name, "modality"), xlabel="PC 1 of text")
        figure.suptitle(f"Hidden states after layer {layer}, last prompt token")
        figure.supylabel("PC 2 of text", fontsize=8)
        legend_below(figure, _class_handles())
        plt.close(figure)
    return figure


def _sample_size(points: pd.DataFrame) -> str:
    n = points.groupby(["modality", "harmful"]).size()
    return f"n = {number_range(n)} requests of each class in each modality."


def _classes(points: pd.DataFrame):
    for name, label in (("harmful", True), ("harmless", False)):
        yield name, points[points.harmful == label]


def _scatter(axis: Axes, points: pd.DataFrame, size: float) -> None:
    for name, own in _classes(points):
        style = {"color": CLASS_COLORS[name], "marker": CLASS_MARKERS[name], "linewidth": 0}
        # Hundreds of markers in each of dozens of panels: as paths they would make the PDF slow to open.
        axis.scatter(own.pc1, own.pc2, s=size, alpha=0.55, rasterized=True, label=name, **style)
        if len(own) > 2:
            axis.add_patch(_ellipse(own[["pc1", "pc2"]].to_numpy(), name))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(MaxNLocator(3))


def _ellipse(points: np.ndarray, name: str) -> Ellipse:
    """Return the ellipse with `COVERED` of a normal distribution that has the points' mean and covariance."""
    values, vectors = np.linalg.eigh(np.cov(points.T))
    width, height = 2 * np.sqrt(chi2.ppf(COVERED, 2) * values.clip(0))
    angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
    style = {"edgecolor": CLASS_COLORS[name], "linestyle": CLASS_LINES[name], "facecolor": "none", "linewidth": 0.9}
    return Ellipse(points.mean(0), width, height, angle=angle, **style)


def _class_handles() -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            color=color,
            marker=CLASS_MARKERS[name],
            linestyle=CLASS_LINES[name],
            linewidth=0.9,
            markersize=4,
            label=name,
        )
        for name, color in CLASS_COLORS.items()
    ]


RIDGE_HEIGHT = 0.8
"""Height of a ridge in rows."""


def coordinate_ridges(points: pd.DataFrame, layer: int, threshold: float = 0.0) -> Figure:
    """Draw the coordinate on the SSD of one layer: a ridge for each modality and class, and the gate's threshold.

    Where the table has it (`border`), the border that text has between the classes is drawn too.

    Args:
        points: returned by `studies.separability.points`.
        layer: layer that is drawn, counted from 0.
        threshold: coordinate at which the gate opens; 0 for the paper's sign gate.

    Raises:
        ValueError: columns or the layer are missing.
    """
    require_values(points, ["modality", "layer", "harmful", "coordinate"], "coordinate_ridges")
    chosen = points[points.layer == layer]
    require_values(chosen, ["coordinate"], f"coordinate_ridges of layer {layer}")
    names = modalities_in(chosen.modality)
    low, high = chosen.coordinate.min(), chosen.coordinate.max()
    grid = np.linspace(low - 0.08 * (high - low), high + 0.08 * (high - low), 400)
    with paper_style():
        figure, (axis,) = panels(1, page_width(), 0.42 * len(names) + 0.8)
        for row, name in enumerate(reversed(names)):
            for kind, own in _classes(chosen[chosen.modality == name]):
                _ridge(axis, own.coordinate.to_numpy(), kind, row, grid)
        axis.axvline(threshold, color="0.2", linewidth=0.9, linestyle="--")
        if "border" in chosen:
            axis.axvline(chosen.border.iloc[0], color="0.2", linewidth=0.9, linestyle=":")
        axis.annotate(
            "gate opens →", (threshold, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
            textcoords="offset points", fontsize=7, va="top", color="0.2",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
        axis.set(xlabel=f"coordinate on the SSD, layer {layer}", xlim=(grid[0], grid[-1]), ylim=(-0.25, None))
        axis.set_yticks(range(len(names)), [in_words(name, "modality") for name in reversed(names)])
        axis.grid(axis="y", visible=False)
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        legend_below(figure, _class_handles())
        plt.close(figure)
    border = "Dotted: the border of text, half-way between the anchors' means. " if "border" in chosen else ""
    return add_caption(
        figure,
        f"""Coordinate on the safety direction after layer {layer}, at the last prompt token: density of each class,
        scaled to its own peak, and a tick for each request. Dashed: the threshold at which a gate opens,
        {threshold:g} (0 for the sign gate). The gate reads the reference, which is text, so compare with the first row.
        {border}{_sample_size(chosen)}""",
    )


def _ridge(axis: Axes, values: np.ndarray, kind: str, row: int, grid: np.ndarray) -> None:
    color = CLASS_COLORS[kind]
    if len(values) > 2 and np.ptp(values) > 0:
        density = gaussian_kde(values)(grid)
        top = row + density / density.max() * RIDGE_HEIGHT
        visible = density > 0.01 * density.max()
        axis.fill_between(grid, row, top, where=visible, color=color, alpha=0.3, linewidth=0, zorder=-row)
        axis.plot(grid[visible], top[visible], color=color, linestyle=CLASS_LINES[kind], linewidth=1, zorder=-row)
    shift = -0.06 if kind == "harmful" else -0.14
    axis.plot(
        values, np.full(len(values), row + shift), "|", color=color, markersize=3, markeredgewidth=0.5, label=kind
    )
