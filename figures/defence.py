"""Figure of the defence study."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from figures.style import WIDE, captioned, counted, first_judge, need, styled

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
SETTINGS = ("plain", "jailbreak", "multimodal")
PANELS = {"asr": "attack success (harmful)", "over_refusal_rate": "over-refusal (harmless)"}


def attack_success_bars(table: pd.DataFrame) -> Figure:
    """Attack success and over-refusal under attack, of the defences that the claims are about, with intervals.

    In the multimodal setting every defence that reads a reference reads the transcription: what the user wrote is
    harmless there.
    """
    columns = ["setting", "modality", "defence", "reference", "judge", "metric", "value", "ci_low", "ci_high", "n"]
    need(table, columns, "attack_success_bars")
    table = _arms(first_judge(table[table.setting.isin(SETTINGS)]))
    places = list(table[["setting", "modality"]].drop_duplicates().itertuples(index=False, name=None))
    with styled():
        figure, axes = plt.subplots(2, 1, figsize=(WIDE, 3.8), sharex=True, sharey=True, layout="constrained")
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            rows = table[table.metric == metric]
            for place, (setting, modality) in enumerate(places):
                _bars(axis, rows[(rows.setting == setting) & (rows.modality == modality)], place)
            axis.set(ylabel=title, ylim=(-0.03, 1.03))
            axis.grid(axis="x", visible=False)
        names = [f"{setting}\n{modality}".replace("_", "\n") for setting, modality in places]
        axes[1].set_xticks(np.arange(len(places)), names)
        handles = [Patch(label=label, **_look(color, hatch)) for label, color, hatch in ARMS.values()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        plt.close(figure)
    return captioned(
        figure,
        f"""Attack success on harmful requests and over-refusal on harmless ones in each setting and modality, by
        defence, with 95 % Wilson intervals. Guard and text verdict read the prompt's own text; in the multimodal
        setting, what the model reads in the picture; of bounds, the true request.
        {counted(table[table.metric == "asr"])} of each class.""",
    )


def _arms(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are drawn, each with its arm."""
    shown = np.where(table.setting == "multimodal", "transcription", "prompt_text")
    is_bound = (table.defence == "guard") & (table.reference == "oracle")
    is_drawn = table.reference.isna() | (table.reference == shown) | is_bound
    return table.assign(arm=table.defence.mask(is_bound, "oracle"))[is_drawn]


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
