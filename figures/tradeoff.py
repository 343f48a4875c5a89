"""Safety against over-refusal, defence by defence."""

import math
from collections.abc import Sequence
from string import ascii_lowercase

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from figures.style import WIDE, captioned, counted, first_judge, readable, require_columns, styled

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
"""By how a defence stands; those that are not ranked are drawn hollow."""
BROKEN = "breaks answers"
MOST_BROKEN = 0.1
"""Share of answers that are neither a refusal nor make sense, from which a defence is marked: it does not refuse."""
NOWHERE = 1.25
"""Where those are drawn whose over-refusal is not known."""
TOGETHER, LINE = 0.05, 0.062
"""How near points share a label, and how far labels are apart."""
APART = 0.006
"""Points of one panel are set so far apart, since many share a corner."""


def safety_tradeoff(table: pd.DataFrame) -> Figure:
    """Attack success against over-refusal of each defence, both with intervals: the lower left corner is best.

    A panel for each set of harmful prompts, of the first few. Over-refusal is that of the same prompts' harmless
    partners; where a set has none, that of the largest set of harmless prompts, which the axis then names; what is
    nowhere measured stands right of the line. The grey steps join ranked defences that no other beats in both. Of
    several references the one that reads the picture is drawn. A defence under which more than a tenth of the answers,
    to harmful or to harmless requests, are broken sentences is marked: they count as no attack success and no refusal.
    """
    require_columns(table, COLUMNS, "safety_tradeoff")
    rows = _drawn(first_judge(table))
    places = list(rows[rows.metric == "asr"].groupby(["dataset", "setting", "modality"], sort=False).groups)
    n_places, places = len(places), places[:MOST_PANELS]
    if not places:
        raise ValueError("safety_tradeoff found no attack success; expected sets with harmful prompts")
    names = list(dict.fromkeys(rows.defence))
    letters = dict(zip(names, ascii_lowercase, strict=False))
    colors = dict(zip(names, sns.color_palette("husl", len(names)), strict=True)) | {"unguarded": (0.15, 0.15, 0.15)}
    n_columns = min(3, len(places))
    n_lines = math.ceil(len(places) / n_columns)
    with styled():
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
    return captioned(
        figure,
        f"""Attack success against over-refusal of each defence, in {sets}, with 95 % Wilson intervals: the lower left
        corner is best. Marks that would lie on each other are set apart sideways, by at most
        {APART * len(names) / 2:.2f} from their value. Grey steps join ranked defences that no other beats in both;
        hollow marks are not ranked, or break answers. {counted(attacked, "harmful requests")}.""",
    )


