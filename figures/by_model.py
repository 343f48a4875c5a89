"""Attack success and over-refusal, model by model."""

from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from figures.defence import ARMS, PANELS, bar_style, defence_arms, draw_places
from figures.style import WIDE, add_caption, paper_style, require_columns, sample_size

SHOWN = ("unguarded", "guard", "gate_refuser", "own_text")
"""Arms that are drawn, without the rivals: what happens without a guard, with it, and with its gate alone."""
MOST_MODELS = 3
"""Models in one row."""
TITLE_WIDTH = 34
"""Characters of a line."""


def attack_success_by_model(table: pd.DataFrame) -> Figure:
    """Draw attack success and over-refusal without a guard, with it, and with its gate alone, in one panel a model.

    Args:
        table: rows of `defence.csv` of several runs, with the name of the run in the column `model`.

    Raises:
        ValueError: columns that are missing, or nothing to draw.
    """
    require_columns(table, ["model"], "attack_success_by_model")
    rows, attacked = defence_arms(table.assign(dataset=table.model), "attack_success_by_model")
    rows = rows[rows.arm.isin(SHOWN)]
    if rows.empty:
        raise ValueError(f"attack_success_by_model found none of {', '.join(SHOWN)}")
    models = list(dict.fromkeys(rows.dataset))
    n_columns = min(MOST_MODELS, len(models))
    n_bands = -(-len(models) // n_columns)
    arms = [arm for arm in SHOWN if arm in set(rows.arm)]
    with paper_style():
        figure, grid = plt.subplots(
            len(PANELS) * n_bands,
            n_columns,
            figsize=(WIDE, 3.4 * n_bands + 0.3),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for i in range(n_bands * n_columns):
            axes = grid[2 * (i // n_columns) : 2 * (i // n_columns) + 2, i % n_columns]
            if i < len(models):
                _panel(axes, rows[rows.dataset == models[i]], models[i], arms)
            for axis, title in zip(axes, PANELS.values(), strict=True):
                axis.set_visible(i < len(models))
                axis.set(ylabel=title if i % n_columns == 0 else "", ylim=(-0.03, 1.03))
        handles = [Patch(label=ARMS[arm][0], **bar_style(*ARMS[arm][1:])) for arm in arms]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        plt.close(figure)
    return add_caption(
        figure,
        f"""Attack success on harmful requests and over-refusal on harmless ones, model by model, with 95 % Wilson
        intervals: without a guard, with the one that validation chose on that model, and refused wherever its gate
        opens. In the picture, the guard reads a transcription; hatched white bars: the prompt's own text.
        {sample_size(attacked)} of each class.""",
    )


def _panel(axes, rows: pd.DataFrame, model: str, arms: list[str]) -> None:
    """Draw both measures of one model, one below the other."""
    keys = ["setting", "modality"]
    places = list(rows[keys].drop_duplicates().itertuples(index=False, name=None))
    for axis, metric in zip(axes, PANELS, strict=True):
        draw_places(axis, rows[rows.metric == metric], keys, places, arms)
        axis.set_xticks(np.arange(len(places)), [])
    axes[0].set_title(fill(model, TITLE_WIDTH))
    names = ["\n".join(dict.fromkeys(place)).replace("_", "\n") for place in places]
    axes[1].set_xticks(np.arange(len(places)), names, fontsize=5.5)
