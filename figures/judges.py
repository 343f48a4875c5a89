"""How far judges agree."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.style import WIDE, captioned, counted, filled, readable, require_columns, styled, value_map


def judge_agreement(table: pd.DataFrame) -> Figure:
    """Cohen's kappa of each two judges, a map for refusals and one for harm.

    Args:
        table: of `studies.judge_agreement`, `vlm-guard judges` or `vlm-guard defend`.
    """
    require_columns(
        table, ["setting", "judge", "judge_2", "metric", "value", "ci_low", "ci_high", "n"], "judge_agreement"
    )
    rows = filled(table[table.metric == "kappa"], ["judge", "judge_2", "value"], "judge_agreement of kappa")
    panels = list(rows.groupby("setting", sort=False, dropna=False))
    n_names = len({*rows.judge, *rows.judge_2})
    with styled():
        size = (WIDE, (0.28 * n_names + 0.6) * len(panels))
        figure, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False, layout="constrained")
        for axis, (setting, some) in zip(axes[:, 0], panels, strict=True):
            names = list(dict.fromkeys([*some.judge, *some.judge_2]))
            # Each pair stands once in the table: the lower half of a square.
            place = {name: i for i, name in enumerate(names)}
            is_below = some.judge.map(place) < some.judge_2.map(place)
            lower = some.assign(
                row=np.where(is_below, some.judge_2, some.judge), column=np.where(is_below, some.judge, some.judge_2)
            )
            lower = lower.assign(column=pd.Categorical(lower.column, names[:-1]))
            look = {"vmin": 0, "vmax": 1, "cmap": "cividis", "cbar_kws": {"label": "Cohen's kappa"}}
            value_map(axis, lower, "row", "column", names[1:], **look)
            axis.set(title=str(setting), xlabel="", ylabel="")
            axis.set_xticklabels([readable(name) for name in names[:-1]], rotation=20)
            axis.grid(visible=False)
        plt.close(figure)
    return captioned(
        figure,
        f"""Agreement of judges on the same answers beyond chance: Cohen's kappa with 95 % intervals.
        {counted(rows, "answers")}.""",
    )
