"""Attack success against the queries that an attacker spends, for each defence."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.page import legend_below, panels, wrapped
from figures.style import add_caption, first_judge, paper_style, require_columns, sample_size
from figures.words import in_words

COLUMNS = "setting defence objective queries judge metric value ci_low ci_high n".split()
NO_ATTACK = "no_attack"
OWN, TRANSFERRED = "own", "transferred"
MARKERS = "osv^DPX*<>dph"
OFFSET = 0.006
"""Horizontal offset between the points of a panel, as a share of its width, since many lie on each other."""


def attack_curves(table: pd.DataFrame) -> Figure:
    """Draw attack success against queries spent, a line a defence and a panel an attack, with Wilson intervals.

    Lines are attacks through the whole defence, whose attacker knows it; hollow marks at the right are what transfers
    from the unguarded model. The legend holds each defence's over-refusal without an attack.

    Args:
        table: written by `studies.adaptive`.

    Raises:
        ValueError: columns that are missing, or no attack.
    """
    require_columns(table, COLUMNS, "attack_curves")
    rows = first_judge(table)
    attacked = rows[(rows.metric == "asr") & (rows.setting != NO_ATTACK)]
    attacks = list(dict.fromkeys(attacked.setting))
    if not attacks:
        raise ValueError("attack_curves found no attack; expected rows of studies.adaptive")
    names = list(dict.fromkeys(attacked.defence))
    colors = dict(zip(names, sns.color_palette("husl", len(names)), strict=True)) | {"unguarded": (0.15, 0.15, 0.15)}
    with paper_style():
        figure, axes = panels(len(attacks), 2.5, 2.3, sharey=True)
        for axis, attack in zip(axes, attacks, strict=True):
            _panel(axis, attacked[attacked.setting == attack], names, colors)
            axis.set(title=wrapped(in_words(attack, "setting"), 2.2), xlabel="queries spent", ylim=(-0.03, 1.03))
            axis.yaxis.set_major_formatter(PercentFormatter(1, 0))
            if axis.get_subplotspec().is_first_col():
                axis.set_ylabel("attacks that succeed")
        handles, labels = axes[0].get_legend_handles_labels()
        costs = _over_refusal(rows)
        words = [in_words(label, "defence") for label in labels]
        labels = [
            f"{word} ({costs[label]:.0%})" if label in costs else word
            for label, word in zip(labels, words, strict=True)
        ]
        legend_below(figure, handles, labels)
        plt.close(figure)
    return add_caption(
        figure,
        f"""Attack success on requests that no search of a universal input has seen, against the queries that an
        attacker has spent on each defence, which it knows; bars are 95 % Wilson intervals, {sample_size(attacked)}.
        A query is one candidate. Hollow marks at the right: what was found on the unguarded model alone. In brackets:
        over-refusal of the defence without an attack.""",
    )


def _panel(axis: Axes, rows: pd.DataFrame, names: list[str], colors: dict) -> None:
    """Draw one attack: a line for each defence, and what transfers to it."""
    last = rows.queries.max()
    for i, name in enumerate(names):
        own = rows[(rows.defence == name) & (rows.objective == OWN)].sort_values("queries")
        shift = (i - len(names) / 2) * OFFSET * last
        errors = (own.value - own.ci_low, own.ci_high - own.value)
        style = {"color": colors[name], "marker": MARKERS[i % len(MARKERS)], "markersize": 3, "linewidth": 1}
        axis.errorbar(own.queries + shift, own.value, errors, label=name, elinewidth=0.5, **style)
        moved = rows[(rows.defence == name) & (rows.objective == TRANSFERRED) & (rows.queries > 0)]
        hollow = style | {"linestyle": "", "markerfacecolor": "white", "markersize": 4}
        axis.plot(moved.queries * 1.08 + shift, moved.value, **hollow)


def _over_refusal(rows: pd.DataFrame) -> dict[str, float]:
    own = rows[(rows.metric == "over_refusal_rate") & (rows.setting == NO_ATTACK)]
    return dict(zip(own.defence, own.value, strict=True))
