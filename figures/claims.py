"""Claims by model."""

from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from figures.style import WIDE, add_caption, paper_style, require_values

OUTCOMES = ("shown", "not shown", "undecided", "undecided (ceiling)", "not testable here")
"""Outcomes in the order of their colours."""
_hues = sns.color_palette("colorblind")
COLORS = (_hues[0], _hues[1], (0.75,) * 3, (0.87,) * 3, (1.0,) * 3)
WORDS = ("shown", "not shown", "undecided", "ceiling", "not\ntestable")
"""Outcomes as cells show them."""
CLAIM_WIDTH, MODEL_WIDTH = 62, 11
"""Characters of a line."""
HEAD = 0.45
"""Inches above the map, for the names of models."""
NOTES = {"(beyond the paper) ": "†", "(against the abstract's wording) ": "‡"}
"""Notes in front of claims, and the marks that stand for them in the figure."""


def _short(claim: str) -> str:
    for note, mark in NOTES.items():
        if claim.startswith(note):
            return f"{claim.removeprefix(note)} {mark}"
    return claim


def claims_by_model(table: pd.DataFrame) -> Figure:
    """Draw the outcome of each claim on each model; an outcome that is not the planted one has a cross.

    Args:
        table: written by `studies.claims_by_model`.
    """
    rows = require_values(table, ["model", "claim", "outcome"], "claims_by_model")
    models, claims = (list(dict.fromkeys(rows[name])) for name in ("model", "claim"))
    codes = rows.assign(code=[OUTCOMES.index(outcome) for outcome in rows.outcome])
    wide = codes.pivot(index="claim", columns="model", values="code").reindex(index=claims, columns=models)
    is_planted = rows.planted.fillna("") != ""
    mismatches = rows[is_planted & (rows.planted != rows.outcome)]
    wrong = set(zip(mismatches.claim, mismatches.model, strict=True))
    with paper_style():
        height = HEAD + 0.31 * len(claims)
        figure, axis = plt.subplots(figsize=(WIDE, height))
        # Fixed margins: the names of claims take nearly half of the width, which automatic layouts give up on.
        figure.subplots_adjust(left=0.43, right=0.995, bottom=0.01, top=1 - HEAD / height)
        style = {"vmin": -0.5, "vmax": len(OUTCOMES) - 0.5, "cmap": ListedColormap(COLORS), "cbar": False}
        sns.heatmap(wide, ax=axis, linewidths=1.2, linecolor="white", **style)
        for i, claim in enumerate(claims):
            for j, model in enumerate(models):
                if pd.isna(code := wide.loc[claim, model]):
                    continue
                word = WORDS[int(code)] + (" ×" if (claim, model) in wrong else "")
                color = "white" if code < 2 else "0.2"
                axis.text(j + 0.5, i + 0.5, word, ha="center", va="center", fontsize=5.5, color=color)
        axis.set(xlabel="", ylabel="")
        axis.set_yticks([i + 0.5 for i in range(len(claims))], [fill(_short(claim), CLAIM_WIDTH) for claim in claims])
        axis.set_xticks([j + 0.5 for j in range(len(models))], [fill(model, MODEL_WIDTH) for model in models])
        axis.tick_params(axis="y", labelsize=5.5, rotation=0, length=0)
        axis.tick_params(axis="x", labelsize=6, rotation=0, length=0, labeltop=True, labelbottom=False)
        axis.grid(visible=False)
        plt.close(figure)
    n = int(is_planted.sum())
    n_right = n - len(mismatches)
    controls = f"{n_right} of {n} planted outcomes came out; a cross marks the others." if n else ""
    return add_caption(
        figure,
        f"""Which claims hold on which model ({len(claims)} claims, {len(models)} models). Ceiling: undecided, because
        the measure is at its limit in both conditions. † beyond the paper, ‡ against its abstract's wording.
        {controls}""",
    )
