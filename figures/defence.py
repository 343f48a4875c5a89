"""Attack success and over-refusal under each defence."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.maps import fit_cells, value_map
from figures.page import panels
from figures.style import add_caption, first_judge, paper_style, require_columns, sample_size, short_answers
from figures.words import in_words, place_in_words

ARMS = (
    "unguarded",
    "self_reminder",
    "goal_priority",
    "adashield_s",
    "safety_prompt",
    "guard",
    "own_text",
    "text_verdict",
    "text_score_verdict",
    "gate_refuser",
    "guard_full_state",
    "oracle",
)
"""Defences that the claims are about, those that are compared first and bounds last."""
BOUNDS = ("text_verdict", "text_score_verdict", "gate_refuser", "guard_full_state", "oracle")
PREFERENCE = {
    "transcription": 0,
    "caption": 1,
    "prompt_text+caption": 2,
    "prompt_text+transcription": 2,
    "prompt_text": 3,
}
PREFERENCE_IN_PICTURE = PREFERENCE | {"prompt_text": 0, "transcription": 3}
"""References, from the least to the most preferred: the one with the largest number is drawn."""
PANELS = {"asr": "attack success, %", "over_refusal_rate": "over-refusal, %"}
ROW_HEIGHT = 0.185
PANEL_COLORS = {"asr": "rocket_r", "over_refusal_rate": "mako_r"}


def attack_success_map(table: pd.DataFrame) -> Figure:
    """Write attack success and over-refusal of each defence in each setting into a map: zeros are seen as zeros.

    A defence with several references is drawn with the one that contains the request: in the multimodal setting, where
    the user's own text is harmless, that is what the model reads in the picture. The guard is drawn there with the
    user's own text too (`own_text`), which is what the paper's own reference comes to.

    Raises:
        ValueError: columns that are missing, or nothing to draw.
    """
    table, attacked = defence_arms(table, "attack_success_map")
    table = with_places(table)
    places = list(dict.fromkeys(table.place))
    arms = [arm for arm in ARMS if arm in set(table.arm)]
    with paper_style():
        height = ROW_HEIGHT * len(arms) + label_height(places) + 0.3
        figure, axes = panels(2, least_map(places), height)
        draw_maps(axes, table, arms, places)
        fit_cells(figure)
        plt.close(figure)
    guards = table[table.arm.isin(["guard", "text_verdict"])]
    pairs = guards[["modality", "reference"]].drop_duplicates().itertuples(index=False, name=None)
    words = [(in_words(modality, "modality"), in_words(reference, "reference")) for modality, reference in pairs]
    read = ", ".join(f"{modality}: {reference}" for modality, reference in words)
    return add_caption(
        figure,
        f"""Attack success on harmful requests and over-refusal on harmless ones in each setting and modality, by
        defence, in per cent; the intervals are in the table and in the figure of safety against over-refusal. † bounds,
        of which the guard with the true request reads what no defence can know. What the guard and the bounds read:
        {read or "nothing"}. {sample_size(attacked)} of each class. {short_answers(table)}""",
    )


def draw_maps(axes: Sequence[Axes], table: pd.DataFrame, arms: Sequence[str], places: Sequence[str]) -> None:
    """Draw a map of attack success and one of over-refusal, arm by place; the second goes without names if it is right
    of the first.

    Args:
        axes: both.
        table: rows of `defence_arms`, with `with_places`.
        arms: rows of the maps.
        places: columns of the maps.
    """
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        rows = table[table.metric == metric].drop(columns=["ci_low", "ci_high"])
        rows = rows.assign(place=pd.Categorical(rows.place, places))
        style = {"vmin": 0, "vmax": 1, "cmap": PANEL_COLORS[metric], "cbar": False, "number": _percent}
        value_map(axis, rows, "arm", "place", arms, **style)
        axis.set_title(title)
        axis.set_xticks([i + 0.5 for i in range(len(places))], places, rotation=90)
        is_beside = axis is axes[1] and axis.get_subplotspec().colspan.start > 0
        names = [in_words(arm, "defence") + " †" * (arm in BOUNDS) for arm in arms]
        axis.set_yticks([i + 0.5 for i in range(len(arms))], [] if is_beside else names)


def _percent(value: float) -> str:
    return f"{100 * value:z.0f}"


def with_places(table: pd.DataFrame) -> pd.DataFrame:
    """Add a column that tells setting and modality in words, and the dataset if there are several."""
    words = [place_in_words(*place) for place in zip(table.setting, table.modality, strict=True)]
    if table.dataset.nunique() > 1:
        words = [f"{dataset}: {place}" for dataset, place in zip(table.dataset, words, strict=True)]
    return table.assign(place=words)


def label_height(places: Sequence[str]) -> float:
    """Return the inches that upright names of places take."""
    return 0.062 * max(map(len, places)) + 0.1


def least_map(places: Sequence[str]) -> float:
    """Return the least width in inches of a map, with the names of its rows."""
    return 1.2 + 0.24 * len(places)


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
