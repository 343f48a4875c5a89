"""Effect of each reading of the method, as a configuration of the guard, on harmful and on harmless requests."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.style import (
    MODALITY_COLORS,
    MODALITY_MARKERS,
    WIDE,
    add_caption,
    first_judge,
    modalities_in,
    paper_style,
    readable,
    require_columns,
    sample_size,
)

MODALITIES = ("blank", "scene", "typographic")
"""Modalities that are drawn."""
PANELS = {
    "refusal_score_gain": "refusal score, harmful:\nguarded − unguarded, nats",
    "refusal_rate": "harmful\nrefused",
    "answered": "harmless\nanswered well",
    "kl": "KL from unguarded,\nharmless, nats",
}
FACTORS = {
    "factorial": ("rule", "gate_scope"),
    "gate": ("gate",),
    "positions": ("positions",),
    "source": ("source",),
    "estimator": ("estimator",),
    "rank": ("rank",),
    "token": ("token",),
    "direction_layer": ("direction_layer",),
    "layer": ("layer",),
    "strength": ("strength",),
    "reference": ("reference",),
    "gate x strength": ("gate", "strength"),
    "control": ("control", "estimator"),
}
"""Parts of the grid, with the columns in which their configurations differ."""
ROW_HEIGHT = 0.105
"""Height of a line in inches."""
FLIPPED = "sign_flipped"


def readings(table: pd.DataFrame) -> Figure:
    """Draw all readings on validation, one line each: readings whose interval is right of zero restore refusal.

    Filled markers are the readings as they are, hollow ones the same change with its sign flipped.

    Args:
        table: written by `studies.readings`.
    """
    factors = sorted({column for columns in FACTORS.values() for column in columns} | {"control"})
    require_columns(
        table,
        [
            "setting",
            "split",
            "modality",
            "defence",
            *factors,
            "judge",
            "category",
            "metric",
            "value",
            "ci_low",
            "ci_high",
            "n",
        ],
        "readings",
    )
    table = first_judge(table)
    table = table[(table.split == "validation") & table.modality.isin(MODALITIES)]
    lines = list(_lines(table))
    with paper_style():
        size = (WIDE, ROW_HEIGHT * len(lines) + 1.1)
        figure, axes = plt.subplots(1, 4, figsize=size, sharey=True, layout="constrained", width_ratios=(4, 2, 2, 3))
        for axis, metric in zip(axes, PANELS, strict=True):
            for place, (_, rows) in enumerate(lines):
                _draw(axis, -place, rows, metric)
            axis.set_title(PANELS[metric])
            axis.grid(axis="y", color="0.94", linewidth=0.5)
        axes[0].axvline(0, color="0.3", linewidth=0.8)
        unguarded = table[(table.defence == "unguarded") & (table.metric == "refusal_rate")]
        for row in unguarded.itertuples():
            axes[1].axvline(row.value, color=MODALITY_COLORS[row.modality], linewidth=0.8, linestyle="--", alpha=0.6)
        for axis in axes[1:3]:
            axis.set(xlim=(-0.06, 1.06), xticks=[0, 0.5, 1])
        axes[3].set_xscale("symlog", linthresh=1e-3)
        axes[3].set(xlim=(-3e-4, 20), xticks=[0, 1e-2, 1], xticklabels=["0", "0.01", "1"])
        axes[0].set_yticks([-place for place in range(len(lines))], [name for name, _ in lines], fontsize=5)
        for label, (_, rows) in zip(axes[0].get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if rows.empty else "normal")
        axes[0].set_ylim(-len(lines) + 0.3, 0.7)
        names = modalities_in(table.modality)
        handles = [
            *(
                Line2D(
                    [],
                    [],
                    color=MODALITY_COLORS[name],
                    marker=MODALITY_MARKERS[name],
                    markersize=3,
                    label=readable(name),
                )
                for name in names
            ),
            Line2D(
                [],
                [],
                color="0.3",
                marker="o",
                markerfacecolor="white",
                markersize=3,
                linestyle="",
                label="sign flipped",
            ),
            Line2D([], [], color="0.3", linewidth=0.8, linestyle="--", label="unguarded"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
        plt.close(figure)
    n_rows = table[table.metric == "refusal_rate"]
    return add_caption(
        figure,
        f"""Every reading of the method on validation, one line each, at the layers of the guard that the sweep chose
        (except where the layer is varied), for {", ".join(readable(name) for name in names)}. Filled: as it is;
        hollow: with the sign of the change flipped. Lines are 95 % intervals; shuffled labels with several seeds are
        shown as their mean, with a line from the lowest to the highest bound, and random directions as their mean, with
        a line over 95 % of them, by the first answer token alone. Answered well is the share of harmless requests that
        are neither refused nor answered in broken sentences, a product of two rates without an interval.
        {sample_size(n_rows)} of each class and modality.""",
    )


def _lines(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the label of each line and its rows; parts begin with a heading, which has no rows."""
    for part, columns in FACTORS.items():
        rows = table[table.setting == part]
        if rows.empty:
            continue
        yield (part.replace("_", " ") if part != "factorial" else "rule, scope of the gate").upper(), rows.iloc[:0]
        if part == "control":
            # Only shuffled labels have more than one estimator.
            estimator = rows.estimator.where(rows.control == "shuffled_labels")
            rows = rows.assign(control=rows.control.fillna(rows.defence), estimator=estimator)
        for key, group in rows.groupby(list(columns), sort=part not in ("factorial", "control"), dropna=False):
            yield ", ".join(_label(value) for value in key if pd.notna(value)), group


def _label(value) -> str:
    return f"{value:g}" if isinstance(value, float) else readable(str(value))


def _draw(axis: Axes, line: int, rows: pd.DataFrame, metric: str) -> None:
    """Draw the modalities of one line, one above the other."""
    for i, name in enumerate(modalities_in(rows.modality)):
        y, color = line + 0.25 * (1 - i), MODALITY_COLORS[name]
        own = rows[rows.modality == name]
        for control, seeds in own.groupby(own.control.fillna("")):
            value, low, high = _value_and_interval(seeds, metric)
            style = {"color": color, "markersize": 2.4, "markeredgewidth": 0.6}
            axis.plot([low, high], [y, y], color=color, linewidth=0.7, alpha=0.7)
            face = "white" if control == FLIPPED else color
            axis.plot(value, y, MODALITY_MARKERS[name], markerfacecolor=face, **style)


def _value_and_interval(rows: pd.DataFrame, metric: str) -> tuple[float, float, float]:
    """Return the mean over seeds, with an interval from the lowest to the highest bound."""
    if metric == "answered":
        refused = rows[rows.metric == "over_refusal_rate"].value.mean()
        coherent = rows[(rows.metric == "coherence") & (rows.category == "harmless")].value.mean()
        answered = (1 - refused) * (0.0 if pd.isna(coherent) else coherent)
        return answered, answered, answered
    own = rows[rows.metric == metric]
    return own.value.mean(), own.ci_low.min(), own.ci_high.max()
