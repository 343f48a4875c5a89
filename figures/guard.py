"""What a guard does to one prompt."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from figures.style import CLASS_COLORS, WIDE, need, styled


def guard_explained(table: pd.DataFrame) -> Figure:
    """The coordinate on the safety direction before and after, the reference's beside it, and how far the state moved.

    Args:
        table: of `Guard.explain`.
    """
    need(table, ["layer", "coordinate", "reference_coordinate", "gate", "after", "delta_norm"], "guard_explained")
    layers = table.layer.astype(str)
    with styled():
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDE, 2.2), layout="constrained", width_ratios=(2, 1))
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
            right.text(layer, row.delta_norm, " open" if row.gate else " shut", ha="center", va="bottom", fontsize=6)
        right.set(xlabel="layer", ylabel="change, ‖Δh‖ / ‖h‖", title="gate")
        right.margins(y=0.15)
        plt.close(figure)
    return figure
