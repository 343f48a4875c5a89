"""Detectors of harmful requests: how well each orders them, and what carries over from set to set."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.maps import fit_cells, value_map
from figures.page import legend_below, page_width, wrapped
from figures.style import (
    MODALITY_COLORS,
    MODALITY_MARKERS,
    add_caption,
    modalities_in,
    paper_style,
    require_columns,
    require_values,
    sample_size,
)
from figures.words import in_words

FITTED_ON_ALL = "all"
"""Name in `fit_modality` of all sets together."""
RULE = "fpr_0.05"
"""Threshold that the matrix shows: it lets one of twenty harmless requests of its own set through."""
COLUMNS = ("split", "setting", "modality", "fit_modality", "detector", "reference", "metric", "value")
NO_CATEGORY = "fit_category"
SPREAD = 0.09
"""Vertical distance of the modalities of one detector."""


def detection_auroc(table: pd.DataFrame) -> Figure:
    """Draw the AUROC of each detector in each modality: fitted on text alone, and on all modalities.

    Args:
        table: written by `studies.detection`.
    """
    rows = _whole(table, "detection_auroc")
    rows = require_values(rows[(rows.metric == "auroc") & _is_plain(rows)], ["value"], "detection_auroc of auroc")
    panels = {
        "fitted on text": rows[rows.fit_modality == "text"],
        "fitted on all modalities": rows[rows.fit_modality == FITTED_ON_ALL],
        "without a fit of their own": rows[rows.fit_modality.isna()],
    }
    panels = {title: part for title, part in panels.items() if len(part)}
    if not panels:
        panels = {"fitted on each set": rows}
    names = {title: list(dict.fromkeys(map(_label, *_columns(part)))) for title, part in panels.items()}
    with paper_style():
        heights = [len(own) for own in names.values()]
        size = (page_width(), 0.36 * sum(heights) + 0.5 * len(panels) + 0.2)
        figure, axes = plt.subplots(
            len(panels), 1, figsize=size, sharex=True, squeeze=False, layout="constrained", height_ratios=heights
        )
        for axis, (title, part) in zip(axes[:, 0], panels.items(), strict=True):
            _dots(axis, part, names[title])
            axis.set(title=title)
        axes[-1, 0].set_xlabel("AUROC")
        handles = dict(
            pair[::-1] for axis in axes[:, 0] for pair in zip(*axis.get_legend_handles_labels(), strict=True)
        )
        legend_below(figure, list(handles.values()), list(handles))
        plt.close(figure)
    drawn = pd.concat(panels.values())
    return add_caption(
        figure,
        f"""AUROC of each detector by modality, with 95 % intervals over other pairs. Layers were chosen on validation
        prompts of the set that the detector was fitted on. `prompt text`: reads what the user wrote; `request text`:
        reads the picture if the request is in it, as the guard does. Dotted: chance. {sample_size(drawn)} of both
        classes in each modality.""",
    )


def _whole(table: pd.DataFrame, figure: str) -> pd.DataFrame:
    """Keep what was reported of whole sets, neither of categories nor of validation."""
    require_columns(table, [*COLUMNS, "ci_low", "ci_high", "n"], figure)
    rows = table[table.split != "validation"] if (table.split != "validation").any() else table[table.setting.notna()]
    return rows[rows.fit_category.isna()] if NO_CATEGORY in rows else rows


def _is_plain(rows: pd.DataFrame) -> pd.Series:
    return rows.setting.isin(("plain", "multimodal"))


def _columns(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    return rows.detector, rows.reference


def _label(detector: str, reference: str | float | None) -> str:
    name = in_words(detector, "detector")
    return f"{name},\n{in_words(reference, 'reference')}" if isinstance(reference, str) else name


def _dots(axis, rows: pd.DataFrame, names: list[str]) -> None:
    """Draw a line of dots per detector, one dot with its interval per modality."""
    labels = pd.Series(list(map(_label, *_columns(rows))), index=rows.index)
    modalities = modalities_in(rows.modality)
    for i, modality in enumerate(modalities):
        own = rows[rows.modality == modality].drop_duplicates(["detector", "reference"])
        places = [names.index(labels[index]) + SPREAD * (i - (len(modalities) - 1) / 2) for index in own.index]
        errors = np.clip([own.value - own.ci_low, own.ci_high - own.value], 0, None)
        style = {"color": MODALITY_COLORS[modality], "marker": MODALITY_MARKERS[modality], "linestyle": "none"}
        axis.errorbar(
            own.value, places, xerr=errors, markersize=3, elinewidth=0.8, label=in_words(modality, "modality"), **style
        )
    axis.axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))


def detection_matrix(table: pd.DataFrame) -> Figure:
    """Draw what a threshold does elsewhere: set in one modality (rows), applied in another (columns).

    Two maps per detector: harmful requests that are detected, and harmless ones. Detectors are those whose scores are
    fitted or that read the prompt itself.

    Args:
        table: written by `studies.detection`.
    """
    rows = _whole(table, "detection_matrix")
    require_columns(table, ["selection_rule"], "detection_matrix")
    rows = rows[(rows.selection_rule == RULE) & _is_plain(rows) & rows.reference.isna()]
    rows = require_values(rows, ["value", "fit_modality"], f"detection_matrix at {RULE}")
    # Sets of the user's own share modalities: the map is about the first data set.
    rows = rows[rows.dataset == rows.dataset.iloc[0]]
    detectors = list(dict.fromkeys(rows.detector))
    order = [*modalities_in(rows.fit_modality), *([FITTED_ON_ALL] if FITTED_ON_ALL in set(rows.fit_modality) else [])]
    titles = {"true_positive_rate": "harmful detected", "false_positive_rate": "harmless detected"}
    with paper_style():
        size = (page_width(), (0.15 * len(order) + 0.34) * len(detectors) + 0.5)
        figure, axes = plt.subplots(len(detectors), 2, figsize=size, squeeze=False, layout="constrained")
        for line, detector in zip(axes, detectors, strict=True):
            for axis, (metric, title) in zip(line, titles.items(), strict=True):
                cells = rows[(rows.detector == detector) & (rows.metric == metric)]
                cells = cells.assign(modality=pd.Categorical(cells.modality, modalities_in(cells.modality)))
                cells = cells.drop_duplicates(["fit_modality", "modality"])
                style = {"vmin": 0, "vmax": 1, "cmap": "cividis", "cbar": False}
                value_map(axis, cells.drop(columns=["ci_low", "ci_high"]), "fit_modality", "modality", order, **style)
                words = wrapped(f"{in_words(detector, 'detector')}: {title}", page_width() / 2 - 0.6)
                axis.set(title=words, xlabel="", ylabel="")
                axis.set_yticklabels([in_words(name, "modality") for name in order])
                axis.grid(visible=False)
        for axis in axes[:-1].flat:
            axis.set_xticklabels([])
        for axis in axes[-1]:
            axis.set_xlabel("applied in")
            names = [in_words(label.get_text(), "modality") for label in axis.get_xticklabels()]
            axis.set_xticklabels([wrapped(name, 0.3) for name in names], fontsize=7, rotation=0)
        for line in axes:
            line[0].set_ylabel("set in")
            line[1].set_yticklabels([])
        fit_cells(figure)
        plt.close(figure)
    return add_caption(
        figure,
        f"""Share of requests that each detector detects, with its layer and threshold from one modality (rows) and
        applied in another (columns). Each threshold lets at most 5 % of the harmless validation prompts of its own
        modality through. 95 % intervals are in the table. {sample_size(rows)} of each class.""",
    )
