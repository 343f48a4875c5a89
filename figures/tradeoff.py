"""Safety against over-refusal of each defence."""

import math
from collections.abc import Sequence
from string import ascii_lowercase

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from figures.style import (
    WIDE,
    add_caption,
    first_judge,
    paper_style,
    readable,
    require_columns,
    sample_size,
    short_answers,
)

COLUMNS = "dataset setting modality defence standing judge metric value ci_low ci_high n".split()
PLACE = ["dataset", "setting", "modality"]
RATES = ("over_refusal_rate", "asr")
MOST_PANELS = 9
MARKERS = {
    "baseline": "s",
    "ranked": "o",
    "not testable here": "X",
    "bound": "^",
    "control": "v",
    "breaks answers": "P",
}
"""Markers by ranking status; defences that are not ranked are drawn hollow."""
UNTESTED = "not testable here"
BROKEN = "breaks answers"
MOST_BROKEN = 0.1
"""Share of broken answers (incoherent, and not a refusal) above which a defence is marked."""
NOT_MEASURED = 1.25
"""Horizontal position of defences whose over-refusal was not measured."""
SAME_LABEL, LABEL_HEIGHT = 0.05, 0.062
"""Distance within which points share a label, and the distance between labels."""
OFFSET = 0.006
"""Horizontal offset between the points of a panel, since many share a corner."""
REFERENCE_ORDER = {"prompt_text": 0, "caption": 1, "prompt_text+caption": 2, "transcription": 3}
"""References, from the least to the most preferred: the one with the largest number is drawn."""


def safety_tradeoff(table: pd.DataFrame) -> Figure:
    """Draw attack success against over-refusal of each defence, both with intervals: the lower left corner is best.

    There is a panel for each of the first few sets of harmful prompts. Over-refusal is measured on the same prompts'
    harmless partners, or for sets without any on the largest set of harmless prompts, which the axis then names;
    defences without any measurement of it are right of the dashed line. Grey steps join ranked defences that no other
    one beats in both. If there are several references, the one that reads the picture is drawn, and for the guard the
    prompt's own text as well (`guard_prompt_text`), which is the paper's reference. A defence is marked if it breaks
    more than a tenth of the answers to harmful or to harmless requests, because broken answers count neither as attack
    success nor as refusals.

    Args:
        table: written by `studies.defence_comparison` or `studies.benchmarks`.
    """
    require_columns(table, COLUMNS, "safety_tradeoff")
    rows = _rows_to_draw(first_judge(table))
    places = list(rows[rows.metric == "asr"].groupby(["dataset", "setting", "modality"], sort=False).groups)
    n_places, places = len(places), places[:MOST_PANELS]
    if not places:
        raise ValueError("safety_tradeoff found no attack success; expected sets with harmful prompts")
    names = list(dict.fromkeys(rows.defence))
    letters = dict(zip(names, ascii_lowercase, strict=False))
    colors = dict(zip(names, sns.color_palette("husl", len(names)), strict=True)) | {"unguarded": (0.15, 0.15, 0.15)}
    n_columns = min(3, len(places))
    n_lines = math.ceil(len(places) / n_columns)
    with paper_style():
        figure, axes = plt.subplots(
            n_lines, n_columns, figsize=(WIDE, 0.9 + 2.1 * n_lines), sharey=True, squeeze=False, layout="constrained"
        )
        for axis, place in zip(axes.flat, places, strict=False):
            _panel(axis, rows, place, colors, letters)
        for axis in axes.flat[len(places) :]:
            axis.set_visible(False)
        for line in axes:
            line[0].set_ylabel("attack success")
        figure.legend(handles=_handles(rows, colors, letters), loc="outside lower center", ncols=4)
        plt.close(figure)
    sets = (
        "each set and setting"
        if n_places <= MOST_PANELS
        else f"the first {MOST_PANELS} of {n_places} sets and settings"
    )
    attacked = rows[rows.metric == "asr"]
    return add_caption(
        figure,
        f"""Attack success against over-refusal of each defence, in {sets}, with 95 % Wilson intervals: the lower left
        corner is best. Markers that would overlap are shifted sideways, by at most {OFFSET * len(names) / 2:.2f} from
        their value. Grey steps join ranked defences that no other one beats in both; defences with hollow markers are
        not ranked (bounds, controls, and all where fewer than 10 attacks succeed unguarded), or break answers.
        {sample_size(attacked, "harmful requests")}. {short_answers(table)}""",
    )


