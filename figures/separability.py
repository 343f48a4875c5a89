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


SIDE_SPLITS = ("train", "anchors")
"""Requests that the model was trained on, and those that controls are taught on."""


def _main_place(table: pd.DataFrame, figure: str) -> pd.DataFrame:
    """AUROCs of the reported split where the controls stand: at the first site and token."""
    columns = ["split", "setting", "site", "token", "probe", "modality", "fit_modality", "layer", "control", "metric"]
    need(table, [*columns, "value", "ci_low", "ci_high"], figure)
    # Beside others they are not what is reported; by themselves they are.
    is_side = table.split.isin(SIDE_SPLITS)
    table = table[(table.metric == "auroc") & (~is_side | is_side.all())]
    first = table[table.site.notna()].iloc[0]
    return table[table.site.isna() | ((table.site == first.site) & (table.token == first.token))]


def probe_auroc(table: pd.DataFrame) -> Figure:
    """AUROC of harmful against harmless by layer: probe within a modality, probe from text, coordinate on the SSD.

    Grey: shuffled labels, and what a bag of words reaches over the same folds.
    """
    table = _main_place(table, "probe_auroc")
    first, plain = table[table.site.notna()].probe.iloc[0], table[table.control.isna() & table.layer.notna()]
    own = plain.fit_modality == plain.modality
    panels = {
        f"{first} probe, within the modality": plain[(plain.probe == first) & (plain.setting == "folds") & own],
        f"{first} probe, fitted on anchors' text": plain[(plain.probe == first) & (plain.setting == "anchors")],
        "coordinate on the SSD": plain[plain.probe == "ssd"],
    }
    panels = {title: rows for title, rows in panels.items() if len(rows)}
    with styled():
        size = {"figsize": (WIDE, 2.4), "layout": "constrained"}
        figure, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False, **size)
        for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
            _lines(axis, rows)
            axis.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
            axis.set(title=title, xlabel="layer", xticks=sorted(rows.layer.astype(int).unique()))
        shuffled = table[table.control == "shuffled_labels"]
        for i, (_, rows) in enumerate(shuffled.groupby("modality")):
            label = "shuffled labels" if i == 0 else None
            axes[0, 0].plot(rows.layer, rows.value, color="0.7", linewidth=0.7, linestyle="--", label=label)
        words = table[(table.probe == "bag_of_words") & (table.setting == "folds")]
        if len(words):
            axes[0, 0].axhline(words.value.iloc[0], color="0.45", linewidth=0.9, linestyle="-.", label="bag of words")
        axes[0, 0].set(ylabel="AUROC", ylim=(min(0.35, plain.value.min() - 0.05), 1.02))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, [text.replace("_", " ") for text in labels], loc="outside lower center", ncols=4)
        plt.close(figure)
    return figure


def transfer(table: pd.DataFrame, layer: int) -> Figure:
    """AUROC of the probe fitted in one modality (rows) on requests it has not seen, in another (columns)."""
    table = _main_place(table, "transfer")
    first = table[table.site.notna()].probe.iloc[0]
    rows = table[(table.probe == first) & (table.setting == "folds") & (table.layer == layer) & table.control.isna()]
    need(rows, ["value"], f"transfer of layer {layer}")
    names = present(rows.modality)
    wide = rows.pivot(index="fit_modality", columns="modality", values="value").loc[names, names]
    labels = [name.replace("_", " ") for name in names]
    with styled():
        figure, axis = plt.subplots(figsize=(WIDE / 2 + 0.6, 3.0), layout="constrained")
        sns.heatmap(
            wide,
            vmin=0.5,
            vmax=1,
            annot=True,
            fmt=".2f",
            cmap="cividis",
            square=True,
            annot_kws={"size": 7},
            cbar_kws={"label": "AUROC", "shrink": 0.8},
            xticklabels=labels,
            yticklabels=labels,
            ax=axis,
        )
        axis.set(xlabel="tested in", ylabel="fitted in", title=f"{first} probe, layer {layer}")
        axis.tick_params(axis="x", rotation=35)
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
