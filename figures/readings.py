"""The page of readings: what each configuration of the guard does to harmful and to harmless requests."""

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
    captioned,
    counted,
    first_judge,
    present,
    readable,
    require_columns,
    styled,
)

DRAWN = ("blank", "scene", "typographic")
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
"""Parts of the grid, and the columns that tell their configurations apart."""
ROW = 0.105
"""Inches."""
FLIPPED = "sign_flipped"


def readings(table: pd.DataFrame) -> Figure:
    """All readings on validation, a line each: the intervals that lie right of zero bring refusal back.

    Filled marks are the readings as they are, hollow ones the same change with its sign flipped.
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
    table = table[(table.split == "validation") & table.modality.isin(DRAWN)]
    lines = list(_lines(table))
    with styled():
        size = (WIDE, ROW * len(lines) + 1.1)
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
        shown = present(table.modality)
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
                for name in shown
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
    return captioned(
        figure,
        f"""Every reading of the method on validation, a line each, at the layer that the sweep has chosen there (but
        for the part that varies it), in {", ".join(readable(name) for name in shown)}. Filled: as it is; hollow: the sign
        of the change flipped; lines: 95 % intervals, of controls with several seeds the mean and from their lowest to
        their highest bound. Answered well is the share of harmless requests neither refused nor answered in broken
        sentences, a product of two rates, without an interval. {counted(n_rows)} of each class and modality.""",
    )


def _lines(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """What is written beside each line, and its rows; an empty line between parts."""
    for part, columns in FACTORS.items():
        rows = table[table.setting == part]
        if rows.empty:
            continue
        yield (part.replace("_", " ") if part != "factorial" else "rule, scope of the gate").upper(), rows.iloc[:0]
        if part == "control":
            # Only shuffled labels have more than one estimator.
            several = rows.estimator.where(rows.control == "shuffled_labels")
            rows = rows.assign(control=rows.control.fillna(rows.defence), estimator=several)
        for key, group in rows.groupby(list(columns), sort=part not in ("factorial", "control"), dropna=False):
            yield ", ".join(_word(value) for value in key if pd.notna(value)), group


def _word(value) -> str:
    return f"{value:g}" if isinstance(value, float) else readable(str(value))


def _draw(axis: Axes, place: int, rows: pd.DataFrame, metric: str) -> None:
    """Modalities side by side within the line."""
    for i, name in enumerate(present(rows.modality)):
        at, color = place + 0.25 * (1 - i), MODALITY_COLORS[name]
        here = rows[rows.modality == name]
        for control, some in here.groupby(here.control.fillna("")):
            value, low, high = _value(some, metric)
            look = {"color": color, "markersize": 2.4, "markeredgewidth": 0.6}
            axis.plot([low, high], [at, at], color=color, linewidth=0.7, alpha=0.7)
            face = "white" if control == FLIPPED else color
            axis.plot(value, at, MODALITY_MARKERS[name], markerfacecolor=face, **look)


def _value(rows: pd.DataFrame, metric: str) -> tuple[float, float, float]:
    """The mean over seeds, where there are several, and its interval: then from the lowest to the highest."""
    if metric == "answered":
        refused = rows[rows.metric == "over_refusal_rate"].value.mean()
        coherent = rows[(rows.metric == "coherence") & (rows.category == "harmless")].value.mean()
        answered = (1 - refused) * (0.0 if pd.isna(coherent) else coherent)
        return answered, answered, answered
    here = rows[rows.metric == metric]
    return here.value.mean(), here.ci_low.min(), here.ci_high.max()