def _rows_to_draw(table: pd.DataFrame) -> pd.DataFrame:
    """Select one row for each defence, place and rate, without oracle guards, and add how it is marked."""
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "reference", "category"])))
    is_rate = table.metric.isin(RATES) & table.category.isna()
    keys = [*PLACE, "defence", "reference"]
    # Coherence is measured on answers that are not refusals; broken ones count relative to all answers.
    coherence = table[(table.metric == "coherence") & table.value.notna()]
    n_answers = table[is_rate].groupby(keys, dropna=False).n.max()
    coherence = coherence.merge(n_answers.rename("n_answers").reset_index(), on=keys, how="left")
    broken = coherence[(1 - coherence.value) * coherence.n > MOST_BROKEN * coherence.n_answers]
    broken = broken[keys].drop_duplicates().assign(is_broken=True)
    rows = table[is_rate & table.value.notna() & (table.reference != "oracle")].merge(broken, on=keys, how="left")
    rows["marked_as"] = rows.standing.fillna("ranked").mask(rows.is_broken.notna(), BROKEN)
    is_own_text = (rows.defence == "guard") & (rows.reference == "prompt_text") & (rows.setting == "multimodal")
    rows["defence"] = rows.defence.mask(is_own_text, "guard_prompt_text")
    rows = rows.assign(order=rows.reference.map(REFERENCE_ORDER).fillna(1)).sort_values("order", kind="stable")
    return rows.drop_duplicates([*PLACE, "defence", "metric"], keep="last").sort_index()


def _panel(axis, rows: pd.DataFrame, place: tuple[str, str, str], colors: dict, letters: dict[str, str]) -> None:
    dataset, setting, modality = place
    own = rows[(rows.dataset == dataset) & (rows.setting == setting) & (rows.modality == modality)]
    harmless, label = own[own.metric == "over_refusal_rate"], "over-refusal"
    if harmless.empty:
        harmless = _largest_set(rows[rows.metric == "over_refusal_rate"])
        if len(harmless):
            label = f"over-refusal on {harmless.dataset.iloc[0]}, {harmless.modality.iloc[0]}"
    # `value` is attack success and `value_x` is over-refusal.
    both = own[own.metric == "asr"].merge(harmless, on="defence", how="left", suffixes=("", "_x"))
    _pareto_steps(axis, both[both.marked_as.isin(["ranked", "baseline"]) & both.value_x.notna()])
    # The guard is drawn last, on top.
    both = both.sort_values("defence", key=lambda names: names == "guard", kind="stable").reset_index(drop=True)
    positions = both.value_x.fillna(NOT_MEASURED) + (both.index - len(both) / 2) * OFFSET
    for x, row in zip(positions, both.itertuples(), strict=True):
        _point(axis, row, colors[row.defence], x)
    _letters(axis, both.assign(x=positions, letter=both.defence.map(letters)))
    ticks = [0, 0.5, 1]
    if both.value_x.isna().any():
        axis.axvline(NOT_MEASURED - 0.06, color="0.6", linewidth=0.6, linestyle=(0, (2, 2)))
        ticks.append(NOT_MEASURED)
    axis.set_xticks(ticks, [f"{tick:g}" if tick <= 1 else "not\nmeasured" for tick in ticks])
    right = 1.08 if len(ticks) == 3 else NOT_MEASURED + 0.12
    title = readable(f"{dataset}: {setting},\n{modality}")
    axis.set(title=title, xlabel=label, xlim=(-0.08, right), ylim=(-0.04, 1.04))


