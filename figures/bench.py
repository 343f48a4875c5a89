"""What the toolkit's ways cost beside what one would write instead."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from figures.style import WIDE, captioned, filled, span, styled

SHOWN = {
    "times_as_long_as_trace": "trace",
    "scores: times as long as rows": "32 guards, scores",
    "16 tokens: times as long as rows": "32 guards, 16 tokens",
    "probes: times as long as ours": "probes",
    "first_token_times_as_long": "guard, first token",
    "each_further_token_times_as_long": "guard, each further token",
    "memory_times_as_much": "guard, memory",
}
"""Ratios of the bench: what was measured. Above 1, what is held against ours takes longer; of a guard it is the
guard."""
GUARDED = ("first_token_times_as_long", "each_further_token_times_as_long", "memory_times_as_much")


def bench_ratios(table: pd.DataFrame) -> Figure:
    """Every ratio of the bench on one scale, a row each, with quartiles; 1 is as long as ours.

    Args:
        table: `results/reference/bench/bench.csv`.
    """
    filled(
        table, ["model", "n_prompts", "pictures", "contender", "measure", "value", "q25", "q75", "n"], "bench_ratios"
    )
    rows = table[table.measure.isin(SHOWN) & (table.contender != "trace")]
    filled(rows, ["value"], "bench_ratios of ratios")
    rows = rows.assign(order=rows.measure.map(list(SHOWN).index)).sort_values(
        ["order", "model", "n_prompts", "pictures"], kind="stable"
    )
    groups = list(rows.groupby(["order", "model", "n_prompts", "pictures"], sort=False, dropna=False))
    n_lines = len(rows) + len(groups)
    with styled():
        figure, axis = plt.subplots(figsize=(WIDE, 0.145 * n_lines + 0.7), layout="constrained")
        places, names, place = [], [], 0
        for (order, model, n_prompts, pictures), some in groups:
            places.append(place)
            names.append(_work(list(SHOWN.values())[order], model, float(n_prompts), pictures))
            place -= 1
            for row in some.itertuples():
                is_cost = row.measure in GUARDED
                color = "0.15" if is_cost else (0.0, 0.45, 0.7)
                axis.plot([row.q25, row.q75], [place, place], color=color, linewidth=1.6, alpha=0.5)
                axis.plot(row.value, place, "D" if is_cost else "o", color=color, markersize=3.5)
                axis.annotate(
                    f"{row.value:.3g}",
                    (row.q75, place),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=6,
                )
                places.append(place)
                names.append(f"{row.contender}   ")
                place -= 1
        axis.axvline(1, color="0.3", linewidth=0.8)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_yticks(places, names, fontsize=6)
        for label in axis.get_yticklabels():
            label.set_fontweight("normal" if label.get_text().endswith("   ") else "bold")
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", visible=False)
        axis.set(xlabel="times as long as ours (diamonds: the guard, times as much as without it)", ylim=(place, 1))
        plt.close(figure)
    return captioned(
        figure,
        f"""Ratios measured side by side in one run, medians with quartiles, log scale: right of 1 the alternative
        takes longer. Diamonds: what a guard costs, times as much as the same without it. n = {span(rows.n)} rounds.""",
    )


def _work(what: str, model: str, n_prompts: float, pictures: str) -> str:
    told = f"{n_prompts:.0f} prompts" if what != "probes" else f"{n_prompts:.0f} rows, {model}"
    with_pictures = f", {pictures} picture" if pictures == "one shared" else f", pictures {pictures}"
    return (
        f"{what}: {told}"
        + (with_pictures if pictures != "none" else "")
        + (", built-in" if model == "built-in" else "")
    )
