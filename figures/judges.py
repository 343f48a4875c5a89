"""Agreement of judges."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.style import (
    WIDE,
    add_caption,
    paper_style,
    readable,
    require_columns,
    require_values,
    sample_size,
    value_map,
)


def judge_agreement(table: pd.DataFrame) -> Figure:
    """Draw Cohen's kappa of each pair of judges, with one map for refusals and one for harm.

    Args:
        table: written by `studies.judge_agreement`, `vlm-guard judges` or `vlm-guard defend`.
    """
    require_columns(
        table, ["setting", "judge", "judge_2", "metric", "value", "ci_low", "ci_high", "n"], "judge_agreement"
    )
    rows = require_values(table[table.metric == "kappa"], ["judge", "judge_2", "value"], "judge_agreement of kappa")
    panels = list(rows.groupby("setting", sort=False, dropna=False))
    n_names = len({*rows.judge, *rows.judge_2})
    with paper_style():
        size = (WIDE, (0.28 * n_names + 0.6) * len(panels))
        figure, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False, layout="constrained")
        for axis, (setting, pairs) in zip(axes[:, 0], panels, strict=True):
            names = list(dict.fromkeys([*pairs.judge, *pairs.judge_2]))
            # The table has each pair once: draw the lower half of a square.
            order = {name: i for i, name in enumerate(names)}
            is_below = pairs.judge.map(order) < pairs.judge_2.map(order)
            lower = pairs.assign(
                row=np.where(is_below, pairs.judge_2, pairs.judge),
                column=np.where(is_below, pairs.judge, pairs.judge_2),
            )
            lower = lower.assign(column=pd.Categorical(lower.column, names[:-1]))
            style = {"vmin": 0, "vmax": 1, "cmap": "cividis", "cbar_kws": {"label": "Cohen's kappa"}}
            value_map(axis, lower, "row", "column", names[1:], **style)
            axis.set(title=str(setting), xlabel="", ylabel="")
            axis.set_xticklabels([readable(name) for name in names[:-1]], rotation=20)
            axis.grid(visible=False)
        plt.close(figure)
    return add_caption(
        figure,
        f"""Agreement of judges on the same answers, corrected for chance: Cohen's kappa with 95 % intervals.
        {sample_size(rows, "answers")}.""",
    )
