"""Attack success and over-refusal in every way of answering, without and with the guard."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.page import legend_below, page_width, wrapped
from figures.style import add_caption, first_judge, paper_style, require_columns, sample_size
from figures.words import in_words

COLUMNS = "setting modality defence category judge metric value ci_low ci_high n".split()
METRICS = {"asr": "attacks that succeed", "over_refusal_rate": "harmless refused"}
STYLES = {
    "unguarded": {"color": "0.25", "marker": "s", "markerfacecolor": "white"},
    "guard": {"color": "#0072B2", "marker": "o"},
}
"""Markers of the defences, which differ in shape as well as in colour."""
OFFSETS = {"unguarded": -0.16, "guard": 0.16}
ROW, LABELS = 0.16, 1.5
"""Height of a setting, and width of the settings' names, in inches."""
WIDE = 5
"""Width of a page in inches that has room for a column for each modality."""
TOO_FEW = 0.5
"""Share of coherent answers below which a rate says little: answers fall apart, so hardly any can be a success."""


def stress_map(table: pd.DataFrame) -> Figure:
    """Draw a row for each way of answering, and a panel for each modality and metric, with 95 % intervals.

    Args:
        table: written by `studies.stress`.

    Raises:
        ValueError: columns that are missing, or no attack success.
    """
    require_columns(table, COLUMNS, "stress_map")
    rows = first_judge(table)
    rows = rows[rows.defence.isin(STYLES) & rows.value.notna()]
    settings = list(dict.fromkeys(rows[rows.metric == "asr"].setting))
    modalities = list(dict.fromkeys(rows.modality))
    if not settings:
        raise ValueError("stress_map found no attack success; expected rows of studies.stress")
    garbled = _garbled(rows)
    places = [(metric, modality) for metric in METRICS for modality in modalities]
    n_columns = len(modalities) if page_width() >= WIDE else len(METRICS)
    if n_columns == len(METRICS):
        places.sort(key=lambda place: modalities.index(place[1]))
    n_lines = len(places) // n_columns
    with paper_style():
        size = (page_width(), 0.6 + n_lines * (0.45 + ROW * len(settings)))
        figure, axes = plt.subplots(
            n_lines, n_columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        for axis, (metric, modality) in zip(axes.flat, places, strict=True):
            own = rows[(rows.metric == metric) & (rows.modality == modality)]
            _panel(axis, own, settings, [place for place, name in garbled if name == modality])
            title = f"{in_words(modality, 'modality')}: {METRICS[metric]}"
            axis.set(title=wrapped(title, (page_width() - LABELS) / n_columns), xlim=(-0.04, 1.04), xticks=(0, 0.5, 1))
            axis.xaxis.set_major_formatter(PercentFormatter(1, 0))
        axes[0, 0].set_yticks(range(len(settings)), settings)
        axes[0, 0].invert_yaxis()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        legend_below(figure, handles, [in_words(label, "defence") for label in labels])
        plt.close(figure)
    return add_caption(
        figure,
        f"""What other ways of answering do to attack success and over-refusal, without and with the guard, which was
        chosen for greedy short answers; bars are 95 % intervals, {sample_size(rows)}. Shaded: fewer than half of the
        unguarded answers that are not refusals are coherent there, so that few can be successes.""",
    )


def _garbled(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the settings and modalities in which unguarded answers to harmful requests fall apart."""
    own = rows[(rows.metric == "coherence") & (rows.defence == "unguarded") & (rows.category == "harmful")]
    own = own[own.value < TOO_FEW]
    return list(zip(own.setting, own.modality, strict=True))


def _panel(axis: Axes, rows: pd.DataFrame, settings: list[str], garbled: list[str]) -> None:
    for name in garbled:
        place = settings.index(name)
        axis.axhspan(place - 0.5, place + 0.5, color="0.9", zorder=0)
    for name, style in STYLES.items():
        own = rows[rows.defence == name]
        places = own.setting.map(settings.index) + OFFSETS[name]
        errors = np.clip([own.value - own.ci_low, own.ci_high - own.value], 0, None)
        axis.errorbar(own.value, places, xerr=errors, label=name, linestyle="", markersize=3, elinewidth=0.7, **style)
    axis.grid(axis="x", linewidth=0.4)
