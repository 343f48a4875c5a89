"""Claims by model."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from figures.page import ink_on, page_width, wrapped
from figures.style import add_caption, paper_style, require_values

_hues = sns.color_palette("colorblind")
OUTCOMES = {
    "shown": (_hues[0], "✓"),
    "not shown": (_hues[1], "✗"),
    "undecided": ((0.75,) * 3, "?"),
    "undecided (ceiling)": ((0.87,) * 3, "⊤"),
    "not testable here": ((0.97,) * 3, "–"),
}
"""Colour and mark of each outcome; marks are for readers who print in grey."""
PLANTED, MISMATCH = "0.1", (0.8, 0.0, 0.15)
"""Colours of the frames around planted outcomes: those that came out, and the others."""
INCH_PER_LETTER = 0.058
"""Height of the upright names of models."""
NAMES = 0.62
"""Share of the width for the names of claims."""
LINE = 0.115
"""Inches of a line of a claim."""
NOTES = {"(beyond the paper) ": "†", "(against the abstract's wording) ": "‡"}
"""Notes in front of claims, and the marks that stand for them in the figure."""


def _short(claim: str) -> str:
    for note, mark in NOTES.items():
        if claim.startswith(note):
            return f"{claim.removeprefix(note)} {mark}"
    return claim


def claims_by_model(table: pd.DataFrame) -> Figure:
    """Draw the outcome of each claim on each model, with frames around planted outcomes.

    Args:
        table: written by `studies.claims_by_model`.
    """
    rows = require_values(table, ["model", "claim", "outcome"], "claims_by_model")
    rows = rows.assign(planted=rows.planted.fillna(""))
    models, claims = (list(dict.fromkeys(rows[name])) for name in ("model", "claim"))
    words = list(OUTCOMES)
    codes = rows.assign(code=[words.index(outcome) for outcome in rows.outcome])
    wide = codes.pivot(index="claim", columns="model", values="code").reindex(index=claims, columns=models)
    is_planted = rows.planted != ""
    mismatches = rows[is_planted & (rows.planted != rows.outcome)]
    with paper_style():
        head = 0.15 + INCH_PER_LETTER * max(map(len, models))
        names = [wrapped(_short(claim), NAMES * page_width() - 0.25, 7) for claim in claims]
        foot = 0.25 if page_width() > 5 else 0.5
        height = head + LINE * (1.4 + max(name.count("\n") for name in names)) * len(names) + foot
        figure, axis = plt.subplots(figsize=(page_width(), height))
        # Fixed margins: the names of claims take more than half of the width, which automatic layouts give up on.
        figure.subplots_adjust(left=NAMES, right=0.99, bottom=foot / height, top=1 - head / height)
        cmap = ListedColormap([color for color, _ in OUTCOMES.values()])
        style = {"vmin": -0.5, "vmax": len(words) - 0.5, "cmap": cmap, "cbar": False}
        sns.heatmap(wide, ax=axis, linewidths=1.2, linecolor="white", **style)
        for row in codes.itertuples():
            corner = models.index(row.model), claims.index(row.claim)
            color = ink_on(OUTCOMES[row.outcome][0])
            centre = [each + 0.5 for each in corner]
            axis.text(*centre, OUTCOMES[row.outcome][1], ha="center", va="center", fontsize=7, color=color)
            if row.planted:
                frame = MISMATCH if row.planted != row.outcome else PLANTED
                inner = [each + 0.07 for each in corner]
                axis.add_patch(Rectangle(inner, 0.86, 0.86, fill=False, edgecolor=frame, linewidth=1.6))
        axis.set(xlabel="", ylabel="")
        axis.set_yticks([i + 0.5 for i in range(len(claims))], names)
        axis.set_xticks([j + 0.5 for j in range(len(models))], models)
        axis.tick_params(axis="y", rotation=0, length=0)
        axis.tick_params(axis="x", length=0, labeltop=True, labelbottom=False, rotation=90)
        axis.grid(visible=False)
        handles = [
            Patch(facecolor=color, edgecolor="0.6", linewidth=0.4, label=f"{mark} {outcome}")
            for outcome, (color, mark) in OUTCOMES.items()
        ]
        n_columns = len(handles) if page_width() > 5 else 2
        figure.legend(handles=handles, loc="lower center", ncols=n_columns, columnspacing=1.0, handlelength=1.2)
        plt.close(figure)
    n = int(is_planted.sum())
    n_right = n - len(mismatches)
    others = ", those in red did not" if n_right < n else ""
    planted = f"Frames: planted outcomes; {n_right} of {n} came out{others}." if n else ""
    return add_caption(
        figure,
        f"""Which claims hold on which model ({len(claims)} claims, {len(models)} models). Ceiling: undecided, because
        the measure is at its limit in both conditions. † beyond the paper, ‡ against its abstract's wording.
        {planted}""",
    )
