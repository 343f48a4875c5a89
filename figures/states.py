"""Hidden states in a plane, and their coordinate on the safety direction."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from scipy.stats import chi2, gaussian_kde

from figures.style import (
    CLASS_COLORS,
    CLASS_LINES,
    CLASS_MARKERS,
    WIDE,
    add_caption,
    modalities_in,
    number_range,
    paper_style,
    readable,
    require_values,
)

MOST_COLUMNS = 8
COVERED = 0.9
"""Share of a normal distribution inside the ellipse of a class."""


def hidden_states(points: pd.DataFrame, layers: Sequence[int] | None = None) -> Figure:
    """Draw hidden states in the plane of the text's first two principal components, by modality and layer.

    Args:
        points: returned by `studies.separability.points`.
        layers: layers that are drawn, counted from 0; by default all, or eight if there are more. A single layer gets
            larger panels, next to each other.

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
    places = [(name, layer) for name in names for layer in layers]
    n_columns = len(layers) if len(layers) > 1 else min(3, len(names))
    n_rows = -(-len(places) // n_columns)
    size = (WIDE, 0.95 * n_rows + 0.5 if len(layers) > 1 else 2.1 * n_rows)
    shared = "col" if len(layers) > 1 else "all"
    with paper_style():
        figure, axes = plt.subplots(
            n_rows, n_columns, figsize=size, sharex=shared, sharey=shared, squeeze=False, layout="constrained"
        )
        for axis, (name, layer) in zip(axes.flat, places, strict=False):
            _scatter(
                axis, points[(points.modality == name) & (points.layer == layer)], 4.0 if len(layers) > 1 else 14.0
            )
        for axis in axes.flat[len(places) :]:
            axis.set_visible(False)
        if len(layers) > 1:
            for axis, layer in zip(axes[0], layers, strict=True):
                axis.set_title(f"layer {layer}")
            for axis, name in zip(axes[:, 0], names, strict=True):
                axis.set_ylabel(readable(name).replace(" ", "\n"))
        else:
            for axis, name in zip(axes.flat, names, strict=False):
                axis.set(title=readable(name), xlabel="PC 1 of text", ylabel="PC 2 of text")
            figure.suptitle(f"Hidden states after layer {layers[0]}, last prompt token")
        figure.legend(handles=_class_handles(), loc="outside lower center", ncols=2, handletextpad=0.3)
        plt.close(figure)
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
    """Return all layers if there are few, otherwise evenly spaced ones from the first to the last."""
    if len(layers) <= MOST_COLUMNS:
        return list(layers)
    return [layers[i] for i in np.linspace(0, len(layers) - 1, MOST_COLUMNS).round().astype(int)]


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
    axis.set(xticklabels=[], yticklabels=[])
    axis.tick_params(length=0)


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
        figure, axis = plt.subplots(figsize=(WIDE, 0.42 * len(names) + 1.0), layout="constrained")
        for row, name in enumerate(reversed(names)):
            for kind, own in _classes(chosen[chosen.modality == name]):
                _ridge(axis, own.coordinate.to_numpy(), kind, row, grid)
        axis.axvline(threshold, color="0.2", linewidth=0.9, linestyle="--")
        if "border" in chosen:
            axis.axvline(chosen.border.iloc[0], color="0.2", linewidth=0.9, linestyle=":")
        axis.annotate(
            "gate opens →", (threshold, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
            textcoords="offset points", fontsize=6.5, va="top", color="0.2",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
        axis.set(xlabel=f"coordinate on the SSD, layer {layer}", xlim=(grid[0], grid[-1]), ylim=(-0.25, None))
        axis.set_yticks(range(len(names)), [readable(name) for name in reversed(names)])
        axis.grid(axis="y", visible=False)
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        figure.legend(handles=_class_handles(), loc="outside lower center", ncols=2)
        plt.close(figure)
    border = "Dotted: the border of text, half-way between the anchors' means. " if "border" in chosen else ""
    return add_caption(
        figure,
        f"""Coordinate on the safety direction after layer {layer}, at the last prompt token: density of each class,
        scaled to its own peak, and a tick for each request. Dashed: the threshold at which a gate opens,
        {threshold:g} (0 for the sign gate). The gate reads the reference, which is text, so compare with the first row.
        {border}        {_sample_size(chosen)}""",
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
