"""Figure of the layer sweep."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from figures.style import MODALITY_COLORS, WIDE, first_judge, need, present, styled

PANELS = {
    "refusal_rate": "harmful refused",
    "over_refusal_rate": "harmless refused",
    "kl": "KL on harmless, nats",
}
RULE_LINES = {"substitute": "-", "ablate": ":"}


def layer_sweep(table: pd.DataFrame) -> Figure:
    """Refusal, over-refusal and KL by layer, rule and modality on validation; the chosen layer is marked.

    Where several strengths were swept, the chosen one is drawn.
    """
    columns = ["defence", "modality", "layer", "rule", "strength", "judge", "selection_rule", "metric", "value"]
    need(table, [*columns, "ci_low", "ci_high"], "layer_sweep")
    table = first_judge(table)
    marked = table[table.selection_rule.notna()]
    chosen = marked.iloc[0] if len(marked) else None
    strength = chosen.strength if chosen is not None and pd.notna(chosen.strength) else 1.0
    guarded = table[(table.defence == "guard") & (table.strength.isna() | (table.strength == strength))]
    unguarded = table[table.defence == "unguarded"]
    with styled():
        figure, axes = plt.subplots(1, 3, figsize=(WIDE, 2.5), layout="constrained")
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            for name in present(guarded.modality):
                color = MODALITY_COLORS[name]
                before = unguarded[(unguarded.metric == metric) & (unguarded.modality == name)]
                if metric != "kl" and len(before):
                    axis.axhline(before.value.iloc[0], color=color, linewidth=0.8, linestyle="--", alpha=0.8)
                for rule, line in RULE_LINES.items():
                    rows = guarded[(guarded.metric == metric) & (guarded.modality == name) & (guarded.rule == rule)]
                    rows = rows.sort_values("layer")
                    label = f"{rule}, {name}"
                    axis.plot(
                        rows.layer,
                        rows.value,
                        line,
                        color=color,
                        linewidth=1.2,
                        marker="o",
                        markersize=2.5,
                        label=label,
                    )
                    axis.fill_between(rows.layer, rows.ci_low, rows.ci_high, color=color, alpha=0.1, linewidth=0)
            if chosen is not None:
                axis.axvline(chosen.layer, color="0.35", linewidth=4, alpha=0.15)
            axis.set(title=title, xlabel="layer", xticks=sorted(guarded.layer.astype(int).unique()))
            if metric != "kl":
                axis.set_ylim(-0.04, 1.04)
        handles, labels = axes[0].get_legend_handles_labels()
        handles.append(plt.Line2D([], [], color="0.4", linewidth=0.8, linestyle="--"))
        labels.append("unguarded")
        figure.legend(handles, [text.replace("_", " ") for text in labels], loc="outside lower center", ncols=4)
        plt.close(figure)
    return figure
