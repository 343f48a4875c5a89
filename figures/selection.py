"""Rules that choose a layer, and what the guard does there."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from figures.page import legend_below, page_width, wrapped
from figures.style import (
    MODALITY_COLORS,
    MODALITY_MARKERS,
    add_caption,
    first_judge,
    modalities_in,
    paper_style,
    require_columns,
    sample_size,
)
from figures.words import in_words


def layer_selection(table: pd.DataFrame) -> Figure:
    """Draw what the guard does on the reported split at the layer that each rule picks: refusals and KL.

    Each modality has a marker with its interval; the line is their mean. The rule `random` is the mean over all layers,
    with their range dotted.

    Args:
        table: written by `studies.layer_selection`.
    """
    columns = ["setting", "selection_rule", "layer", "modality", "metric", "judge", "value", "ci_low", "ci_high", "n"]
    require_columns(table, columns, "layer_selection")
    picks = first_judge(table[table.setting == "pick"])
    require_columns(picks, ["value"], "layer_selection without picks")
    by_rule = picks[picks.metric == "refusal_rate"].groupby("selection_rule").value.mean()
    bounds = [name for name in by_rule.index if name == "best_on_test"]
    names = [*by_rule.drop(bounds).sort_values().index, *bounds]
    titles = {"refusal_rate": "harmful\nrefused", "over_refusal_rate": "harmless\nrefused", "kl": "harmless:\nKL, nats"}
    with paper_style():
        rules = [wrapped(_rule_label(picks, name), 0.3 * page_width(), 7) for name in names]
        row_height = max(0.3, 0.13 * max(1 + rule.count("\n") for rule in rules))
        size = (page_width(), row_height * len(names) + 0.7)
        figure, axes = plt.subplots(1, 3, figsize=size, sharey=True, layout="constrained", width_ratios=(3, 2, 2))
        for axis, (metric, title) in zip(axes, titles.items(), strict=True):
            rows = picks[picks.metric == metric]
            for y, name in enumerate(names):
                own = rows[rows.selection_rule == name]
                for i, row in enumerate(own.itertuples()):
                    at = y + 0.2 * (i - (len(own) - 1) / 2)
                    style = {"color": MODALITY_COLORS[row.modality], "linewidth": 0.7}
                    # For a layer drawn at random this is not an interval but the range over layers.
                    line = ":" if name == "random" else "-"
                    axis.plot([row.ci_low, row.ci_high], [at, at], alpha=0.7, linestyle=line, **style)
                    axis.plot(row.value, at, MODALITY_MARKERS[row.modality], markersize=3, **style)
                axis.plot([own.value.mean()] * 2, [y - 0.32, y + 0.32], color="0.15", linewidth=1.4)
            axis.set(title=title)
            axis.grid(axis="y", visible=False)
            # Even rates of 0 everywhere need a scale.
            right = max(0.05 if metric != "kl" else 1e-3, 1.03 * rows.ci_high.fillna(rows.value).max())
            axis.set_xlim(-0.03 * right, right)
            axis.xaxis.set_major_locator(MaxNLocator(2 if metric != "refusal_rate" else 3))
            if metric != "kl":
                axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes[0].set_yticks(range(len(names)), rules)
        modalities = modalities_in(picks.modality)
        handles = [
            plt.Line2D([], [], marker=MODALITY_MARKERS[name], linestyle="", color=MODALITY_COLORS[name], markersize=4)
            for name in modalities
        ]
        legend_below(figure, handles, [in_words(name, "modality") for name in modalities])
        plt.close(figure)
    return add_caption(
        figure,
        f"""Effect of the guard on the reported split at the layer that each rule picks on anchors and validation
        (the middle layer, the second half and a random layer need no data; the best on test is not a rule but a bound):
        harmful and harmless requests refused, and KL on harmless ones; 95 % intervals, and dark lines at the mean over
        modalities.
        Dotted: the range over layers, for a layer drawn at random. {sample_size(picks[picks.metric == "refusal_rate"])}
        of each class.""",
    )


def _rule_label(picks: pd.DataFrame, name: str) -> str:
    label, layers = in_words(name, "selection_rule"), picks[picks.selection_rule == name].layer.dropna()
    if name in ("random", "middle_to_last") or layers.empty:
        return label
    return f"{label} (layer {layers.iloc[0]:.0f})"
