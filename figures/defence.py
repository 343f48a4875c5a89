"""Figure of the defence study."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from figures.style import WIDE, captioned, counted, first_judge, readable, require_columns, styled

_hues = sns.color_palette("colorblind")
ARMS = {
    "unguarded": ("unguarded", "0.35", ""),
    "self_reminder": ("Self-Reminder", _hues[8], "////"),
    "goal_priority": ("Goal Priority", _hues[7], "\\\\\\\\"),
    "text_verdict": ("text verdict", _hues[9], "...."),
    "guard_random": ("random direction", "0.8", "xxxx"),
    "guard": ("guard", _hues[2], ""),
    "guard_full_state": ("full state (bound)", _hues[1], "----"),
    "oracle": ("guard, oracle (bound)", _hues[4], "||||"),
}
"""Name, colour, and a hatch for those who see no colours."""
READ = {"transcription": 0, "caption": 1, "prompt_text+caption": 2, "prompt_text+transcription": 2, "prompt_text": 3}
READ_IN_PICTURE = READ | {"prompt_text": 0, "transcription": 3}
"""References, the one to be drawn last."""
PANELS = {"asr": "attack success (harmful)", "over_refusal_rate": "over-refusal (harmless)"}


def attack_success_bars(table: pd.DataFrame) -> Figure:
    """Attack success and over-refusal under attack, of the defences that the claims are about, with intervals.

    Of several references each defence is drawn with the one that says the request: in the multimodal setting, where
    what the user wrote is harmless, what is read in the picture.

    Raises:
        ValueError: columns that are missing, or nothing to draw.
    """
    columns = ["setting", "modality", "defence", "reference", "judge", "metric", "value", "ci_low", "ci_high", "n"]
    require_columns(table, columns, "attack_success_bars")
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "dataset", "category"])))
    table = first_judge(table[table.category.isna()])
    attacked = table[table.metric == "asr"]
    table = _arms(table[table.setting.isin(attacked.setting) & table.metric.isin(PANELS)])
    if table.empty:
        raise ValueError(f"attack_success_bars found no attack success of {', '.join(ARMS)}")
    keys = ["dataset", "setting", "modality"]
    table = table.assign(dataset=table.dataset.astype(object).where(table.dataset.notna(), ""))
    places = list(table[keys].drop_duplicates().itertuples(index=False, name=None))
    is_single = table.dataset.nunique() == 1
    with styled():
        figure, axes = plt.subplots(2, 1, figsize=(WIDE, 3.8), sharex=True, sharey=True, layout="constrained")
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            rows = table[table.metric == metric]
            for i, place in enumerate(places):
                _bars(axis, rows[(rows[keys] == list(place)).all(axis=1)], i)
            axis.set(ylabel=title, ylim=(-0.03, 1.03))
            axis.grid(axis="x", visible=False)
        shown = [place[1:] if is_single else place for place in places]
        names = ["\n".join(place).replace("_", "\n") for place in shown]
        axes[1].set_xticks(np.arange(len(places)), names)
        present = set(table.arm)
        handles = [
            Patch(label=label, **_look(color, hatch)) for arm, (label, color, hatch) in ARMS.items() if arm in present
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        plt.close(figure)
    guards = table[table.arm.isin(["guard", "text_verdict"])]
    pairs = guards[["modality", "reference"]].drop_duplicates().itertuples(index=False, name=None)
    read = ", ".join(f"{readable(modality)} {readable(str(reference))}" for modality, reference in pairs)
    return captioned(
        figure,
        f"""Attack success on harmful requests and over-refusal on harmless ones in each setting and modality, by
        defence, with 95 % Wilson intervals. What guard and text verdict read: {read or "nothing"}; the bound `oracle`
        reads the true request. {counted(attacked)} of each class.""",
    )


def _arms(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are drawn, each with its arm: a row an arm, place and metric."""
    is_bound = (table.defence == "guard") & (table.reference == "oracle")
    table = table.assign(arm=table.defence.mask(is_bound, "oracle"))
    table = table[table.arm.isin(ARMS) & (is_bound | (table.reference != "oracle"))]
    order = np.where(table.setting == "multimodal", table.reference.map(READ_IN_PICTURE), table.reference.map(READ))
    table = table.assign(order=pd.Series(order, table.index).fillna(1)).sort_values("order", kind="stable")
    keys = ["dataset", "setting", "modality", "arm", "metric"]
    return table.drop_duplicates(keys, keep="last").sort_index()


def _bars(axis, here: pd.DataFrame, place: int) -> None:
    """The bars of one setting, centred over its tick; a mark at each value, so that zero has a colour too."""
    width, present = 0.86 / len(ARMS), [arm for arm in ARMS if arm in set(here.arm)]
    for i, arm in enumerate(present):
        row, (_, color, hatch) = here[here.arm == arm].iloc[0], ARMS[arm]
        at = place + (i - (len(present) - 1) / 2) * width
        errors = np.clip([[row.value - row.ci_low], [row.ci_high - row.value]], 0, None)
        axis.bar(at, row.value, width * 0.92, **_look(color, hatch))
        axis.errorbar(at, row.value, yerr=errors, fmt="none", ecolor="0.1", elinewidth=0.6, capsize=1)
        axis.plot(at, row.value, marker="o", markersize=2.6, color=color, markeredgecolor="0.1", markeredgewidth=0.4)


def _look(color, hatch: str) -> dict:
    return {"facecolor": color, "hatch": hatch, "edgecolor": "0.25", "linewidth": 0}
