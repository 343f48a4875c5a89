"""Effect of each reading of the method, as a configuration of the guard, on harmful and on harmless requests."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from figures.page import legend_below, page_width, wrapped
from figures.style import (
    MODALITY_COLORS,
    MODALITY_MARKERS,
    add_caption,
    first_judge,
    modalities_in,
    paper_style,
    require_columns,
    sample_size,
)
from figures.words import in_words

MODALITIES = ("blank", "scene", "typographic")
"""Modalities that are drawn."""
PANELS = {
    "refusal_score_gain": "harmful: gain in refusal score, nats",
    "answered": "harmless answered well",
    "refusal_rate": "harmful refused",
    "kl": "harmless: KL, nats",
}
NARROW_PANELS = 2
"""Panels of a narrow page, which has no room for all of them."""
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
HEADINGS = {
    "factorial": "Rule",
    "gate": "Gate",
    "positions": "Where states are changed",
    "source": "Who gives direction and reference",
    "estimator": "How the direction is fitted",
    "rank": "Rank of the direction",
    "token": "Where states are read",
    "strength": "Strength",
    "reference": "What the aligned LLM reads",
    "control": "Controls and bounds",
}
"""Parts that are drawn. Layers and combinations are in the table `readings` for appendices."""
MAIN_SCOPE = "change"
"""Scope of the gate whose rules are drawn."""
ROW_HEIGHT = 0.125
"""Height of a line in inches."""
FLIPPED = "sign_flipped"
COLUMNS = [
    *("setting", "split", "modality", "defence"),
    *sorted({column for columns in FACTORS.values() for column in columns} | {"control"}),
    *("judge", "category", "metric", "value", "ci_low", "ci_high", "n"),
]


def readings(table: pd.DataFrame) -> Figure:
    """Draw the readings factor by factor on validation: those whose interval is right of zero restore refusal.

    Filled markers are the readings as they are, hollow ones the same change with its sign flipped. Layers, scopes of
    the gate and combinations of factors are left to `tables.readings`.

    Args:
        table: written by `studies.readings`.
    """
    require_columns(table, COLUMNS, "readings")
    table = on_validation(table)
    lines = []
    for part, heading in HEADINGS.items():
        rows = table[table.setting == part]
        own = list(part_lines(part, rows if part != "factorial" else rows[rows.gate_scope == MAIN_SCOPE]))
        lines += [(heading, rows.iloc[:0]), *own] if own else []
    names = modalities_in(table.modality)
    drawn = list(PANELS)[: None if page_width() > 5 else NARROW_PANELS]
    with paper_style():
        size = (page_width(), ROW_HEIGHT * len(lines) + 0.6)
        widths = (4, 2.2, 2.2, 2.6)[: len(drawn)]
        figure, axes = plt.subplots(1, len(drawn), figsize=size, sharey=True, layout="constrained", width_ratios=widths)
        panels = dict(zip(drawn, axes, strict=True))
        for metric, axis in panels.items():
            for place, (_, rows) in enumerate(lines):
                _draw(axis, -place, rows, metric)
            axis.set_title(wrapped(PANELS[metric], (0.2 if axis is axes[0] else 0.1) * page_width()))
            axis.grid(axis="y", visible=False)
        axes[0].axvline(0, color="0.3", linewidth=0.8)
        for metric in {"answered", "refusal_rate"} & {*panels}:
            panels[metric].set(xlim=(-0.08, 1.08), xticks=[0, 0.5, 1] if page_width() > 5 else [0, 1])
            panels[metric].xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
            panels[metric].set_xlabel("%")
        unguarded = table[(table.defence == "unguarded") & (table.metric == "refusal_rate")]
        for row in unguarded.itertuples() if "refusal_rate" in panels else ():
            style = {"color": MODALITY_COLORS[row.modality], "linewidth": 0.8, "linestyle": "--", "alpha": 0.6}
            panels["refusal_rate"].axvline(row.value, **style)
        if "kl" in panels:
            panels["kl"].set_xscale("symlog", linthresh=1e-3)
            panels["kl"].set(xlim=(-3e-4, 20), xticks=[0, 1e-2, 1], xticklabels=["0", "0.01", "1"])
        axes[0].set_yticks([-place for place in range(len(lines))], [name for name, _ in lines])
        axes[0].tick_params(axis="y", length=0)
        for label, (_, rows) in zip(axes[0].get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if rows.empty else "normal")
        axes[0].set_ylim(-len(lines) + 0.3, 0.7)
        legend_below(figure, _handles(names, "refusal_rate" in panels))
        plt.close(figure)
    n_rows = table[table.metric == "refusal_rate"]
    return add_caption(
        figure,
        f"""Readings of the method on validation, factor by factor, at the layers of the guard that the sweep chose.
        Filled: as it is; hollow: with the sign of the change flipped. Lines are 95 % intervals; shuffled labels with
        several seeds are shown as their mean, with a line from the lowest to the highest bound, and random directions
        as their mean, with a line over 95 % of them, by the first answer token alone. Answered well is the share of
        harmless requests that are neither refused nor answered in broken sentences, a product of two rates without an
        interval. Layers, scopes of the gate and combinations are in the table of all readings.
        {sample_size(n_rows)} of each class and modality.""",
    )


def on_validation(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows that readings are compared by: of the deciding judge, on validation; of a text-only model, text."""
    table = first_judge(table)
    table = table[(table.split == "validation") & table.modality.notna()]
    pictured = table[table.modality.isin(MODALITIES)]
    return table if pictured.empty else pictured