def _pareto_steps(axis, ranked: pd.DataFrame) -> None:
    """Draw steps through the defences that no other one beats in both rates."""
    best, steps = 2.0, []
    for row in ranked.sort_values(["value_x", "value"]).itertuples():
        if row.value < best:
            best = row.value
            steps.append((row.value_x, row.value))
    if steps:
        x, y = zip(*steps, strict=True)
        axis.step([*x, 1.0], [*y, y[-1]], where="post", color="0.75", linewidth=1.2, zorder=0)


def _largest_set(rows: pd.DataFrame) -> pd.DataFrame:
    groups = [group for _, group in rows.groupby(PLACE, sort=False)]
    return max(groups, key=lambda group: group.n.max()) if groups else rows


def _letters(axis, points: pd.DataFrame) -> None:
    """Label points by letters on their right: points that are close share a label, and labels do not overlap."""
    groups = points.groupby([(points.x / SAME_LABEL).round(), (points.value / SAME_LABEL).round()])
    labels = groups.agg(x=("x", "max"), value=("value", "mean"), letter=("letter", lambda own: " ".join(sorted(own))))
    labels = labels.reset_index(drop=True)
    # Labels of points with little over-refusal share a column; the others are next to their points.
    left = labels[labels.x < 0.2].sort_values("value")
    for (_, row), y in zip(left.iterrows(), _spaced(left.value.tolist()), strict=True):
        _label(axis, row, max(0.16, left.x.max() + 0.06), y)
    for _, row in labels[labels.x >= 0.2].iterrows():
        _label(axis, row, row.x + 0.06, row.value)


def _spaced(values: Sequence[float]) -> list[float]:
    """Move increasing heights apart until labels do not overlap and the last is within the axis."""
    heights: list[float] = []
    for value in values:
        heights.append(max(value, heights[-1] + LABEL_HEIGHT) if heights else value)
    for i, ceiling in enumerate(1.0 - LABEL_HEIGHT * n for n in range(len(heights))):
        heights[-1 - i] = min(heights[-1 - i], ceiling)
    return heights


def _label(axis, row: pd.Series, x: float, y: float) -> None:
    axis.plot([row.x, x], [row.value, y], color="0.7", linewidth=0.4, zorder=0)
    axis.text(x, y, f" {row.letter}", fontsize=5.5, va="center", clip_on=False)


def _point(axis, row, color, x: float) -> None:
    errors = {"yerr": [[max(0, row.value - row.ci_low)], [max(0, row.ci_high - row.value)]]}
    if not pd.isna(row.value_x):
        errors["xerr"] = [[max(0, row.value_x - row.ci_low_x)], [max(0, row.ci_high_x - row.value_x)]]
    axis.errorbar(x, row.value, **errors, fmt="none", ecolor=color, elinewidth=0.7, alpha=0.6)
    axis.plot(x, row.value, color=color, **_marker_style(row.marked_as, color))


def _marker_style(standing: str, color) -> dict:
    is_ranked = standing in ("ranked", "baseline")
    return {
        "marker": MARKERS[standing],
        "markersize": 5,
        "linestyle": "",
        "markerfacecolor": color if is_ranked else "white",
    }


def _handles(rows: pd.DataFrame, colors: dict, letters: dict[str, str]) -> list:
    """Return legend entries: each defence, with its ranking status where that is the same in every setting.

    Markers that depend on the setting have entries of their own.
    """
    handles, standings = [], rows.groupby("defence", sort=False).standing.agg(set)
    for name, own in standings.items():
        standing = next(iter(own - {UNTESTED}), "ranked")
        note = "" if standing in ("ranked", "baseline") else f" ({standing})"
        label = f"{letters.get(name, '')}  {readable(name)}{note}"
        style = _marker_style(standing, colors[name])
        handles.append(plt.Line2D([], [], color=colors[name], label=label, **style))
    for marked_as in (UNTESTED, BROKEN):
        if (rows.marked_as == marked_as).any():
            handles.append(plt.Line2D([], [], color="0.3", label=marked_as, **_marker_style(marked_as, "0.3")))
    return handles
