"""Figures of the sweep, and of the rules that choose a layer."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.style import (
    MODALITY_COLORS,
    MODALITY_MARKERS,
    WIDE,
    by_modality,
    captioned,
    counted,
    first_judge,
    layer_ticks,
    present,
    readable,
    require_columns,
    styled,
)

PANELS = {
    "opening_refusal_rate": "harmful: begins to refuse",
    "opening_over_refusal_rate": "harmless: begins to refuse",
    "kl": "KL on harmless, nats",
}
RULE_LINES = {"substitute": "-", "ablate": ":", "add_reference": "--", "class_mean": "-."}
RULE_MARKERS, RULE_HUES = "osv^DP<>", sns.color_palette("colorblind")
OTHER_LINE = (0, (5, 1, 1, 1, 1, 1))
OF_CONFIGURATION = ["layer", "last_layer", "rule", "gate", "gate_scope", "strength", "direction_layer", "estimator"]
OF_CONFIGURATION += ["rank", "source", "token", "positions"]
TABLE = [
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
    """What was measured of every configuration, and the chosen one."""
    require_columns(table, TABLE, figure)
    if "last_layer" not in table:
        table = table.assign(last_layer=np.nan)
    marked = table[(table.setting == "finalists") & table.selection_rule.notna()]
    best = marked[~marked.selection_rule.astype(str).str.endswith("single layer")]
    ranked = table[table.setting == "ranked"]
    # Successive halving drops some on fewer prompts: they are no match for the others.
    is_whole = ranked.n.isna() | (ranked.n == ranked.groupby("metric").n.transform("max"))
    return ranked[is_whole], best.iloc[0] if len(best) else None


def layer_sweep(table: pd.DataFrame) -> Figure:
    """Refusal, over-refusal and KL by single layer, rule and modality, by the first token on validation.

    Of several strengths and gates those nearest to the chosen ones are drawn; the best single layer is marked.
    """
    ranked, _ = _ranked(table, "layer_sweep")
    marked = table[(table.setting == "finalists") & table.selection_rule.notna()]
    if "last_layer" in marked:
        marked = marked[marked.last_layer.isna()]
    chosen = marked.iloc[0] if len(marked) else None
    guarded = ranked[(ranked.defence == "guard") & ranked.last_layer.isna() & (ranked.metric != "on_front")]
    require_columns(guarded, ["value"], "layer_sweep of single layers")
    if chosen is not None:
        # One line a rule and modality: of the other axes what was chosen.
        for name in ("gate", "gate_scope", "rank", "estimator", "source", "token", "positions"):
            if name in guarded:
                guarded = guarded[guarded[name] == chosen[name]]
        if "direction_layer" in guarded:
            guarded = guarded[guarded.direction_layer == guarded.layer]
        guarded = guarded[guarded.strength.isna() | (guarded.strength == _nearest(guarded.strength, chosen.strength))]
    unguarded = ranked[ranked.defence == "unguarded"]
    with styled():
        figure, axes = plt.subplots(1, 3, figsize=(WIDE, 2.6), layout="constrained")
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            for rule in sorted(guarded.rule.unique(), reverse=True):
                rows = guarded[(guarded.metric == metric) & (guarded.rule == rule)]
                by_modality(axis, rows, line=RULE_LINES.get(rule, OTHER_LINE), label=f"{readable(rule)}, {{}}")
            before = unguarded[unguarded.metric == metric] if metric != "kl" else unguarded.iloc[:0]
            for row in before.itertuples():
                look = {"color": MODALITY_COLORS[row.modality], "linewidth": 0.8, "linestyle": (0, (1, 3))}
                axis.axhline(row.value, alpha=0.8, **look)
            if chosen is not None:
                axis.axvline(chosen.layer, color="0.35", linewidth=4, alpha=0.15)
            axis.set(title=title, xlabel="layer")
            layer_ticks(axis, guarded.layer)
            if metric != "kl":
                axis.set_ylim(-0.04, 1.04)
        handles, labels = axes[0].get_legend_handles_labels()
        handles.append(plt.Line2D([], [], color="0.4", linewidth=0.8, linestyle=(0, (1, 3))))
        labels.append("unguarded")
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        plt.close(figure)
    marked = "" if chosen is None else f" Shaded: the best single layer, {chosen.layer:.0f}."
    return captioned(
        figure,
        f"""The guard at each single layer, measured by the first answer token on validation: share of harmful and of
        harmless requests whose answer begins with a refusal, and KL from the unguarded model; bands are 95 %
        intervals. Of strengths and gates those nearest to the chosen ones.{marked} {counted(guarded)} of each
        class.""",
    )


def _nearest(strengths: pd.Series, chosen: float) -> float:
    there = strengths.dropna().unique()
    return 1.0 if pd.isna(chosen) or not len(there) else float(there[np.abs(there - chosen).argmin()])


def pareto(table: pd.DataFrame) -> Figure:
    """Every configuration: how many harmful requests begin with a refusal, against KL and refusals of harmless ones.

    Means over modalities, of over-refusal the largest. Ringed: no other beats it in all three; starred: the choice.
    """
    ranked, chosen = _ranked(table, "pareto")
    guarded = ranked[ranked.defence == "guard"]
    keys = [name for name in OF_CONFIGURATION if name in guarded]
    found = guarded.groupby([*keys, "metric"], dropna=False).value
    wide = found.mean().unstack("metric")
    wide["opening_over_refusal_rate"] = found.max().unstack("metric")["opening_over_refusal_rate"]
    is_on = wide.on_front == 1
    with styled():
        figure, axes = plt.subplots(1, 2, figsize=(WIDE, 2.8), sharey=True, layout="constrained")
        for axis, (x, label) in zip(
            axes,
            (("kl", "KL on harmless, nats"), ("opening_over_refusal_rate", "harmless: begins to refuse")),
            strict=True,
        ):
            for mark, hue, (rule, some) in zip(
                cycle(RULE_MARKERS), cycle(RULE_HUES), wide.groupby("rule"), strict=False
            ):
                look = {"color": hue, "s": 13, "alpha": 0.6, "linewidth": 0, "marker": mark}
                axis.scatter(some[x], some.opening_refusal_rate, label=rule, **look)
            on = wide[is_on]
            axis.scatter(on[x], on.opening_refusal_rate, s=34, facecolor="none", edgecolor="0.2", linewidth=0.7)
            if chosen is not None:
                mine = wide.reset_index()
                for name in keys:
                    own = chosen.get(name)
                    mine = mine[mine[name].isna() if pd.isna(own) else mine[name] == own]
                axis.scatter(mine[x], mine.opening_refusal_rate, s=90, marker="*", color="0.1", zorder=3)
                low, high = _span_of(guarded, keys, chosen)
                axis.plot([mine[x].iloc[0]] * 2, [low, high], color="0.1", linewidth=0.9)
            axis.set(xlabel=label)
            axis.xaxis.set_major_locator(MaxNLocator(4))
        axes[0].set(ylabel="harmful: begins to refuse")
        if wide.kl.max() > 1e-2:
            # Most cost next to nothing, a few break everything.
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
    return captioned(
        figure,
        f"""{len(wide)} configurations of the guard, by the first answer token on validation: harmful requests whose
        answer begins with a refusal against what it costs on harmless ones. Points are means over modalities (of
        over-refusal the largest), whose single intervals stand in the table; lines at the chosen one reach over its
        modalities' 95 % intervals. Ringed: no other is better in all three; starred: the choice. {counted(own)} of
        each class and modality.""",
    )


def _span_of(guarded: pd.DataFrame, keys: list[str], chosen: pd.Series) -> tuple[float, float]:
    """Of the chosen configuration, from the lowest to the highest bound of its modalities."""
    own = guarded[guarded.metric == "opening_refusal_rate"]
    for name in keys:
        value = chosen.get(name)
        own = own[own[name].isna() if pd.isna(value) else own[name] == value]
    return own.ci_low.min(), own.ci_high.max()


def layer_selection(table: pd.DataFrame) -> Figure:
    """What the guard does where each rule would have put it: harmful and harmless requests refused, KL; reported
    split.

    A mark a modality, with its interval; the line is their mean. Of `random`, the mean over all layers, the range over
    layers is dotted.
    """
    columns = ["setting", "selection_rule", "layer", "modality", "metric", "judge", "value", "ci_low", "ci_high", "n"]
    require_columns(table, columns, "layer_selection")
    picks = first_judge(table[table.setting == "pick"])
    require_columns(picks, ["value"], "layer_selection without picks")
    by_rule = picks[picks.metric == "refusal_rate"].groupby("selection_rule").value.mean()
    bound = [name for name in by_rule.index if name == "best_on_test"]
    names = [*by_rule.drop(bound).sort_values().index, *bound]
    panels = {"refusal_rate": "harmful refused", "over_refusal_rate": "harmless refused", "kl": "KL on harmless, nats"}
    with styled():
        figure, axes = plt.subplots(
            1, 3, figsize=(WIDE, 0.24 * len(names) + 0.9), sharey=True, layout="constrained", width_ratios=(2, 1, 1)
        )
        for axis, (metric, title) in zip(axes, panels.items(), strict=True):
            rows = picks[picks.metric == metric]
            for y, name in enumerate(names):
                mine = rows[rows.selection_rule == name]
                for i, row in enumerate(mine.itertuples()):
                    at = y + 0.2 * (i - (len(mine) - 1) / 2)
                    look = {"color": MODALITY_COLORS[row.modality], "linewidth": 0.7}
                    # Of a layer drawn at random it is no interval but the range over layers.
                    is_range = name == "random"
                    axis.plot(
                        [row.ci_low, row.ci_high], [at, at], alpha=0.7, linestyle=":" if is_range else "-", **look
                    )
                    axis.plot(row.value, at, MODALITY_MARKERS[row.modality], markersize=3, **look)
                axis.plot([mine.value.mean()] * 2, [y - 0.32, y + 0.32], color="0.15", linewidth=1.4)
            axis.set(title=title)
            # A rate of 0 everywhere still has a scale.
            right = max(0.05 if metric != "kl" else 1e-3, 1.05 * rows.ci_high.fillna(rows.value).max())
            axis.set_xlim(-0.03 * right, right)
        axes[0].set_yticks(range(len(names)), [_named(picks, name) for name in names])
        axes[0].set_xlim(-0.03, 1.03)
        drawn = present(picks.modality)
        handles = [
            plt.Line2D([], [], marker=MODALITY_MARKERS[name], linestyle="", color=MODALITY_COLORS[name], markersize=4)
            for name in drawn
        ]
        figure.legend(handles, [readable(name) for name in drawn], loc="outside lower center", ncols=len(drawn))
        plt.close(figure)
    return captioned(
        figure,
        f"""What the guard does on the reported split at the layer of each rule, picked on anchors and validation
        (`fixed`, `middle to last` and `random` look at nothing; `best on test` is no rule but a bound): harmful and
        harmless requests refused, KL on harmless ones; 95 % intervals, and dark lines at the mean over modalities.
        Dotted: the range over layers, for a layer drawn at random. {counted(picks[picks.metric == "refusal_rate"])}
        of each class.""",
    )


def _named(picks: pd.DataFrame, name: str) -> str:
    name_told, layers = readable(name), picks[picks.selection_rule == name].layer.dropna()
    if name in ("random", "middle_to_last") or layers.empty:
        return name_told
    return f"{name_told} (layer {layers.iloc[0]:.0f})"
