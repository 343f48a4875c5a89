"""The layer sweep, and the rules that choose a layer."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.style import (
    MODALITY_COLORS,
    MODALITY_MARKERS,
    WIDE,
    add_caption,
    by_modality,
    first_judge,
    layer_ticks,
    modalities_in,
    paper_style,
    readable,
    require_columns,
    sample_size,
)

PANELS = {
    "opening_refusal_rate": "harmful: begins to refuse",
    "opening_over_refusal_rate": "harmless: begins to refuse",
    "kl": "KL on harmless, nats",
}
RULE_LINES = {"substitute": "-", "ablate": ":", "add_reference": "--", "class_mean": "-."}
RULE_MARKERS, RULE_HUES = "osv^DP<>", sns.color_palette("colorblind")
OTHER_LINE = (0, (5, 1, 1, 1, 1, 1))
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
    with paper_style():
        figure, axes = plt.subplots(1, 3, figsize=(WIDE, 2.6), layout="constrained")
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            for rule in sorted(lines.rule.unique(), reverse=True):
                rows = lines[(lines.metric == metric) & (lines.rule == rule)]
                by_modality(axis, rows, line=RULE_LINES.get(rule, OTHER_LINE), label=f"{readable(rule)}, {{}}")
            before = unguarded[unguarded.metric == metric] if metric != "kl" else unguarded.iloc[:0]
            for row in before.itertuples():
                style = {"color": MODALITY_COLORS[row.modality], "linewidth": 0.8, "linestyle": (0, (1, 3))}
                axis.axhline(row.value, alpha=0.8, **style)
            if best is not None:
                _draw_star(axis, guarded[guarded.metric == metric], best)
            axis.set(title=title, xlabel="layer")
            layer_ticks(axis, lines.layer)
            if metric != "kl":
                axis.set_ylim(-0.04, 1.04)
        handles, labels = axes[0].get_legend_handles_labels()
        handles.append(plt.Line2D([], [], color="0.4", linewidth=0.8, linestyle=(0, (1, 3))))
        labels.append("unguarded")
        if best is not None:
            handles.append(plt.Line2D([], [], marker="*", color="0.1", linestyle="", markersize=8))
            labels.append("chosen")
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        plt.close(figure)
    return add_caption(
        figure,
        f"""The guard at each single layer, measured by the first answer token on validation: share of harmful and of
        harmless requests whose answer begins with a refusal, and KL from the unguarded model; bands are 95 %
        intervals. Strength and gate of the lines are those nearest to the chosen ones.
        {_chosen_note(best, chosen)}{"" if best is None else "The star is at its mean over modalities. "}
        {sample_size(lines)} of each class.""",
    )


def _alike(rows: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    """Keep one line per rule and modality: everything but rule and layer is as in the chosen configuration."""
    for name in ("gate", "gate_scope", "rank", "estimator", "source", "token", "positions"):
        if name in rows:
            rows = rows[rows[name] == chosen[name]]
    if "direction_layer" in rows:
        rows = rows[rows.direction_layer == rows.layer]
    return rows[rows.strength.isna() | (rows.strength == _nearest(rows.strength, chosen.strength))]


def _draw_star(axis: Axes, rows: pd.DataFrame, chosen: pd.Series) -> None:
    """Draw the chosen configuration as a star at its mean over modalities; a line spans the layers of a window."""
    own = _of_configuration(rows, [name for name in CONFIGURATION if name in rows], chosen)
    first, last = chosen.layer, chosen.layer if pd.isna(chosen.get("last_layer")) else chosen.last_layer
    value = own.value.mean()
    axis.plot([first, last], [value, value], color="0.1", linewidth=1.6)
    axis.scatter((first + last) / 2, value, s=70, marker="*", color="0.1", zorder=4, linewidth=0)


def _chosen_note(best: pd.Series | None, chosen: str) -> str:
    """Say in a caption what the star is: the guard in full."""
    if best is None:
        return ""
    if not chosen:
        last = best.get("last_layer")
        layers = f"layer {best.layer:.0f}" if pd.isna(last) else f"layers {best.layer:.0f} to {last:.0f}"
        strength = "" if pd.isna(best.strength) else f", strength {best.strength:g}"
        rule_of_choice = readable(best.selection_rule)
        chosen = f"rule {best.rule}, {layers}{strength}, gate {best.gate}; chosen on validation by {rule_of_choice}"
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
    front = wide[wide.on_front == 1]
    with paper_style():
        figure, axes = plt.subplots(1, 2, figsize=(WIDE, 2.8), sharey=True, layout="constrained")
        for axis, (x, label) in zip(
            axes,
            (("kl", "KL on harmless, nats"), ("opening_over_refusal_rate", "harmless: begins to refuse")),
            strict=True,
        ):
            for marker, hue, (rule, own) in zip(
                cycle(RULE_MARKERS), cycle(RULE_HUES), wide.groupby("rule"), strict=False
            ):
                style = {"color": hue, "s": 13, "alpha": 0.6, "linewidth": 0, "marker": marker}
                axis.scatter(own[x], own.opening_refusal_rate, label=rule, **style)
            ring = {"s": 34, "facecolor": "none", "edgecolor": "0.2", "linewidth": 0.7}
            axis.scatter(front[x], front.opening_refusal_rate, **ring)
            if best is not None:
                star = _of_configuration(wide.reset_index(), keys, best)
                axis.scatter(star[x], star.opening_refusal_rate, s=90, marker="*", color="0.1", zorder=3)
                axis.plot([star[x].iloc[0]] * 2, _interval_of(guarded, keys, best), color="0.1", linewidth=0.9)
            axis.set(xlabel=label)
            axis.xaxis.set_major_locator(MaxNLocator(4))
        axes[0].set(ylabel="harmful: begins to refuse")
        if wide.kl.max() > 1e-2:
            # Most configurations cost next to nothing, a few break everything.
            axes[0].set_xscale("symlog", linthresh=1e-3)
            axes[0].set_xlim(left=-1e-4)
        axes[1].set_xlim(-0.003, max(0.05, 1.05 * wide.opening_over_refusal_rate.max()))
        handles, labels = axes[0].get_legend_handles_labels()
        handles += [
            plt.Line2D([], [], marker="o", markerfacecolor="none", markeredgecolor="0.2", linestyle=""),
            plt.Line2D([], [], marker="*", color="0.1", linestyle="", markersize=8),
        ]
        labels = [readable(text) for text in labels] + ["on the front", "chosen"]
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        plt.close(figure)
    own = guarded[guarded.metric == "opening_refusal_rate"]
    return add_caption(
        figure,
        f"""{len(wide)} configurations of the guard, by the first answer token on validation: harmful requests whose
        answer begins with a refusal, against the cost on harmless requests. Points are means over modalities (for
        over-refusal, the largest value); the intervals of each modality are in the table. The line through the chosen
        configuration covers the 95 % intervals of all its modalities. Ringed: no other configuration is better in all
        three. {_chosen_note(best, chosen)}{sample_size(own)} of each class and modality.""",
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


def layer_selection(table: pd.DataFrame) -> Figure:
    """Draw what the guard does on the reported split at the layer that each rule picks: refusals and KL.

    Each modality has a marker with its interval; the line is their mean. The rule `random` is the mean over all layers,
    with their range dotted.

    Args:
        table: written by `studies.layer_selection`.
    """
    columns = ["setting", "selection_rule", "layer", "modality", "metric", "judge", "value", "ci_low", "ci_high", "n"]
    require_columns(table, columns, "layer_selection")
    picks = first_judge(table[table.setting == "pick"])
    require_columns(picks, ["value"], "layer_selection without picks")
    by_rule = picks[picks.metric == "refusal_rate"].groupby("selection_rule").value.mean()
    bounds = [name for name in by_rule.index if name == "best_on_test"]
    names = [*by_rule.drop(bounds).sort_values().index, *bounds]
    panels = {"refusal_rate": "harmful refused", "over_refusal_rate": "harmless refused", "kl": "KL on harmless, nats"}
    with paper_style():
        figure, axes = plt.subplots(
            1, 3, figsize=(WIDE, 0.24 * len(names) + 0.9), sharey=True, layout="constrained", width_ratios=(2, 1, 1)
        )
        for axis, (metric, title) in zip(axes, panels.items(), strict=True):
            rows = picks[picks.metric == metric]
            for y, name in enumerate(names):
                own = rows[rows.selection_rule == name]
                for i, row in enumerate(own.itertuples()):
                    at = y + 0.2 * (i - (len(own) - 1) / 2)
                    style = {"color": MODALITY_COLORS[row.modality], "linewidth": 0.7}
                    # For a layer drawn at random this is not an interval but the range over layers.
                    line = ":" if name == "random" else "-"
                    axis.plot([row.ci_low, row.ci_high], [at, at], alpha=0.7, linestyle=line, **style)
                    axis.plot(row.value, at, MODALITY_MARKERS[row.modality], markersize=3, **style)
                axis.plot([own.value.mean()] * 2, [y - 0.32, y + 0.32], color="0.15", linewidth=1.4)
            axis.set(title=title)
            # Even rates of 0 everywhere need a scale.
            right = max(0.05 if metric != "kl" else 1e-3, 1.05 * rows.ci_high.fillna(rows.value).max())
            axis.set_xlim(-0.03 * right, right)
        axes[0].set_yticks(range(len(names)), [_rule_label(picks, name) for name in names])
        axes[0].set_xlim(-0.03, 1.03)
        modalities = modalities_in(picks.modality)
        handles = [
            plt.Line2D([], [], marker=MODALITY_MARKERS[name], linestyle="", color=MODALITY_COLORS[name], markersize=4)
            for name in modalities
        ]
        labels = [readable(name) for name in modalities]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(modalities))
        plt.close(figure)
    return add_caption(
        figure,
        f"""Effect of the guard on the reported split at the layer that each rule picks on anchors and validation
        (`fixed`, `middle to last` and `random` use no data; `best on test` is not a rule but a bound): harmful and
        harmless requests refused, and KL on harmless ones; 95 % intervals, and dark lines at the mean over modalities.
        Dotted: the range over layers, for a layer drawn at random. {sample_size(picks[picks.metric == "refusal_rate"])}
        of each class.""",
    )


def _rule_label(picks: pd.DataFrame, name: str) -> str:
    label, layers = readable(name), picks[picks.selection_rule == name].layer.dropna()
    if name in ("random", "middle_to_last") or layers.empty:
        return label
    return f"{label} (layer {layers.iloc[0]:.0f})"
