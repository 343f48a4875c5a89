"""Figures of the separability study."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from figures.style import CLASS_COLORS, CLASS_MARKERS, MODALITY_COLORS, WIDE, need, present, styled


def _named_class(points: pd.DataFrame) -> pd.DataFrame:
    return points.assign(query=points.harmful.map({True: "harmful", False: "harmless"}))


def hidden_states(points: pd.DataFrame, layer: int) -> Figure:
    """Hidden states of one layer in the plane of the text's first two principal components, a panel per modality.

    Args:
        points: `studies.separability.points`.
        layer: counted from 0.
    """
    need(points, ["modality", "layer", "harmful", "pc1", "pc2"], "hidden_states")
    chosen = _named_class(points[points.layer == layer])
    need(chosen, ["query"], f"hidden_states of layer {layer}")
    names = present(chosen.modality)
    with styled():
        n_columns = min(3, len(names))
        n_rows = -(-len(names) // n_columns)
        figure, axes = plt.subplots(
            n_rows,
            n_columns,
            figsize=(WIDE, 2.1 * n_rows),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, name in zip(axes.flat, names, strict=False):
            sns.scatterplot(
                chosen[chosen.modality == name],
                x="pc1",
                y="pc2",
                hue="query",
                style="query",
                hue_order=list(CLASS_COLORS),
                palette=CLASS_COLORS,
                markers=CLASS_MARKERS,
                s=16,
                alpha=0.75,
                linewidth=0.2,
                legend=axis is axes.flat[0],
                ax=axis,
            )
            axis.set(title=name.replace("_", " "), xlabel="PC 1 of text", ylabel="PC 2 of text")
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        axes.flat[0].get_legend().remove()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, handletextpad=0.2)
        figure.suptitle(f"Hidden states after layer {layer}, last prompt token")
        plt.close(figure)
    return figure


def probe_auroc(table: pd.DataFrame) -> Figure:
    """AUROC of harmful against harmless by layer: probe within a modality, probe from text, coordinate on the SSD."""
    need(table, ["probe", "modality", "fit_modality", "layer", "control", "value", "ci_low", "ci_high"], "probe_auroc")
    is_transfer = table.fit_modality == "text"
    panels = {
        "probe fitted within the modality": table[(table.probe == "logistic") & ~is_transfer & table.control.isna()],
        "probe fitted on text": table[(table.probe == "logistic") & is_transfer],
        "coordinate on the SSD": table[table.probe == "ssd"],
    }
    shuffled = table[table.control == "shuffled_labels"]
    with styled():
        figure, axes = plt.subplots(1, 3, figsize=(WIDE, 2.4), sharey=True, layout="constrained")
        for axis, (title, rows) in zip(axes, panels.items(), strict=True):
            _lines(axis, rows)
            axis.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
            axis.set(title=title, xlabel="layer", xticks=sorted(rows.layer.astype(int).unique()))
        for _, rows in shuffled.groupby("modality"):
            label = "shuffled labels" if rows.modality.iloc[0] == present(shuffled.modality)[0] else None
            axes[0].plot(rows.layer, rows.value, color="0.7", linewidth=0.7, linestyle="--", label=label)
        axes[0].set(ylabel="AUROC", ylim=(min(0.4, table.value.min() - 0.05), 1.02))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, [text.replace("_", " ") for text in labels], loc="outside lower center", ncols=7)
        plt.close(figure)
    return figure


def _lines(axis, rows: pd.DataFrame) -> None:
    for name in present(rows.modality):
        one = rows[rows.modality == name].sort_values("layer")
        color = MODALITY_COLORS[name]
        axis.plot(one.layer, one.value, color=color, linewidth=1.2, marker="o", markersize=2.5, label=name)
        axis.fill_between(one.layer, one.ci_low, one.ci_high, color=color, alpha=0.12, linewidth=0)


def coordinates_by_modality(points: pd.DataFrame, layer: int) -> Figure:
    """The coordinate on the SSD of one layer, per modality and class.

    The line at 0 is where the sign gate opens for a reference, which is text: compare the first violin.
    """
    need(points, ["modality", "layer", "harmful", "coordinate"], "coordinates_by_modality")
    chosen = _named_class(points[points.layer == layer])
    names = present(chosen.modality)
    with styled():
        figure, axis = plt.subplots(figsize=(WIDE, 2.4), layout="constrained")
        sns.violinplot(
            chosen,
            x="modality",
            y="coordinate",
            hue="query",
            order=names,
            hue_order=list(CLASS_COLORS),
            palette=CLASS_COLORS,
            split=True,
            inner="quart",
            linewidth=0.6,
            density_norm="width",
            gap=0.08,
            cut=0,
            ax=axis,
        )
        axis.axhline(0, color="0.2", linewidth=0.9, linestyle="--")
        axis.set(xlabel=None, ylabel=f"coordinate on the SSD, layer {layer}")
        axis.set_xticks(np.arange(len(names)), [name.replace("_", "\n") for name in names])
        axis.legend(title=None, loc="best")
        plt.close(figure)
    return figure
