"""Published numbers and ours."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from figures.page import legend_below, page_width, panels, wrapped
from figures.style import add_caption, paper_style, require_values

_THEIRS, _OURS = "0.35", sns.color_palette("colorblind")[0]


def targets(table: pd.DataFrame) -> Figure:
    """Draw each published number next to ours, with our interval and the verdict.

    Args:
        table: `targets.csv`, written by `studies.reproduce`.
    """
    rows = require_values(table, ["target", "theirs", "verdict"], "targets")
    n = len(rows)
    with paper_style():
        figure, (axis,) = panels(1, page_width(), 0.6 + 0.3 * n)
        places = range(n)
        measured = rows.ours.notna().to_numpy()
        axis.scatter(rows.theirs, places, marker="D", s=22, facecolors="none", edgecolors=_THEIRS, label="published")
        ours = rows[measured]
        own_places = [place for place in places if measured[place]]
        axis.errorbar(
            ours.ours,
            own_places,
            xerr=[(ours.ours - ours.low).clip(lower=0), (ours.high - ours.ours).clip(lower=0)],
            fmt="o",
            markersize=4,
            color=_OURS,
            elinewidth=1,
            label="ours, 95 %",
        )
        axis.set_yticks(list(places), [wrapped(target, 0.34 * page_width(), 7) for target in rows.target])
        axis.invert_yaxis()
        right = axis.secondary_yaxis("right")
        right.set_yticks(list(places), [wrapped(verdict, 0.16 * page_width(), 7) for verdict in rows.verdict])
        right.tick_params(length=0)
        axis.set_xlabel("rate, cosine or ratio")
        legend_below(figure, *axis.get_legend_handles_labels())
        plt.close(figure)
    counts = ", ".join(f"{verdict} {count}" for verdict, count in rows.verdict.value_counts().items())
    add_caption(
        figure,
        f"Published numbers (diamonds) and ours (dots, with 95 % intervals). Verdicts: {counts}. A rate is reproduced "
        "where Newcombe's interval of the difference holds 0, and the judge is the same.",
    )
    return figure
