"""Safety against over-refusal of each defence."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.page import legend_below, page_width, wrapped
from figures.style import add_caption, first_judge, paper_style, require_columns, sample_size, short_answers
from figures.words import in_words, place_in_words

COLUMNS = "dataset setting modality defence standing judge metric value ci_low ci_high n".split()
PLACE = ["dataset", "setting", "modality"]
_hues = sns.color_palette("colorblind")
RATES = {
    "asr": ("attacks that succeed", _hues[3], "D", -0.17),
    "over_refusal_rate": ("harmless requests refused", _hues[0], "o", 0.17),
}
"""Label, colour, marker and vertical shift of each rate."""
MOST_PANELS = 9
ROW_HEIGHT = 0.2
LEAST_PANEL = 1.0
"""Inches of a panel without the names of defences."""
RANKED = ("ranked", "baseline")
BROKEN = "breaks answers"
MOST_BROKEN = 0.1
"""Share of broken answers (incoherent, and not a refusal) above which a defence is marked."""
REFERENCE_ORDER = {"prompt_text": 0, "caption": 1, "prompt_text+caption": 2, "transcription": 3}
"""References, from the least to the most preferred: the one with the largest number is drawn."""


def safety_tradeoff(table: pd.DataFrame) -> Figure:
    """Draw attack success and over-refusal of each defence on one line, with intervals: both should be on the left.

    There is a panel for each of the first few sets of harmful prompts. Over-refusal is measured on the same prompts'
    harmless partners, or for sets without any on the largest set of harmless prompts, which the panel then names; where
    it was not measured, it has no dot. Grey lines are ranked defences that no other one beats in both rates. If there
    are several references, the one that reads the picture is drawn, and for the guard the prompt's own text as well
    (`own_text`), which is the paper's reference. A defence is marked if it breaks more than a tenth of the answers to
    harmful or to harmless requests, because broken answers count neither as attack success nor as refusals.

    Args:
        table: written by `studies.defence_comparison` or `studies.benchmarks`.
    """
    require_columns(table, COLUMNS, "safety_tradeoff")
    rows = _rows_to_draw(first_judge(table))
    places = list(rows[rows.metric == "asr"].groupby(PLACE, sort=False).groups)
    n_places, places = len(places), places[:MOST_PANELS]
    if not places:
        raise ValueError("safety_tradeoff found no attack success; expected sets with harmful prompts")
    names = list(dict.fromkeys(rows.defence))
    names.sort(key=lambda name: name in ("guard", "own_text"), reverse=True)
    names.sort(key=lambda name: name == "unguarded", reverse=True)
    with paper_style():
        n_columns = max(1, min(3, len(places), int((page_width() - 1.2) / LEAST_PANEL)))
        n_rows = math.ceil(len(places) / n_columns)
        figure, grid = plt.subplots(
            n_rows,
            n_columns,
            figsize=(page_width(), n_rows * (ROW_HEIGHT * len(names) + 0.55)),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        axes = list(grid.flat)
        is_single = rows.dataset.nunique() == 1
        width = (page_width() - 1.3) / n_columns - 0.1
        for axis, place in zip(axes, places, strict=False):
            _panel(axis, rows, place, names)
            dataset, setting, modality = place
            title = place_in_words(setting, modality)
            axis.set_title(wrapped(title if is_single else f"{dataset}: {title}", width))
        for axis in axes[len(places) :]:
            axis.remove()
        # The last panel of each column carries the numbers, also above an empty place.
        for axis in axes[max(0, len(places) - n_columns) : len(places)]:
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("per cent")
        axes[0].set_yticks(range(len(names)), [in_words(name, "defence") for name in names])
        axes[0].set(ylim=(len(names) - 0.45, -0.55), xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
        axes[0].xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        legend_below(figure, _handles(rows))
        plt.close(figure)
    sets = (
        "each set and setting"
        if n_places <= MOST_PANELS
        else f"the first {MOST_PANELS} of {n_places} sets and settings"
    )
    attacked = rows[rows.metric == "asr"]
    return add_caption(
        figure,
        f"""Attack success and over-refusal of each defence in {sets}, with 95 % Wilson intervals: the further left both
        are, the better. Grey lines: ranked defences that no other one beats in both. Hollow: not ranked (bounds,
        controls, and all where fewer than 10 attacks succeed unguarded). {sample_size(attacked, "harmful requests")}.
        {_harmless_note(rows, places)}{short_answers(table)}""",
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
    rows["defence"] = rows.defence.mask(is_own_text, "own_text")
    rows = rows.assign(order=rows.reference.map(REFERENCE_ORDER).fillna(1)).sort_values("order", kind="stable")
    return rows.drop_duplicates([*PLACE, "defence", "metric"], keep="last").sort_index()


def _panel(axis: Axes, rows: pd.DataFrame, place: tuple[str, str, str], names: Sequence[str]) -> None:
    """Draw both rates of each defence in one setting, with a grey line behind those on the front."""
    both = _both_rates(rows, place)
    for name in _front(both[both.marked_as.isin(RANKED)]):
        axis.axhspan(names.index(name) - 0.42, names.index(name) + 0.42, color="0.91", zorder=0)
    for row in both.itertuples():
        for (metric, (_, color, marker, shift)), end in zip(RATES.items(), ("", "_x"), strict=True):
            value, low, high = (getattr(row, f"{name}{end}") for name in ("value", "ci_low", "ci_high"))
            y = names.index(row.defence) + shift
            axis.plot([low, high], [y, y], color=color, linewidth=0.8)
            axis.plot(value, y, **_dot(row.marked_as, color, marker), gid=metric)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)


def _both_rates(rows: pd.DataFrame, place: tuple[str, str, str]) -> pd.DataFrame:
    """Return attack success of each defence (`value`) with its over-refusal (`value_x`), NaN where not measured."""
    own = rows[(rows[PLACE] == list(place)).all(axis=1)]
    harmless = own[own.metric == "over_refusal_rate"]
    if harmless.empty:
        harmless = _largest_set(rows[rows.metric == "over_refusal_rate"])
    return own[own.metric == "asr"].merge(harmless, on="defence", how="left", suffixes=("", "_x"))


def _front(ranked: pd.DataFrame) -> list[str]:
    """Return the defences that no other one beats in both rates."""
    measured = ranked[ranked.value_x.notna()].sort_values(["value_x", "value"])
    return measured[measured.value < measured.value.cummin().shift(fill_value=2.0)].defence.tolist()


def _largest_set(rows: pd.DataFrame) -> pd.DataFrame:
    groups = [group for _, group in rows.groupby(PLACE, sort=False)]
    return max(groups, key=lambda group: group.n.max()) if groups else rows


def _harmless_note(rows: pd.DataFrame, places: Sequence[tuple[str, str, str]]) -> str:
    """Say where over-refusal was measured, if not on the harmless partners of the attacks."""
    harmless = rows[rows.metric == "over_refusal_rate"]
    measured = set(harmless.groupby(PLACE, sort=False).groups)
    if measured >= set(places):
        return ""
    if harmless.empty:
        return "Over-refusal was not measured. "
    largest = _largest_set(harmless).iloc[0]
    on = f"{largest.dataset}, {in_words(largest.modality, 'modality')}"
    return f"Over-refusal of sets without harmless requests is that on {on}. "


def _dot(marked_as: str, color, marker: str) -> dict:
    face = color if marked_as in RANKED else "white"
    marker = "P" if marked_as == BROKEN else marker
    return {"marker": marker, "markersize": 4, "linestyle": "", "color": color, "markerfacecolor": face}


def _handles(rows: pd.DataFrame) -> list:
    """Return an entry for each rate, and for each way in which dots of defences are marked."""
    handles = [
        plt.Line2D([], [], label=label, **_dot("ranked", color, marker)) for label, color, marker, _ in RATES.values()
    ]
    marks = set(rows.marked_as)
    if marks - {*RANKED, BROKEN}:
        handles.append(plt.Line2D([], [], label="not ranked", **_dot("bound", "0.3", "o")))
    if BROKEN in marks:
        handles.append(plt.Line2D([], [], label=BROKEN, **_dot(BROKEN, "0.3", "o")))
    return handles
