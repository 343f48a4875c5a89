"""Attack success model by model: in full, and the headline."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.defence import ROW_HEIGHT, defence_arms, draw_maps, label_height, least_map, with_places
from figures.maps import fit_cells
from figures.page import legend_below, page_width, panels, wrapped
from figures.style import add_caption, modalities_in, paper_style, require_columns, require_values, sample_size
from figures.words import in_words

SHOWN = ("unguarded", "guard", "own_text", "gate_refuser")
"""Arms that are drawn, without the rivals: what happens without a guard, with it, and with its gate alone."""
_hues = sns.color_palette("colorblind")
BARS = {
    "unguarded": ("no guard", "0.55"),
    "text_verdict": ("baseline: refuse if the text alone is refused", _hues[9]),
    "guard": ("guard", _hues[2]),
}
"""Arms of the headline, with labels and colours."""
LEAST_BAR = 0.012
"""Height at which a bar is drawn that would not be seen."""


def attack_success_by_model(table: pd.DataFrame) -> Figure:
    """Write attack success and over-refusal without a guard, with it, and with its gate alone, model by model.

    Args:
        table: rows of `defence.csv` of several runs, with the name of the run in the column `model`.

    Raises:
        ValueError: columns that are missing, or nothing to draw.
    """
    rows, attacked = _arms_of_models(table, SHOWN, "attack_success_by_model")
    models = list(dict.fromkeys(rows.model))
    by_model = {model: with_places(rows[rows.model == model].assign(dataset="")) for model in models}
    names = {model: list(dict.fromkeys(own.place)) for model, own in by_model.items()}
    arms = [arm for arm in SHOWN if arm in set(rows.arm)]
    with paper_style():
        height = ROW_HEIGHT * len(arms) + max(map(label_height, names.values())) + 0.4
        figure, axes = panels(2 * len(models), max(least_map(max(names.values(), key=len)), page_width() / 2), height)
        for i, model in enumerate(models):
            own = axes[2 * i : 2 * i + 2]
            draw_maps(own, by_model[model], arms, names[model])
            for axis in own:
                axis.set_title(f"{wrapped(model, page_width() / 2 - 0.8)}:\n{axis.get_title()}")
        fit_cells(figure)
        plt.close(figure)
    return add_caption(
        figure,
        f"""Attack success on harmful requests and over-refusal on harmless ones, model by model, in per cent; intervals
        are in the tables of the models: without a guard, with the one that validation chose on that model (where the
        text is in the picture, it reads a transcription, or the prompt's own text), and refused wherever its gate
        opens. {sample_size(attacked)} of each class.""",
    )


def headline(table: pd.DataFrame) -> Figure:
    """Draw three bars in each modality, model by model: harmful requests answered; and at the end what that costs.

    Args:
        table: rows of `defence.csv` of several runs, with the name of the run in the column `model`.

    Raises:
        ValueError: columns that are missing, or nothing to draw.
    """
    rows, attacked = _arms_of_models(table, BARS, "headline")
    # Jailbreaks are a setting of their own: the headline compares pictures.
    rows = rows[rows.metric.isin(["asr", "over_refusal_rate"]) & (rows.setting != "jailbreak")]
    require_values(rows[rows.metric == "asr"], ["value"], "headline of attacks")
    models = list(dict.fromkeys(rows.model))
    with paper_style():
        figure, axes = panels(len(models), 2.6, 2.4, sharey=True)
        for axis, model in zip(axes, models, strict=True):
            width = page_width() / min(len(models), max(1, int(page_width() / 2.6)))
            _bars(axis, rows[rows.model == model], width)
            axis.set_title(wrapped(in_words(model, "model"), width - 0.4), fontweight="bold")
        for axis in axes:
            axis.set(ylim=(0, 1.16), yticks=[0, 0.5, 1])
            axis.yaxis.set_major_formatter(PercentFormatter(1))
            axis.tick_params(labelleft=True)
        axes[0].set_ylabel("harmful answered")
        legend_below(figure, *axes[0].get_legend_handles_labels())
        plt.close(figure)
    return add_caption(
        figure,
        f"""Harmful requests that are answered, by how the request reaches the model, and behind the line harmless
        requests that are refused, with the first picture; lower is better on both sides. Without a guard;
        with a refusal wherever the model refuses the request's text alone, which costs a second answer; and
        with the guard that validation chose on that model. 95 % Wilson intervals. Inside a picture, both
        read the model's own transcription. {sample_size(attacked)} of each class; bars of 0 keep a foot.""",
    )


def _bars(axis: Axes, rows: pd.DataFrame, width: float) -> None:
    """Draw the bars of one model, each with its percentage above: attack success, and over-refusal at the end."""
    attacks, refusals = (rows[rows.metric == metric] for metric in ("asr", "over_refusal_rate"))
    modalities = modalities_in(attacks.modality)
    names = [in_words(name, "modality") for name in modalities]
    with_picture = [name for name in modalities if name != "text"] or modalities
    for j, (arm, (label, color)) in enumerate(BARS.items()):
        own = attacks[attacks.arm == arm].set_index("modality").reindex(modalities)
        cost = refusals[refusals.arm == arm].set_index("modality").reindex(with_picture[:1])
        own = pd.concat([own, cost])
        x = np.arange(len(own)) + 0.32 * (j - 1)
        # Bars of height 0 keep a foot in their colour.
        axis.bar(x, own.value.clip(lower=LEAST_BAR), 0.3, color=color, label=label)
        errors = np.clip([own.value - own.ci_low, own.ci_high - own.value], 0, None)
        axis.errorbar(x, own.value, yerr=errors, fmt="none", ecolor="0.25", elinewidth=0.7)
        for place, value, high in zip(x, own.value, own.ci_high, strict=True):
            if pd.notna(value):
                number = axis.text(place, high + 0.02, f"{100 * value:.0f}", ha="center", va="bottom", fontsize=7)
                number.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.2})
    axis.margins(x=0.01)
    axis.axvline(len(names) - 0.5, color="0.6", linewidth=0.7, linestyle=":")
    names.append("harmless refused")
    axis.set_xticks(range(len(names)), [wrapped(name, width / len(names) - 0.15) for name in names])
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="x", visible=False)


def _arms_of_models(table: pd.DataFrame, arms, figure: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of these arms in all models, and all rows of attack success."""
    require_columns(table, ["model"], figure)
    rows, attacked = defence_arms(table.assign(dataset=table.model), figure)
    rows = rows[rows.arm.isin(list(arms))]
    if rows.empty:
        raise ValueError(f"{figure} found none of {', '.join(arms)}")
    return rows, attacked
