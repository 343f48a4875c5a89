"""Attack success and over-refusal under each defence."""

from collections.abc import Collection, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

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

_hues = sns.color_palette("colorblind")
ARMS = {
    "unguarded": ("unguarded", "0.35", ""),
    "self_reminder": ("Self-Reminder", _hues[8], "////"),
    "goal_priority": ("Goal Priority", _hues[7], "\\\\\\\\"),
    "adashield_s": ("AdaShield-S", _hues[5], "||||"),
    "safety_prompt": ("safety prompt", _hues[6], "////"),
    "text_verdict": ("text verdict (bound)", _hues[9], "...."),
    "text_score_verdict": ("text score (bound)", _hues[0], "...."),
    "gate_refuser": ("gate alone (bound)", "0.8", "xxxx"),
    "guard": ("guard", _hues[2], ""),
    "own_text": ("guard, prompt text", "white", "////"),
    "guard_full_state": ("full state (bound)", _hues[1], "----"),
    "oracle": ("guard, oracle (bound)", _hues[4], "||||"),
}
"""Label, colour, and a hatch that shows in print without colours."""
PREFERENCE = {
    "transcription": 0,
    "caption": 1,
    "prompt_text+caption": 2,
    "prompt_text+transcription": 2,
    "prompt_text": 3,
}
PREFERENCE_IN_PICTURE = PREFERENCE | {"prompt_text": 0, "transcription": 3}
"""References, from the least to the most preferred: the one with the largest number is drawn."""
PANELS = {"asr": "attack success (harmful)", "over_refusal_rate": "over-refusal (harmless)"}


def attack_success_bars(table: pd.DataFrame) -> Figure:
    """Draw attack success and over-refusal under attack, for the defences that the claims are about.

    A defence with several references is drawn with the one that contains the request: in the multimodal setting, where
    the user's own text is harmless, that is what the model reads in the picture. The guard is drawn there with the
    user's own text too (`own_text`), which is what the paper's own reference comes to.

    Raises:
        ValueError: columns that are missing, or nothing to draw.
    """
    table, attacked = defence_arms(table, "attack_success_bars")
    keys = ["dataset", "setting", "modality"]
    places = list(table[keys].drop_duplicates().itertuples(index=False, name=None))
    is_single = table.dataset.nunique() == 1
    with paper_style():
        figure, axes = plt.subplots(2, 1, figsize=(WIDE, 4.2), sharex=True, sharey=True, layout="constrained")
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            rows = table[table.metric == metric]
            draw_places(axis, rows, keys, places)
            axis.set(ylabel=title, ylim=(-0.03, 1.03))
        labelled = [place[1:] if is_single else place for place in places]
        names = ["\n".join(place).replace("_", "\n") for place in labelled]
        axes[1].set_xticks(np.arange(len(places)), names)
        arms = set(table.arm)
        handles = [
            Patch(label=label, **bar_style(color, hatch)) for arm, (label, color, hatch) in ARMS.items() if arm in arms
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        plt.close(figure)
    guards = table[table.arm.isin(["guard", "text_verdict"])]
    pairs = guards[["modality", "reference"]].drop_duplicates().itertuples(index=False, name=None)
    references = ", ".join(f"{readable(modality)} {readable(str(reference))}" for modality, reference in pairs)
    own_text = "(the hatched white bars are the guard with the prompt's own text)" if "own_text" in arms else ""
    return add_caption(
        figure,
        f"""Attack success on harmful requests and over-refusal on harmless ones in each setting and modality, by
        defence, with 95 % Wilson intervals. References of the guard and of the bounds: {references or "none"}
        {own_text}; the bound `oracle` reads the true request. {sample_size(attacked)} of each class.
        {short_answers(table)}""",
    )


def defence_arms(table: pd.DataFrame, figure: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of both measures for each arm, and all rows of attack success.

    Args:
        table: rows of `defence.csv`.
        figure: name of the figure, for messages.

    Raises:
        ValueError: columns that are missing, or nothing to draw.
    """
    columns = ["setting", "modality", "defence", "reference", "judge", "metric", "value", "ci_low", "ci_high", "n"]
    require_columns(table, columns, figure)
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "model", "dataset", "category"])))
    table = table[table.category.isna()]
    # Each model has its own deciding judge.
    table = pd.concat(
        [first_judge(rows) for _, rows in table.groupby(table.model.astype(object).fillna(""), sort=False)]
    )
    attacked = table[table.metric == "asr"]
    rows = _arms(table[table.setting.isin(attacked.setting) & table.metric.isin(PANELS)])
    if rows.empty:
        raise ValueError(f"{figure} found no attack success for any of {', '.join(ARMS)}")
    return rows.assign(dataset=rows.dataset.astype(object).where(rows.dataset.notna(), "")), attacked


def _arms(table: pd.DataFrame) -> pd.DataFrame:
    """Select the rows that are drawn, one per arm, place and metric, and add a column for the arm."""
    is_guard = table.defence == "guard"
    is_bound = is_guard & (table.reference == "oracle")
    is_own_text = is_guard & (table.reference == "prompt_text") & (table.setting == "multimodal")
    table = table.assign(arm=table.defence.mask(is_bound, "oracle").mask(is_own_text, "own_text"))
    table = table[table.arm.isin(ARMS) & (is_bound | (table.reference != "oracle"))]
    is_in_picture = table.setting == "multimodal"
    order = np.where(is_in_picture, table.reference.map(PREFERENCE_IN_PICTURE), table.reference.map(PREFERENCE))
    table = table.assign(order=pd.Series(order, table.index).fillna(1)).sort_values("order", kind="stable")
    keys = ["dataset", "setting", "modality", "arm", "metric"]
    return table.drop_duplicates(keys, keep="last").sort_index()


def draw_places(
    axis, rows: pd.DataFrame, keys: Sequence[str], places: Sequence[tuple], drawn: Collection[str] = tuple(ARMS)
) -> None:
    """Draw the bars of each setting and modality, one place after the other.

    Args:
        axis: what is drawn on.
        rows: one row per place and arm.
        keys: columns that name a place.
        places: their values, in order.
        drawn: arms that there may be, which determine the width of the bars.
    """
    for i, place in enumerate(places):
        _bars(axis, rows[(rows[list(keys)] == list(place)).all(axis=1)], i, drawn)
    axis.grid(axis="x", visible=False)


def _bars(axis, rows: pd.DataFrame, tick: int, drawn: Collection[str]) -> None:
    """Draw the bars of one setting, centred on its tick, with a marker at each value so that zero has a colour too."""
    width, arms = 0.86 / len(drawn), [arm for arm in drawn if arm in set(rows.arm)]
    for i, arm in enumerate(arms):
        row, (_, color, hatch) = rows[rows.arm == arm].iloc[0], ARMS[arm]
        x = tick + (i - (len(arms) - 1) / 2) * width
        errors = np.clip([[row.value - row.ci_low], [row.ci_high - row.value]], 0, None)
        axis.bar(x, row.value, width * 0.92, **bar_style(color, hatch))
        axis.errorbar(x, row.value, yerr=errors, fmt="none", ecolor="0.1", elinewidth=0.6, capsize=1)
        axis.plot(x, row.value, marker="o", markersize=2.6, color=color, markeredgecolor="0.1", markeredgewidth=0.4)


def bar_style(color, hatch: str) -> dict:
    """Return the style of an arm's bars."""
    return {"facecolor": color, "hatch": hatch, "edgecolor": "0.25", "linewidth": 0}
