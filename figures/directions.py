"""How well one vector holds the safety signal, and whether estimators agree on it."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from figures.style import WIDE, captioned, counted, filled, layer_ticks, readable, require_columns, styled

_hues = sns.color_palette("colorblind")
ESTIMATORS = {
    "paired_svd": ((0.15, 0.15, 0.15), "o"),
    "mean_diff": (_hues[0], "s"),
    "pca": (_hues[1], "^"),
    "lda": (_hues[2], "v"),
    "logistic": (_hues[3], "X"),
}
PANELS = {
    "explained_variance": "variance explained",
    "cosine": "cosine to the direction used",
    "stability": "stability under bootstrap",
}


def directions(table: pd.DataFrame) -> Figure:
    """Explained variance of the differences, agreement of the estimators, and their stability, by layer.

    Args:
        table: of `studies.readings`; its rows with the setting `directions`.
    """
    require_columns(table, ["setting", "layer", "token", "source", "estimator", "metric", "value"], "directions")
    rows = table[(table.setting == "directions") & (table.token == "last") & (table.source == "vlm_text")]
    filled(rows, ["layer", "value"], "directions of the setting directions")
    # What the others are compared with has cosine 1 to itself, at every layer.
    alike = rows[rows.metric == "cosine"].groupby("estimator", sort=False).value.min()
    first = alike.idxmax() if len(alike) else rows.estimator.iloc[0]
    with styled():
        figure, axes = plt.subplots(1, 3, figsize=(WIDE, 2.5), sharey=True, layout="constrained")
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            some = rows[rows.metric == metric]
            for name, (color, mark) in ESTIMATORS.items():
                one = some[some.estimator == name].sort_values("layer")
                # Of what everything is compared with, the cosine is 1.
                if one.empty or (metric == "cosine" and name == first):
                    continue
                axis.plot(
                    one.layer, one.value, color=color, marker=mark, markersize=3, linewidth=1.1, label=readable(name)
                )
            axis.set(title=title, xlabel="layer", ylim=(-0.03, 1.03))
            layer_ticks(axis, rows.layer)
        handles, labels = axes[2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        plt.close(figure)
    return captioned(
        figure,
        f"""Safety directions of the anchors, by layer. Left: share of the squared length of what {readable(first)} is
        fitted on that its first vector explains. Middle: absolute cosine of the other estimators to it. Right: mean
        absolute cosine between fits on resampled anchors; these draws are what stands for an interval, the other two
        have none. {counted(rows, "anchors") if "n" in rows else "n not in the table"}.""",
    )
