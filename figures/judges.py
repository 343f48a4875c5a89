"""Agreement of judges."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.maps import fit_cells, value_map
from figures.page import page_width
from figures.style import add_caption, paper_style, require_columns, require_values, sample_size
from figures.words import in_words


def judge_agreement(table: pd.DataFrame) -> Figure:
    """Draw Cohen's kappa of each pair of judges, with one map for refusals and one for harm.

    Args:
        table: written by `studies.judge_agreement`, `vlm-guard judges` or `vlm-guard defend`.
    """
    require_columns(
        table, ["setting", "judge", "judge_2", "metric", "value", "ci_low", "ci_high", "n"], "judge_agreement"
    )
    rows = require_values(table[table.metric == "kappa"], ["judge", "judge_2", "value"], "judge_agreement of kappa")
    settings = list(rows.groupby("setting", sort=False, dropna=False))
    heights = [len({*pairs.judge, *pairs.judge_2}) - 1 for _, pairs in settings]
    with paper_style():
        figure, grid = plt.subplots(
            len(settings),
            1,
            figsize=(page_width(), 0.26 * sum(heights) + 0.65 * len(settings)),
            squeeze=False,
            height_ratios=heights,
            layout="constrained",
        )
        axes = grid[:, 0]
        for axis, (setting, pairs) in zip(axes, settings, strict=True):
            names = list(dict.fromkeys([*pairs.judge, *pairs.judge_2]))
            # The table has each pair once: draw the lower half of a square.
            order = {name: i for i, name in enumerate(names)}
            is_below = pairs.judge.map(order) < pairs.judge_2.map(order)
            lower = pairs.assign(
                row=np.where(is_below, pairs.judge_2, pairs.judge),
                column=np.where(is_below, pairs.judge, pairs.judge_2),
            )
            lower = lower.assign(column=pd.Categorical(lower.column, names[:-1]))
            value_map(axis, lower, "row", "column", names[1:], vmin=0, vmax=1, cmap="cividis", cbar=False)
            # Columns are numbered as the rows are: names would need more room than the cells.
            numbered = [f"{in_words(name, 'judge')}  {i}" for i, name in enumerate(names, start=1)]
            axis.set_yticklabels(numbered[1:])
            axis.set_xticklabels([f"{i}" for i in range(1, len(names))], rotation=0)
            axis.set_title(f"judges of {setting}")
            axis.set_xlabel(f"1 is {in_words(names[0], 'judge')}")
        figure.colorbar(axes[0].collections[0], ax=list(axes), shrink=0.6, pad=0.02, label="Cohen's kappa")
        notes = fit_cells(figure)
        plt.close(figure)
    return add_caption(
        figure,
        f"""Agreement of judges on the same answers, corrected for chance: Cohen's kappa; {notes.intervals}.
        {sample_size(rows, "answers")}.""",
    )
