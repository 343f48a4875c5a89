"""A guard among random changes of the same size."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import blended_transform_factory

from figures.page import legend_below, page_width, wrapped
from figures.style import MODALITY_COLORS, add_caption, modalities_in, number_range, paper_style, require_columns
from figures.words import in_words

PANELS = {
    "refusal_score_gain": "harmful: gain in the refusal score, nats",
    "opening_refusal_rate": "harmful: begins to refuse",
}
GUARD = ["dataset", "setting", "split", "rule", "gate", "strength", "layer", "last_layer", "layers"]
"""Columns that identify a guard in a part of the results."""
COLUMNS = "setting split modality rule reference gate strength control seed metric value".split()
ROW_HEIGHT = 0.175
"""Height of a line in inches."""
ROOM = 0.42
"""Inches for the percentile next to a star."""
GOLDEN = 0.618034
"""Step of the vertical scatter: neighbouring draws come apart, and the same table gives the same figure."""


def random_directions(table: pd.DataFrame) -> Figure:
    """Draw every random direction as a dot and the guard as a star, one line for each guard and modality.

    Args:
        table: the table `random_directions` of `studies.repro`.
    """
    require_columns(table, COLUMNS, "random_directions")
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *GUARD])))
    lines = list(_lines(table))
    with paper_style():
        size = (page_width(), ROW_HEIGHT * len(lines) + 0.6)
        figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained", width_ratios=(3, 2))
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            for place, (_, rows) in enumerate(lines):
                if not rows.empty:
                    _draw(axis, -place, rows[rows.metric == metric])
            axis.set_title(wrapped(title, 0.34 * page_width() if axis is axes[0] else 0.22 * page_width()))
            axis.grid(axis="y", visible=False)
            axis.patch.set_visible(False)
        axes[0].axvline(0, color="0.3", linewidth=0.8)
        low, high = axes[0].get_xlim()
        # Room for the percentiles on the right of the stars.
        axes[0].set_xlim(low, high + (high - low) * ROOM / (0.42 * page_width()))
        axes[1].set(
            xlim=(-0.06, 1.04 + ROOM / (0.26 * page_width())), xticks=[0, 0.5, 1] if page_width() > 5 else [0, 1]
        )
        axes[1].xaxis.set_major_formatter(PercentFormatter(1))
        drawn = {-place: name for place, (name, rows) in enumerate(lines) if not rows.empty}
        axes[0].set_yticks(list(drawn), list(drawn.values()))
        axes[0].tick_params(axis="y", length=0)
        across = blended_transform_factory(figure.transFigure, axes[0].transData)
        style = {"fontsize": 7, "fontweight": "bold", "va": "center", "bbox": {"facecolor": "white", "linewidth": 0}}
        for place, (heading, rows) in enumerate(lines):
            if rows.empty and heading:
                # Headings reach across both panels, whose lines are empty there.
                axes[0].text(0.01, -place, heading, transform=across, **style).set_in_layout(False)
        axes[0].set_ylim(-len(lines) + 0.4, 0.6)
        dot, star = {"marker": "o", "color": "0.4", "markersize": 2}, {"marker": "*", "color": "0.1", "markersize": 8}
        handles = [
            Line2D([], [], linestyle="", label="one random direction", **dot),
            Line2D([], [], color="0.4", linewidth=1.2, label="95 % of them"),
            Line2D([], [], linestyle="", label="the guard, with its percentile", **star),
        ]
        legend_below(figure, handles)
        plt.close(figure)
    sizes = _draws(table[table.metric.isin(PANELS)]).groupby([*GUARD, "modality", "reference", "metric"], dropna=False)
    n = number_range(sizes.size())
    return add_caption(
        figure,
        f"""The guard (star) among {n} changes of the same size along random directions (dots, scattered vertically;
        lines: the range of 95 % of them), by the first answer token: mean gain in the refusal score of harmful
        requests, and share of them whose answer begins with a refusal. Numbers are percentiles of the guard: the share
        of random directions with a smaller value. A guard does more than a random direction if at most 5 % of them come
        up to its gain; shares have ties, which count against the guard.""",
    )


def _lines(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the label of each line and its rows; guards begin with lines of a heading, which have no rows."""
    has_datasets = table.dataset.nunique() > 1
    for key, rows in table.groupby(GUARD, sort=False, dropna=False):
        heading = _heading(dict(zip(GUARD, key, strict=True)), has_datasets)
        for line in wrapped(heading, 0.82 * page_width()).split("\n"):
            yield line, rows.iloc[:0]
        has_several = rows.groupby("modality").reference.nunique().max() > 1
        for modality in modalities_in(rows.modality):
            of_modality = rows[rows.modality == modality]
            for reference, own in of_modality.groupby("reference", sort=False, dropna=False):
                yield _label(modality, reference if has_several else None), own


def _label(modality: str, reference: str | None) -> str:
    own = {None: "", "prompt_text": ", own text"}
    return in_words(modality, "modality") + own.get(reference, f", {in_words(reference, 'reference')}")


def _heading(guard: dict, has_datasets: bool) -> str:
    part = in_words(guard["setting"], "setting").capitalize() + (f" ({guard['dataset']})" if has_datasets else "")
    parts = [f"{part}, {guard['split']}: {in_words(guard['rule'], 'rule')}"]
    parts += [f"strength {guard['strength']:g}"] if pd.notna(guard["strength"]) else []
    parts.append(f"gate {guard['gate']}")
    if pd.notna(guard["layers"]):
        parts.append(f"layers {guard['layers']}")
    if pd.notna(guard["layer"]):
        last = guard["last_layer"]
        parts.append(f"layer {guard['layer']:g}" if pd.isna(last) else f"layers {guard['layer']:g}-{last:g}")
    return ", ".join(parts)


def _draws(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.control == "random"]


def _draw(axis: Axes, line: int, rows: pd.DataFrame) -> None:
    """Draw one line: dots, their range, and the guard with its percentile."""
    draws, guard = _draws(rows), rows[rows.control.isna()]
    color = MODALITY_COLORS[rows.modality.iloc[0]]
    scatter = line + 0.6 * ((draws.seed * GOLDEN) % 1 - 0.5)
    axis.scatter(draws.value, scatter, s=2, color=color, alpha=0.35, linewidth=0)
    axis.plot(draws.value.quantile([0.025, 0.975]), [line, line], color=color, linewidth=1.2)
    for value in guard.value:
        percentile = (draws.value < value).mean()
        axis.scatter(value, line, s=42, marker="*", color="0.1", zorder=3, linewidth=0)
        # A gate that stays shut leaves every direction without effect.
        has_effect = draws.value.nunique() > 1 or (draws.value != value).any()
        axis.annotate(
            f"{100 * percentile:.3g}%" if has_effect else "no change",
            (value, line),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
        )
