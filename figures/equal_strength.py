"""Attack success of steering methods against how far they move the model."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.page import legend_below, panels
from figures.style import add_caption, first_judge, modalities_in, paper_style, require_columns, sample_size
from figures.words import in_words

COLUMNS = "setting split modality defence judge metric value ci_low ci_high n".split()
OWN_BEST = "own best"
LEAST_KL = 1e-3
"""Smaller KL are drawn here, in nats."""


def equal_strength(table: pd.DataFrame) -> Figure:
    """Draw attack success against KL, a line a method and a panel a modality: the lower line stops more at equal cost.

    Args:
        table: written by `studies.equal_strength`.

    Raises:
        ValueError: columns are missing, or no attack success was measured.
    """
    require_columns(table, COLUMNS, "equal_strength")
    rows = first_judge(table)
    attacked = rows[(rows.metric == "asr") & rows.value.notna()]
    if attacked.empty:
        raise ValueError("equal_strength found no attack success; expected harmful prompts")
    kl = rows[(rows.metric == "kl_p95") & (rows.split == attacked.split.iloc[0]) & (rows.n > 0)]
    points = attacked.merge(kl[["defence", "setting", "value"]], on=["defence", "setting"], suffixes=("", "_kl"))
    points = points.assign(kl=points.value_kl.clip(lower=LEAST_KL)).sort_values("kl", kind="stable")
    modalities, names = modalities_in(attacked.modality), list(dict.fromkeys(attacked.defence))
    names = [name for name in names if name != "unguarded"]
    colors = dict(zip(names, sns.color_palette("husl", len(names)), strict=True))
    with paper_style():
        figure, axes = panels(len(modalities), 1.7, 2.1, sharey=True)
        for axis, modality in zip(axes, modalities, strict=True):
            _panel(axis, points[points.modality == modality], colors)
            plain = attacked[(attacked.modality == modality) & (attacked.defence == "unguarded")]
            axis.axhline(plain.value.iloc[0], color="0.3", linewidth=0.8, linestyle=(0, (4, 2)), label="unguarded")
            axis.set(title=in_words(modality, "modality"), xscale="log", xlabel="KL, nats", ylim=(-0.04, 1.04))
            axis.yaxis.set_major_formatter(PercentFormatter(1, 0))
            if axis.get_subplotspec().is_first_col():
                axis.set_ylabel("attacks that succeed")
        handles = {
            label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        legend_below(figure, list(handles.values()), [in_words(name, "defence") for name in handles])
        plt.close(figure)
    return add_caption(
        figure,
        f"""Attack success against the KL from the unguarded model, its 95th percentile over the first tokens of answers
        to harmless prompts of the {attacked.split.iloc[0]} split, with 95 % Wilson intervals. A line joins a method's
        own best (large marker) and the strengths that reach a common KL on validation, as far as it can reach them; the
        lower line stops more at equal cost. KL below {LEAST_KL:g} nats is drawn there.
        {sample_size(attacked, "harmful requests")}.""",
    )


def _panel(axis, points: pd.DataFrame, colors: dict) -> None:
    for name, own in points.groupby("defence", sort=False):
        axis.plot(own.kl, own.value, color=colors[name], linewidth=0.9, alpha=0.8)
        for is_best, size, label in ((True, 6, name), (False, 3, None)):
            part = own[(own.setting == OWN_BEST) == is_best]
            errors = (part.value - part.ci_low).clip(lower=0), (part.ci_high - part.value).clip(lower=0)
            axis.errorbar(
                part.kl, part.value, errors, fmt="o", color=colors[name], markersize=size, elinewidth=0.5, label=label
            )