def _drawn(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each defence, place and rate: bounds of guards are left out, and references that see no picture."""
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "reference", "category"])))
    keys = [*PLACE, "defence", "reference"]
    given = table[(table.metric == "coherence") & table.value.notna()]
    n_asked = table[table.metric.isin(RATES) & table.category.isna()].groupby(keys, dropna=False).n.max()
    given = given.merge(n_asked.rename("n_asked").reset_index(), on=keys, how="left")
    incoherent = given[(1 - given.value) * given.n > MOST_BROKEN * given.n_asked]
    incoherent = incoherent[keys].drop_duplicates().assign(is_broken=True)
    rows = table[table.metric.isin(RATES) & table.value.notna() & table.category.isna() & (table.reference != "oracle")]
    rows = rows.merge(incoherent, on=keys, how="left")
    rows["shown_as"] = rows.standing.fillna("ranked").mask(rows.is_broken.notna(), BROKEN)
    last = {"prompt_text": 0, "caption": 1, "prompt_text+caption": 2, "transcription": 3}
    rows = rows.assign(order=rows.reference.map(last).fillna(1)).sort_values("order", kind="stable")
    return rows.drop_duplicates([*PLACE, "defence", "metric"], keep="last").sort_index()


def _panel(axis, rows: pd.DataFrame, place: tuple[str, str, str], colors: dict, letters: dict[str, str]) -> None:
    dataset, setting, modality = place
    here = rows[(rows.dataset == dataset) & (rows.setting == setting) & (rows.modality == modality)]
    harmless, label = here[here.metric == "over_refusal_rate"], "over-refusal"
    if harmless.empty:
        harmless = _largest(rows[rows.metric == "over_refusal_rate"])
        if len(harmless):
            label = f"over-refusal on {harmless.dataset.iloc[0]}, {harmless.modality.iloc[0]}"
    shown = here[here.metric == "asr"]
    both = shown.merge(harmless, on="defence", how="left", suffixes=("", "_x"))
    _front(axis, both[both.shown_as.isin(["ranked", "baseline"]) & both.value_x.notna()])
    # The guard on top.
    both = both.sort_values("defence", key=lambda names: names == "guard", kind="stable").reset_index(drop=True)
    places = both.value_x.fillna(NOWHERE) + (both.index - len(both) / 2) * APART
    for at, row in zip(places, both.itertuples(), strict=True):
        _point(axis, row, colors[row.defence], at)
    _letters(axis, both.assign(at=places, letter=both.defence.map(letters)))
    ticks = [0, 0.5, 1]
    if both.value_x.isna().any():
        axis.axvline(NOWHERE - 0.06, color="0.6", linewidth=0.6, linestyle=(0, (2, 2)))
        ticks.append(NOWHERE)
    axis.set_xticks(ticks, [f"{tick:g}" if tick <= 1 else "not\nmeasured" for tick in ticks])
    title = readable(f"{dataset}: {setting},\n{modality}")
    axis.set(title=title, xlabel=label, xlim=(-0.08, 1.08 if len(ticks) == 3 else NOWHERE + 0.12), ylim=(-0.04, 1.04))


def _front(axis, ranked: pd.DataFrame) -> None:
    """Steps through what no other beats in both: less over-refusal costs more attack success."""
    best, steps = 2.0, []
    for row in ranked.sort_values(["value_x", "value"]).itertuples():
        if row.value < best:
            best = row.value
            steps.append((row.value_x, row.value))
    if steps:
        x, y = zip(*steps, strict=True)
        axis.step([*x, 1.0], [*y, y[-1]], where="post", color="0.75", linewidth=1.2, zorder=0)


def _largest(rows: pd.DataFrame) -> pd.DataFrame:
    groups = [some for _, some in rows.groupby(PLACE, sort=False)]
    return max(groups, key=lambda some: some.n.max()) if groups else rows


def _letters(axis, points: pd.DataFrame) -> None:
    """Which point is which, to the right of it: one label for points that lie together, none over another."""
    together = points.groupby([(points["at"] / TOGETHER).round(), (points.value / TOGETHER).round()])
    labels = together.agg(
        at=("at", "max"), value=("value", "mean"), letter=("letter", lambda own: " ".join(sorted(own)))
    )
    labels = labels.reset_index(drop=True)
    # Those without over-refusal share a column; the others stand wherever they are.
    left = labels[labels["at"] < 0.2].sort_values("value")
    for (_, row), y in zip(left.iterrows(), _apart(left.value.tolist()), strict=True):
        _label(axis, row, max(0.16, left["at"].max() + 0.06), y)
    for _, row in labels[labels["at"] >= 0.2].iterrows():
        _label(axis, row, row["at"] + 0.06, row.value)


def _apart(values: Sequence[float]) -> list[float]:
    """Rising heights, moved until none lies on another and the last is within the axis."""
    found: list[float] = []
    for value in values:
        found.append(max(value, found[-1] + LINE) if found else value)
    for i, ceiling in enumerate(1.0 - LINE * n for n in range(len(found))):
        found[-1 - i] = min(found[-1 - i], ceiling)
    return found


def _label(axis, row: pd.Series, x: float, y: float) -> None:
    axis.plot([row["at"], x], [row.value, y], color="0.7", linewidth=0.4, zorder=0)
    axis.text(x, y, f" {row.letter}", fontsize=5.5, va="center", clip_on=False)


def _point(axis, row, color, at: float) -> None:
    y = [[max(0, row.value - row.ci_low)], [max(0, row.ci_high - row.value)]]
    x = [[max(0, row.value_x - row.ci_low_x)], [max(0, row.ci_high_x - row.value_x)]]
    is_known = not pd.isna(row.value_x)
    errors = {"yerr": y} | ({"xerr": x} if is_known else {})
    axis.errorbar(at, row.value, **errors, fmt="none", ecolor=color, elinewidth=0.7, alpha=0.6)
    axis.plot(at, row.value, color=color, **_look(row.shown_as, color))


def _look(standing: str, color) -> dict:
    is_ranked = standing in ("ranked", "baseline")
    return {
        "marker": MARKERS[standing],
        "markersize": 5,
        "linestyle": "",
        "markerfacecolor": color if is_ranked else "white",
    }


def _handles(rows: pd.DataFrame, colors: dict, letters: dict[str, str]) -> list:
    """Each defence as it stands, and the mark of those that break answers somewhere."""
    handles = []
    for name, standing in rows.drop_duplicates("defence").set_index("defence").standing.items():
        note = "" if standing in ("ranked", "baseline") else f" ({standing.removesuffix(' here')})"
        look = _look(standing, colors[name])
        handles.append(
            plt.Line2D([], [], color=colors[name], label=f"{letters.get(name, '')}  {readable(name)}{note}", **look)
        )
    if (rows.shown_as == BROKEN).any():
        handles.append(plt.Line2D([], [], color="0.3", label=BROKEN, **_look(BROKEN, "0.3")))
    return handles
