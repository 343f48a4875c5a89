"""The layer sweep."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from figures.page import legend_below, page_width, panels, wrapped
from figures.style import add_caption, layer_ticks, modalities_in, paper_style, require_columns, sample_size
from figures.words import in_words

PANELS = {
    "opening_refusal_rate": "harmful:\nbegins to refuse",
    "opening_over_refusal_rate": "harmless:\nbegins to refuse",
    "kl": "harmless:\nKL, nats",
}
_hues = sns.color_palette("colorblind")
RULES = {
    "substitute": (_hues[2], "o", "-"),
    "add_reference": (_hues[1], "s", "--"),
    "ablate": (_hues[0], "v", ":"),
    "class_mean": (_hues[4], "D", "-."),
}
"""Colour, marker and line of each rule."""
OTHER_RULE = ((0.45, 0.45, 0.45), "P", (0, (5, 1, 1, 1, 1, 1)))
FLOOR = 1e-5
"""Nats below which a configuration is drawn as without effect."""
CONFIGURATION = ["layer", "last_layer", "rule", "gate", "gate_scope", "strength", "direction_layer", "estimator"]
CONFIGURATION += ["rank", "source", "token", "positions"]
"""Columns that identify a configuration of the guard."""
COLUMNS = [
    "setting",
    "defence",
    "modality",
    "layer",
    "rule",
    "gate",
    "strength",
    "selection_rule",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "n",
]


def _ranked(table: pd.DataFrame, figure: str) -> tuple[pd.DataFrame, pd.Series | None]:
    """Return the ranked rows of every configuration, and a row of the chosen one."""
    require_columns(table, COLUMNS, figure)
    if "last_layer" not in table:
        table = table.assign(last_layer=np.nan)
    marked = table[(table.setting == "finalists") & table.selection_rule.notna()]
    chosen = marked[~marked.selection_rule.astype(str).str.endswith("single layer")]
    ranked = table[table.setting == "ranked"]
    # Successive halving drops some configurations on fewer prompts, so they can't be compared with the rest.
    is_complete = ranked.n.isna() | (ranked.n == ranked.groupby("metric").n.transform("max"))
    return ranked[is_complete], chosen.iloc[0] if len(chosen) else None


def layer_sweep(table: pd.DataFrame, chosen: str = "") -> Figure:
    """Draw refusal, over-refusal and KL by single layer, rule and modality, from the first token on validation.

    Starred is the chosen guard and nothing else, also if it is a window of layers. If there are several strengths and
    gates, lines are drawn for those nearest to the chosen ones.

    Args:
        table: written by `studies.layer_sweep`.
        chosen: the chosen guard in words, for the caption; its columns in the table by default.
    """
    ranked, best = _ranked(table, "layer_sweep")
    guarded = ranked[(ranked.defence == "guard") & (ranked.metric != "on_front")]
    lines = guarded[guarded.last_layer.isna()]
    require_columns(lines, ["value"], "layer_sweep of single layers")
    lines = _alike(lines, lines.iloc[0] if best is None else best)
    unguarded = ranked[ranked.defence == "unguarded"]
    names = modalities_in(lines.modality)
    with paper_style():
        options = {"sharex": True, "sharey": "row", "squeeze": False, "layout": "constrained"}
        size = (page_width(), 1.15 * len(PANELS) + 0.5)
        figure, axes = plt.subplots(len(PANELS), len(names), figsize=size, **options)
        for row, (metric, title) in zip(axes, PANELS.items(), strict=True):
            row[0].set_ylabel(title)
            for axis, name in zip(row, names, strict=True):
                own = guarded[(guarded.metric == metric) & (guarded.modality == name)]
                _rule_lines(axis, lines[(lines.metric == metric) & (lines.modality == name)])
                before = unguarded[(unguarded.metric == metric) & (unguarded.modality == name)]
                for value in before.value if metric != "kl" else ():
                    axis.axhline(value, color="0.3", linewidth=0.8, linestyle=(0, (1, 2)))
                if best is not None:
                    _draw_star(axis, own, best)
            if metric != "kl":
                drawn = pd.concat([lines, unguarded])
                top = max(0.1, min(1.0, 1.1 * drawn[drawn.metric == metric].value.max()))
                row[0].set_ylim(-0.06 * top, 1.06 * top)
                row[0].yaxis.set_major_formatter(PercentFormatter(1))
            else:
                row[0].set_ylim(bottom=0)
        for axis, name in zip(axes[0], names, strict=True):
            axis.set_title(wrapped(in_words(name, "modality"), page_width() / len(names) - 0.4))
            layer_ticks(axis)
        for axis in axes[-1]:
            axis.set_xlabel("layer")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        handles.append(plt.Line2D([], [], color="0.3", linewidth=0.8, linestyle=(0, (1, 2))))
        labels.append("unguarded")
        if best is not None:
            handles.append(plt.Line2D([], [], marker="*", color="0.1", linestyle="", markersize=8))
            labels.append("chosen")
        legend_below(figure, handles, labels)
        plt.close(figure)
    return add_caption(
        figure,
        f"""The guard at each single layer, measured by the first answer token on validation: share of harmful and of
        harmless requests whose answer begins with a refusal, and KL from the unguarded model; bands are 95 %
        intervals. Strength and gate of the lines are those nearest to the chosen ones.
        {_chosen_note(best, chosen)}{sample_size(lines)} of each class.""",
    )


def _alike(rows: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    """Keep one line per rule and modality: everything but rule and layer is as in the chosen configuration."""
    for name in ("gate", "gate_scope", "rank", "estimator", "source", "token", "positions"):
        if name in rows:
            rows = rows[rows[name] == chosen[name]]
    if "direction_layer" in rows:
        rows = rows[rows.direction_layer == rows.layer]
    return rows[rows.strength.isna() | (rows.strength == _nearest(rows.strength, chosen.strength))]


def _rule_lines(axis: Axes, rows: pd.DataFrame) -> None:
    """Draw a line with its band for each rule."""
    for rule in sorted(rows.rule.unique(), reverse=True):
        own = rows[rows.rule == rule].sort_values("layer")
        color, marker, line = RULES.get(rule, OTHER_RULE)
        style = {"color": color, "marker": marker, "linestyle": line, "linewidth": 1.2, "markersize": 3}
        axis.plot(own.layer, own.value, label=in_words(rule, "rule"), **style)
        axis.fill_between(own.layer, own.ci_low, own.ci_high, color=color, alpha=0.12, linewidth=0)


def _draw_star(axis: Axes, rows: pd.DataFrame, chosen: pd.Series) -> None:
    """Draw the chosen configuration as a star; a line spans the layers of a window."""
    own = _of_configuration(rows, [name for name in CONFIGURATION if name in rows], chosen)
    first, last = chosen.layer, chosen.layer if pd.isna(chosen.get("last_layer")) else chosen.last_layer
    value = own.value.mean()
    axis.plot([first, last], [value, value], color="0.1", linewidth=1.6)
    axis.scatter((first + last) / 2, value, s=60, marker="*", color="0.1", zorder=4, linewidth=0)


def _chosen_note(best: pd.Series | None, chosen: str) -> str:
    """Say in a caption what the star is: the guard in full."""
    if best is None:
        return ""
    if not chosen:
        last = best.get("last_layer")
        layers = f"layer {best.layer:.0f}" if pd.isna(last) else f"layers {best.layer:.0f} to {last:.0f}"
        strength = "" if pd.isna(best.strength) else f", strength {best.strength:g}"
        rule, rule_of_choice = in_words(best.rule, "rule"), in_words(best.selection_rule, "selection_rule")
        chosen = f"rule {rule}, {layers}{strength}, gate {best.gate}; chosen on validation by {rule_of_choice}"
    return f"Starred: the chosen guard ({chosen}). "


def _nearest(strengths: pd.Series, chosen: float) -> float:
    available = strengths.dropna().unique()
    return 1.0 if pd.isna(chosen) or not len(available) else float(available[np.abs(available - chosen).argmin()])


def pareto(table: pd.DataFrame, chosen: str = "") -> Figure:
    """Draw every configuration: refusals of harmful requests against KL and against refusals of harmless ones.

    Values are means over modalities, except over-refusal, of which the largest is drawn. Ringed: no other configuration
    is better in all three; starred: the chosen one.

    Args:
        table: written by `studies.layer_sweep`.
        chosen: the chosen guard in words, for the caption; its columns in the table by default.
    """
    ranked, best = _ranked(table, "pareto")
    guarded = ranked[ranked.defence == "guard"]
    keys = [name for name in CONFIGURATION if name in guarded]
    values = guarded.groupby([*keys, "metric"], dropna=False).value
    wide = values.mean().unstack("metric")
    wide["opening_over_refusal_rate"] = values.max().unstack("metric")["opening_over_refusal_rate"]
    n = guarded[guarded.metric == "opening_over_refusal_rate"].n.max()
    # Rates of few requests coincide: points are spread sideways by less than one request.
    spread = 0.0 if pd.isna(n) else 0.7 / n
    golden = np.arange(len(wide)) * 0.618034 % 1 * spread
    wide = wide.assign(kl=wide.kl.clip(lower=FLOOR), opening_over_refusal_rate=wide.opening_over_refusal_rate + golden)
    front = wide[wide.on_front == 1]
    with paper_style():
        figure, axes = panels(2, 2.2, 2.4, sharey=True)
        for axis, x in zip(axes, ("kl", "opening_over_refusal_rate"), strict=True):
            for rule, own in wide.groupby("rule"):
                color, marker, _ = RULES.get(rule, OTHER_RULE)
                style = {"color": color, "s": 16, "alpha": 0.7, "linewidth": 0, "marker": marker}
                axis.scatter(own[x], own.opening_refusal_rate, label=in_words(rule, "rule"), **style)
            ring = {"s": 42, "facecolor": "none", "edgecolor": "0.1", "linewidth": 0.8}
            axis.scatter(front[x], front.opening_refusal_rate, **ring)
            if best is not None:
                star = _of_configuration(wide.reset_index(), keys, best)
                axis.scatter(star[x], star.opening_refusal_rate, s=90, marker="*", color="0.1", zorder=3)
                axis.plot([star[x].iloc[0]] * 2, _interval_of(guarded, keys, best), color="0.1", linewidth=0.9)
            axis.yaxis.set_major_formatter(PercentFormatter(1))
        axes[0].set(ylabel="harmful: begins to refuse", xlabel="harmless: KL, nats", xscale="log")
        axes[0].set_xlim(FLOOR / 1.6, 1.6 * max(wide.kl.max(), 100 * FLOOR))
        axes[1].set_xlabel("harmless: begins to refuse")
        axes[1].set_xlim(-max(spread, 0.01), max(0.1, 1.1 * wide.opening_over_refusal_rate.max()))
        axes[1].xaxis.set_major_locator(MaxNLocator(4))
        axes[1].xaxis.set_major_formatter(PercentFormatter(1))
        handles, labels = axes[0].get_legend_handles_labels()
        handles += [
            plt.Line2D([], [], marker="o", markerfacecolor="none", markeredgecolor="0.1", linestyle=""),
            plt.Line2D([], [], marker="*", color="0.1", linestyle="", markersize=8),
        ]
        legend_below(figure, handles, [*labels, "on the front", "chosen"])
        plt.close(figure)
    own = guarded[guarded.metric == "opening_refusal_rate"]
    return add_caption(
        figure,
        f"""{len(wide)} configurations of the guard, by the first answer token on validation: harmful requests whose
        answer begins with a refusal, against the cost on harmless requests. Points are means over modalities (for
        over-refusal, the largest value); the intervals of each modality are in the table. The line through the chosen
        configuration covers the 95 % intervals of all its modalities. Ringed: no other configuration is better in all
        three. KL below {FLOOR:g} nats is drawn at {FLOOR:g}, and over-refusal is spread sideways by less than one
        request. {_chosen_note(best, chosen)}{sample_size(own)} of each class and modality.""",
    )


def _of_configuration(rows: pd.DataFrame, keys: list[str], chosen: pd.Series) -> pd.DataFrame:
    """Keep the rows that agree with the chosen one in the columns `keys`, where missing values agree."""
    for name in keys:
        value = chosen.get(name)
        rows = rows[rows[name].isna() if pd.isna(value) else rows[name] == value]
    return rows


def _interval_of(guarded: pd.DataFrame, keys: list[str], chosen: pd.Series) -> tuple[float, float]:
    """Return the lowest and the highest bound of the chosen configuration over modalities."""
    rows = _of_configuration(guarded[guarded.metric == "opening_refusal_rate"], keys, chosen)
    return rows.ci_low.min(), rows.ci_high.max()