def part_lines(part: str, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the label of each configuration of a part of `FACTORS`, and its rows."""
    if part == "control":
        # Only shuffled labels have more than one estimator.
        estimator = rows.estimator.where(rows.control == "shuffled_labels")
        rows = rows.assign(control=rows.control.fillna(rows.defence), estimator=estimator)
    columns = list(FACTORS[part])
    if part == "factorial" and rows.gate_scope.nunique() == 1:
        columns = ["rule"]
    for key, group in rows.groupby(columns, sort=part not in ("factorial", "control"), dropna=False):
        values = zip(key, columns, strict=True)
        yield ", ".join(_label(value, column) for value, column in values if pd.notna(value)), group


def _label(value, column: str) -> str:
    return f"{value:g}" if isinstance(value, float) else in_words(value, column)


def _handles(names: list[str], with_unguarded: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], color=MODALITY_COLORS[name], marker=MODALITY_MARKERS[name], markersize=3) for name in names
    ]
    for handle, name in zip(handles, names, strict=True):
        handle.set_label(in_words(name, "modality"))
    flipped = {"color": "0.3", "marker": "o", "markerfacecolor": "white", "markersize": 3, "linestyle": ""}
    handles.append(Line2D([], [], label="sign flipped", **flipped))
    if with_unguarded:
        handles.append(Line2D([], [], color="0.3", linewidth=0.8, linestyle="--", label="unguarded"))
    return handles


def _draw(axis: Axes, line: int, rows: pd.DataFrame, metric: str) -> None:
    """Draw the modalities of one line, one above the other."""
    for i, name in enumerate(modalities_in(rows.modality)):
        y, color = line + 0.2 * (0.5 - i), MODALITY_COLORS[name]
        own = rows[rows.modality == name]
        for control, seeds in own.groupby(own.control.fillna("")):
            value, low, high = value_and_interval(seeds, metric)
            style = {"color": color, "markersize": 2.4, "markeredgewidth": 0.6}
            axis.plot([low, high], [y, y], color=color, linewidth=0.7, alpha=0.7)
            face = "white" if control == FLIPPED else color
            axis.plot(value, y, MODALITY_MARKERS[name], markerfacecolor=face, **style)


def value_and_interval(rows: pd.DataFrame, metric: str) -> tuple[float, float, float]:
    """Return the mean over seeds, with an interval from the lowest to the highest bound."""
    if metric == "answered":
        refused = rows[rows.metric == "over_refusal_rate"].value.mean()
        coherent = rows[(rows.metric == "coherence") & (rows.category == "harmless")].value.mean()
        answered = (1 - refused) * (0.0 if pd.isna(coherent) else coherent)
        return answered, answered, answered
    own = rows[rows.metric == metric]
    return own.value.mean(), own.ci_low.min(), own.ci_high.max()
