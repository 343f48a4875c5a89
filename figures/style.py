"""How every figure looks, and what it says when a column is missing."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

WIDE, NARROW = 6.75, 3.25
"""Inches: both columns of a conference paper, and a single one."""

_hues = sns.color_palette("colorblind")
MODALITY_COLORS = {
    "text": (0.15, 0.15, 0.15),
    "blank": _hues[0],
    "noise": _hues[9],
    "scene": _hues[2],
    "typographic": _hues[3],
    "typographic_scene": _hues[1],
}
CLASS_COLORS = {"harmful": _hues[3], "harmless": _hues[0]}
CLASS_MARKERS = {"harmful": "X", "harmless": "o"}

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "figure.dpi": 120,
    "savefig.dpi": 200,
}


def need(table: pd.DataFrame, columns: Sequence[str], figure: str) -> None:
    """Raises:
    ValueError: the table is empty, or lacks columns that the figure draws.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{figure} needs the columns {', '.join(columns)}; missing: {', '.join(missing)}")
    if table.empty:
        raise ValueError(f"{figure} got an empty table; run its study first")


def first_judge(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the judge that decides, which stands first, and rows that need none."""
    return table[table.judge.isna() | (table.judge == table.judge.dropna().iloc[0])]


def present(values: pd.Series) -> list[str]:
    """The modalities that occur, in the order of the palette."""
    seen = set(values.dropna())
    return [name for name in MODALITY_COLORS if name in seen]


def styled():
    """Context in which figures are made."""
    return mpl.rc_context(STYLE)


def captioned(figure: Figure, text: str) -> Figure:
    """The figure with what has to be said under it: what is drawn, of how many, with which intervals."""
    figure.caption = " ".join(text.split())
    return figure


def caption(figure: Figure) -> str:
    """What came with a figure of this package; empty for others."""
    return getattr(figure, "caption", "")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """PDF for papers, PNG for screens. No dates in them: the same table gives the same file."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("pdf", "png")]
    with styled():
        figure.savefig(paths[0], metadata={"CreationDate": None}, bbox_inches="tight")
        figure.savefig(paths[1], bbox_inches="tight")
    return paths
