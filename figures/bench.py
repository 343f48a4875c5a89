"""Speed and memory of the toolkit, compared with what one would otherwise write by hand."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from figures.page import page_width, panels, wrapped
from figures.style import add_caption, number_range, paper_style, require_values

SHOWN = {
    "times_as_long_as_trace": "trace",
    "scores: times as long as rows": "32 guards, scores",
    "16 tokens: times as long as rows": "32 guards, 16 tokens",
    "probes: times as long as ours": "probes",
    "first_token_times_as_long": "guard, first token",
    "each_further_token_times_as_long": "guard, each further token",
    "memory_times_as_much": "guard, memory",
}
"""Ratios in the benchmark table, with their labels. Above 1 the alternative to our code takes longer; for guards, the
guarded run takes longer than the unguarded one."""
GUARDED = ("first_token_times_as_long", "each_further_token_times_as_long", "memory_times_as_much")


def bench_ratios(table: pd.DataFrame) -> Figure:
    """Draw every ratio of the benchmark on one scale, one row each, with quartiles; at 1, both take equally long.

    Args:
        table: `results/reference/bench/bench.csv`.
    """
    require_values(
        table, ["model", "n_prompts", "pictures", "contender", "measure", "value", "q25", "q75", "n"], "bench_ratios"
    )
    rows = table[table.measure.isin(SHOWN) & (table.contender != "trace")]
    require_values(rows, ["value"], "bench_ratios of ratios")
    rows = rows.assign(order=rows.measure.map(list(SHOWN).index)).sort_values(
        ["order", "model", "n_prompts", "pictures"], kind="stable"
    )
    groups = list(rows.groupby(["order", "model", "n_prompts", "pictures"], sort=False, dropna=False))
    headings = [
        wrapped(_workload(list(SHOWN.values())[order], model, float(n_prompts), pictures), 0.5 * page_width(), 7)
        for (order, model, n_prompts, pictures), _ in groups
    ]
    n_lines = len(rows) + sum(1 + heading.count("\n") for heading in headings)
    with paper_style():
        figure, (axis,) = panels(1, page_width(), 0.15 * n_lines + 0.7)
        places, names, place = [], [], 0
        for heading, (_, ratios) in zip(headings, groups, strict=True):
            n_broken = heading.count("\n")
            places.append(place - n_broken / 2)
            names.append(heading)
            place -= 1 + n_broken
            for row in ratios.itertuples():
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
                    fontsize=7,
                )
                places.append(place)
                names.append(f"{row.contender}   ")
                place -= 1
        # Room for the numbers on the right of the dots.
        axis.margins(x=0.2 if page_width() > 5 else 0.5)
        axis.axvline(1, color="0.3", linewidth=0.8)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_yticks(places, names)
        for label in axis.get_yticklabels():
            label.set_fontweight("normal" if label.get_text().endswith("   ") else "bold")
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", visible=False)
        axis.set(
            xlabel=wrapped("times as long as ours; diamonds: with the guard, against without", 0.36 * page_width()),
            ylim=(place, 1),
        )
        plt.close(figure)
    return add_caption(
        figure,
        f"""Ratios measured in the same run, medians with quartiles, log scale: right of 1 the alternative
        takes longer. Diamonds: the cost of a guard, relative to the same run without it.
        n = {number_range(rows.n)} rounds.""",
    )


def _workload(task: str, model: str, n_prompts: float, pictures: str) -> str:
    size = f"{n_prompts:.0f} prompts" if task != "probes" else f"{n_prompts:.0f} rows, {model}"
    with_pictures = f", {pictures} picture" if pictures == "one shared" else f", pictures {pictures}"
    return (
        f"{task}: {size}"
        + (with_pictures if pictures != "none" else "")
        + (", built-in" if model == "built-in" else "")
    )
