"""How much of the safety signal one vector captures, and whether estimators agree on it."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from figures.page import legend_below, panels, wrapped
from figures.style import add_caption, layer_ticks, paper_style, require_columns, require_values, sample_size
from figures.words import in_words

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
    """Draw variance explained, agreement of the estimators, and their stability, by layer.

    Args:
        table: written by `studies.readings`; its rows with the setting `directions` are drawn.
    """
    require_columns(table, ["setting", "layer", "token", "source", "estimator", "metric", "value"], "directions")
    rows = table[(table.setting == "directions") & (table.token == "last") & (table.source == "vlm_text")]
    require_values(rows, ["layer", "value"], "directions of the setting directions")
    # The estimator that the others are compared with has cosine 1 to itself at every layer.
    cosines = rows[rows.metric == "cosine"].groupby("estimator", sort=False).value.min()
    reference = cosines.idxmax() if len(cosines) else rows.estimator.iloc[0]
    with paper_style():
        figure, axes = panels(3, 1.7, 1.9, sharey=True)
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            of_metric = rows[rows.metric == metric]
            for name, (color, marker) in ESTIMATORS.items():
                own = of_metric[of_metric.estimator == name].sort_values("layer")
                if own.empty or (metric == "cosine" and name == reference):
                    continue
                style = {"color": color, "marker": marker, "markersize": 3, "linewidth": 1.1}
                axis.plot(own.layer, own.value, label=in_words(name, "estimator"), **style)
            axis.set(title=wrapped(title, 1.4), xlabel="layer", ylim=(-0.03, 1.03))
            layer_ticks(axis)
        handles, labels = axes[2].get_legend_handles_labels()
        legend_below(figure, handles, labels)
        plt.close(figure)
    return add_caption(
        figure,
        f"""Safety directions fitted on the anchors, by layer. Left: share of the data's squared length that the first
        vector of {in_words(reference, "estimator")} explains. Middle: absolute cosine of the other estimators to that
        vector. Right: mean absolute cosine between fits on resampled anchors, which takes the place of an interval; the
        other two panels have none.
        {sample_size(rows, "anchors") if "n" in rows else "n not in the table"}.""",
    )
