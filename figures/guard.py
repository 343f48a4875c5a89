"""Effect of a guard: on one prompt layer by layer, on every prompt of a study, and its gate as a classifier."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score, roc_curve

from figures.page import legend_below, page_width, panels, wrapped
from figures.style import (
    CLASS_COLORS,
    CLASS_MARKERS,
    MODALITY_COLORS,
    MODALITY_MARKERS,
    add_caption,
    modalities_in,
    number_range,
    paper_style,
    require_columns,
    require_values,
)
from figures.words import in_words


def guard_explained(table: pd.DataFrame) -> Figure:
    """Draw the coordinate on the safety direction before and after, that of the reference, and the size of the change.

    Args:
        table: returned by `Guard.explain`.
    """
    require_columns(
        table, ["layer", "coordinate", "reference_coordinate", "gate", "after", "delta_norm"], "guard_explained"
    )
    layers = table.layer.astype(str)
    with paper_style():
        figure, (left, right) = panels(2, 1.6, 2.1)
        for layer, row in zip(layers, table.itertuples(), strict=True):
            arrow = {"arrowstyle": "-|>", "color": "0.35", "shrinkA": 3, "shrinkB": 3}
            left.annotate("", (layer, row.after), (layer, row.coordinate), arrowprops=arrow)
        left.plot(layers, table.coordinate, "o", color="0.35", label="before")
        left.plot(layers, table.after, "D", color=CLASS_COLORS["harmful"], markersize=4, label="after")
        left.plot(layers, table.reference_coordinate, "_", color="black", markersize=14, label="reference")
        left.axhline(0, color="0.6", linewidth=0.8)
        left.set(xlabel="layer", ylabel="coordinate (harmful > 0)")
        left.margins(x=0.1)
        left.legend(loc="best")
        right.bar(layers, table.delta_norm, color="0.6", width=0.6)
        for layer, row in zip(layers, table.itertuples(), strict=True):
            right.text(layer, row.delta_norm, " open" if row.gate else " shut", ha="center", va="bottom", fontsize=7)
        right.set(xlabel="layer", ylabel="change, ‖Δh‖ / ‖h‖", title="gate")
        right.margins(y=0.15)
        plt.close(figure)
    return add_caption(
        figure,
        """Effect of the guard on one prompt (n = 1) at its last token, layer by layer: first coordinate on the safety
        direction before and after, that of the reference, whether the gate is open, and how far the state moves.""",
    )


ROC_COLUMNS = ["modality", "reference", "harmful", "reference_coordinate", "gate"]


def gate_roc(table: pd.DataFrame) -> Figure:
    """Draw the gate as a classifier: ROC of the reference's coordinate, one panel per modality and reference.

    The large marker shows the rates of the guard's own gate with their intervals; only the gates `sign` and
    `threshold` have to be on the curve.

    Args:
        table: written by `studies.prompt_changes`.

    Raises:
        ValueError: columns that are missing, or only one of the classes.
    """
    require_values(table, ROC_COLUMNS, "gate_roc")
    classes = table.groupby(["modality", "reference"]).harmful.nunique()
    if (classes < 2).any():
        where = "modality {}, reference {}".format(*classes.index[classes < 2][0])
        raise ValueError(f"gate_roc needs harmful and harmless requests; got only one of the two in {where}")
    places = [
        (name, reference)
        for name in modalities_in(table.modality)
        for reference in dict.fromkeys(table[table.modality == name].reference)
    ]
    with paper_style():
        figure, axes = panels(len(places), 1.55, 1.85, sharex=True, sharey=True)
        for axis, (name, reference) in zip(axes, places, strict=True):
            _roc(axis, table[(table.modality == name) & (table.reference == reference)], name)
            axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle=":")
            axis.set(title=wrapped(f"{in_words(name, 'modality')}: reads {in_words(reference, 'reference')}", 1.35))
            axis.set(aspect="equal", xlim=(-0.06, 1.06), ylim=(-0.06, 1.06), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        figure.supxlabel("harmless requests at which the gate opens", fontsize=8)
        figure.supylabel("harmful requests at which it opens", fontsize=8)
        plt.close(figure)
    n = table.groupby(["modality", "reference", "harmful"]).size()
    return add_caption(
        figure,
        f"""The gate as a classifier of harmful requests: ROC over all thresholds of the reference's coordinate on the
        safety direction. Large markers: rates of the guard's own gate, with 95 % Wilson intervals.
        n = {number_range(n)} requests of each class.""",
    )


def _roc(axis: Axes, rows: pd.DataFrame, name: str) -> None:
    color = MODALITY_COLORS[name]
    false, true, _ = roc_curve(rows.harmful, rows.reference_coordinate)
    auroc = roc_auc_score(rows.harmful, rows.reference_coordinate)
    axis.plot(false, true, color=color, linewidth=1.1)
    (x, x_low, x_high), (y, y_low, y_high) = (_open_rate(rows[rows.harmful == label].gate) for label in (False, True))
    style = {"color": color, "fmt": MODALITY_MARKERS[name], "markersize": 6, "elinewidth": 0.8, "alpha": 0.9}
    style |= {"markeredgecolor": "white", "clip_on": False}
    errors = {"xerr": [[x - x_low], [x_high - x]], "yerr": [[y - y_low], [y_high - y]]}
    axis.errorbar(x, y, **errors, **style)
    axis.text(0.98, 0.06, f"AUROC {auroc:.2f}", ha="right", fontsize=7)


def _open_rate(is_open: pd.Series) -> tuple[float, float, float]:
    """Return the share of open gates and its Wilson interval."""
    n, k = len(is_open), int(is_open.sum())
    interval = binomtest(k, n).proportion_ci(method="wilson")
    return k / n, min(interval.low, k / n), max(interval.high, k / n)


CHANGE_COLUMNS = [
    *("modality", "reference", "harmful", "coordinate", "reference_coordinate", "gate", "after"),
    *("refused", "guarded_refused", "layer"),
]
ANSWER_COLORS = {"answered": "0.86", "refused": "0.2"}


def what_changed(table: pd.DataFrame) -> Figure:
    """Draw every prompt: its coordinate before and after the guard, and below whether it was refused without and with.

    Each modality has a row, with harmful prompts on the left and harmless ones on the right, sorted by coordinate. If
    there are several references, the last one is drawn: for text inside a picture, what the model reads there.

    Args:
        table: written by `studies.prompt_changes`.
    """
    require_values(table, CHANGE_COLUMNS, "what_changed")
    last = table.drop_duplicates(["modality", "reference"]).groupby("modality").reference.last()
    table = table[table.reference == table.modality.map(last)]
    names = modalities_in(table.modality)
    with paper_style():
        figure, axes = plt.subplots(
            2 * len(names),
            2,
            figsize=(page_width(), 1.3 * len(names) + 0.5),
            height_ratios=[3, 1.2] * len(names),
            squeeze=False,
            layout="constrained",
        )
        figure.get_layout_engine().set(hspace=0.0, h_pad=0.015)
        for i, name in enumerate(names):
            for j, kind in enumerate(CLASS_COLORS):
                rows = table[(table.modality == name) & (table.harmful == (kind == "harmful"))]
                rows = rows.sort_values("coordinate", kind="stable")
                _moves(axes[2 * i, j], rows, kind)
                _verdicts(axes[2 * i + 1, j], rows, with_labels=j == 0)
            bounds = [bound for axis in axes[2 * i] for bound in axis.get_ylim()]
            for axis in axes[2 * i]:
                axis.set_ylim(min(bounds), max(bounds))
            axes[2 * i, 0].set_ylabel(in_words(name, "modality").replace(" ", "\n", 1))
            axes[2 * i, 1].tick_params(labelleft=False)
        for axis, kind in zip(axes[0], CLASS_COLORS, strict=True):
            axis.set_title(f"{kind} requests")
        for axis in axes[-1]:
            axis.set_xlabel("prompts, by coordinate")
        legend_below(figure, _what_changed_handles())
        plt.close(figure)
    n = table.groupby(["modality", "harmful"]).size()
    references = ", ".join(f"{in_words(name, 'modality')}: {in_words(last[name], 'reference')}" for name in names)
    return add_caption(
        figure,
        f"""Effect of the guard on each prompt, at layer {table.layer.iloc[0]:.0f}: the coordinate on the safety
        direction before (hollow) and after (filled), and in the strips below whether the answer was a refusal, without
        (upper strip) and with the guard (lower strip). References: {references}. Single prompts have no intervals;
        n = {number_range(n)} of each class.""",
    )


def _moves(axis: Axes, rows: pd.DataFrame, kind: str) -> None:
    x, color, marker = np.arange(len(rows)), CLASS_COLORS[kind], CLASS_MARKERS[kind]
    axis.vlines(x, rows.coordinate, rows.after, color=color, linewidth=0.8, alpha=0.45)
    axis.plot(x, rows.coordinate, marker, color="white", markeredgecolor="0.4", markersize=2.4, markeredgewidth=0.6)
    axis.plot(x, rows.after, marker, color=color, markersize=2.4, markeredgewidth=0)
    axis.axhline(0, color="0.5", linewidth=0.7, linestyle="--")
    axis.set(xlim=(-0.8, len(rows) - 0.2), xticks=[])


def _verdicts(axis: Axes, rows: pd.DataFrame, with_labels: bool) -> None:
    refusals = rows[["refused", "guarded_refused"]].astype(float).to_numpy().T
    colors = ListedColormap(list(ANSWER_COLORS.values()))
    axis.pcolormesh(refusals, cmap=colors, vmin=0, vmax=1, edgecolor="white", linewidth=0.25)
    axis.invert_yaxis()
    axis.set(xticks=[], xlim=(-0.3, len(rows) + 0.3))
    axis.set_yticks([0.5, 1.5], ["without", "with"] if with_labels else [])
    axis.tick_params(length=0)
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)


def _what_changed_handles() -> list:
    markers = [
        Line2D([], [], marker="o", linestyle="", color="white", markeredgecolor="0.4", markersize=4, label="before"),
        *(
            Line2D([], [], marker=CLASS_MARKERS[name], linestyle="", color=color, markersize=4, label=f"after, {name}")
            for name, color in CLASS_COLORS.items()
        ),
    ]
    return [*markers, *(Patch(color=color, label=label) for label, color in ANSWER_COLORS.items())]
