"""Figure of the defence study."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from figures.style import WIDE, need, styled

_hues = sns.color_palette("colorblind")
ARMS = {
    ("unguarded", None): ("unguarded", "0.35"),
    ("self_reminder", None): ("Self-Reminder", _hues[8]),
    ("text_verdict", "prompt_text"): ("text verdict", _hues[9]),
    ("guard_random", "prompt_text"): ("random direction", "0.75"),
    ("guard", "prompt_text"): ("guard", _hues[2]),
    ("guard", "transcription"): ("guard, transcription", _hues[0]),
    ("guard", "oracle"): ("guard, oracle (bound)", _hues[4]),
}
PANELS = {"asr": "attack success (harmful)", "over_refusal_rate": "over-refusal (harmless)"}


def attack_success_bars(table: pd.DataFrame) -> Figure:
    """Attack success and over-refusal of each defence, in each setting and modality, with intervals."""
    columns = ["setting", "modality", "defence", "reference", "judge", "metric", "value", "ci_low", "ci_high"]
    need(table, columns, "attack_success_bars")
    table = table[table.judge == table.judge.dropna().iloc[0]]
    places = list(table[["setting", "modality"]].drop_duplicates().itertuples(index=False, name=None))
    with styled():
        figure, axes = plt.subplots(2, 1, figsize=(WIDE, 3.8), sharex=True, sharey=True, layout="constrained")
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            for (defence, reference), (label, color) in ARMS.items():
                rows = table[(table.metric == metric) & (table.defence == defence)]
                rows = rows[rows.reference.isna() if reference is None else rows.reference == reference]
                _bars(axis, rows, places, list(ARMS).index((defence, reference)), label, color)
            axis.set(ylabel=title, ylim=(0, 1.03))
        names = [f"{setting}\n{modality}".replace("_", "\n") for setting, modality in places]
        axes[1].set_xticks(np.arange(len(places)), names)
        for axis in axes:
            axis.grid(axis="x", visible=False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        plt.close(figure)
    return figure


def _bars(axis, rows: pd.DataFrame, places: list[tuple[str, str]], arm: int, label: str, color) -> None:
    width = 0.88 / len(ARMS)
    rows = rows.assign(place=[places.index(key) for key in zip(rows.setting, rows.modality, strict=True)])
    at = rows.place + (arm - (len(ARMS) - 1) / 2) * width
    errors = np.clip(np.stack([rows.value - rows.ci_low, rows.ci_high - rows.value]), 0, None)
    axis.bar(at, rows.value, width * 0.92, color=color, label=label)
    axis.errorbar(at, rows.value, yerr=errors, fmt="none", ecolor="0.1", elinewidth=0.6, capsize=1)
