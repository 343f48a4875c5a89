"""How every figure looks, what is said under it, and what it says when a column is missing.

For papers: 8 points, widths of one column (`NARROW`) or both (`WIDE`), vector PDF with embedded fonts. Modalities and
classes have a colour, a mark and a line each: told apart by the colour-blind, and in grey.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
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
MODALITY_MARKERS = {
    "text": "o",
    "blank": "s",
    "noise": "v",
    "scene": "^",
    "typographic": "X",
    "typographic_scene": "P",
}
CLASS_COLORS = {"harmful": _hues[3], "harmless": _hues[0]}
CLASS_MARKERS = {"harmful": "X", "harmless": "o"}
CLASS_LINES = {"harmful": "-", "harmless": (0, (3, 1.5))}
FEW_LAYERS = 12
"""Up to so many, cells of a map over layers are wide enough to say their value and interval."""

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
    "hatch.linewidth": 0.4,
    "pdf.fonttype": 42,
    "figure.dpi": 120,
    "savefig.dpi": 200,
}


def require_columns(table: pd.DataFrame, columns: Sequence[str], figure: str) -> None:
    """Raises:
    ValueError: the table is empty, or lacks columns that the figure draws, or has nothing in one of them.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{figure} needs the columns {', '.join(columns)}; missing: {', '.join(missing)}")
    if table.empty:
        raise ValueError(f"{figure} got an empty table; run its study first")


def filled(table: pd.DataFrame, columns: Sequence[str], figure: str) -> pd.DataFrame:
    """The table, which has something in each of the columns.

    Raises:
        ValueError: as `need`; or a column holds nothing, by its name.
    """
    require_columns(table, columns, figure)
    hollow = [column for column in columns if table[column].isna().all()]
    if hollow:
        raise ValueError(f"{figure} needs values in {', '.join(columns)}; empty: {', '.join(hollow)}")
    return table


def first_judge(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the judge that decides, which stands first, and rows that need none."""
    judges = table.judge.dropna()
    return table[table.judge.isna() | (table.judge == judges.iloc[0])] if len(judges) else table


def present(values: pd.Series) -> list[str]:
    """The modalities that occur, in the order of the palette."""
    seen = set(values.dropna())
    return [name for name in MODALITY_COLORS if name in seen]


def readable(name: str) -> str:
    """A name of the tables, for people."""
    return name.replace("_", " ")


def styled():
    """Context in which figures are made."""
    return mpl.rc_context(STYLE)


def by_modality(axis: Axes, rows: pd.DataFrame, x: str = "layer", line="-", label: str = "{}") -> None:
    """A line, its marks and its interval for each modality.

    Args:
        line: style of the lines.
        label: with a place for the modality's name.
    """
    for name in present(rows.modality):
        one, color = rows[rows.modality == name].sort_values(x), MODALITY_COLORS[name]
        look = {"color": color, "linewidth": 1.2, "linestyle": line, "marker": MODALITY_MARKERS[name], "markersize": 3}
        axis.plot(one[x], one.value, label=label.format(readable(name)), **look)
        axis.fill_between(one[x], one.ci_low, one.ci_high, color=color, alpha=0.12, linewidth=0)


def layer_ticks(axis: Axes, layers: pd.Series) -> None:
    """Each layer where they are few, else so many as can be read."""
    there = sorted(layers.dropna().astype(int).unique())
    axis.set_xticks(there if len(there) <= FEW_LAYERS else there[:: -(-len(there) // 8)])


def value_map(axis: Axes, cells: pd.DataFrame, rows: str, columns: str, order: Sequence, **heatmap) -> None:
    """A heat map that says each value, and its interval under it where there is room and one is known.

    Args:
        cells: columns `rows`, `columns`, `value`; if known `ci_low`, `ci_high`, and `is_firm`: those are bold, or
            dotted where there is no room for values.
        order: of the rows, from the top.
    """
    names = [name for name in ("value", "ci_low", "ci_high", "is_firm") if name in cells]
    wide = {name: cells.pivot(index=rows, columns=columns, values=name).reindex(order) for name in names}
    is_roomy = wide["value"].shape[1] <= FEW_LAYERS
    is_firm = wide.get("is_firm", wide["value"] * 0) == 1
    bar = {"shrink": 0.85, "pad": 0.015} | heatmap.pop("cbar_kws", {})
    sns.heatmap(
        wide["value"],
        annot=_written(wide) if is_roomy else np.where(is_firm, "•", ""),
        fmt="",
        annot_kws={"size": 5.5},
        linewidths=0.4 if is_roomy else 0,
        cbar_kws=bar,
        yticklabels=[readable(str(name)) for name in wide["value"].index],
        ax=axis,
        **heatmap,
    )
    # Seaborn writes row by row, and leaves out what has no value.
    shown = is_firm.to_numpy()[wide["value"].notna().to_numpy()]
    for text, firm in zip(axis.texts, shown, strict=True):
        text.set_fontweight("bold" if firm else "normal")
    axis.tick_params(axis="y", rotation=0)


def _written(wide: dict[str, pd.DataFrame]) -> np.ndarray:
    """Each value as text, and under it its interval."""
    values = wide["value"].map(_two_digits)
    if "ci_low" in wide:
        low, high = (wide[name].map(_two_digits) for name in ("ci_low", "ci_high"))
        values = values.where(wide["ci_low"].isna(), values + "\n[" + low + ", " + high + "]")
    return values.to_numpy()


def _two_digits(value: float) -> str:
    return f"{value:z.2f}"


def intervals_told(cells: pd.DataFrame, columns: str = "layer") -> str:
    """What the caption of a map says of its intervals: many columns leave no room for them."""
    if cells[columns].nunique() > FEW_LAYERS:
        return "95 % intervals stand in the table"
    return "95 % intervals under each value"


def span(numbers: pd.Series) -> str:
    """`60`, or from the least to the most: `16 to 20`."""
    least, most = int(numbers.min()), int(numbers.max())
    return f"{least}" if least == most else f"{least} to {most}"


def counted(rows: pd.DataFrame, of: str = "requests") -> str:
    """`n = 60 requests`, or from the fewest to the most: what stands in every caption."""
    n = rows.n.dropna()
    n = n[n > 0]
    return f"n = {span(n)} {of}" if len(n) else "n unknown"


def captioned(figure: Figure, text: str) -> Figure:
    """The figure with what has to be said under it: what is drawn, of how many, with which intervals."""
    figure.caption = " ".join(text.split())
    return figure


def caption(figure: Figure) -> str:
    """What came with a figure of this package; empty for others."""
    return getattr(figure, "caption", "")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """PDF for papers, PNG for screens, both with the caption inside. No dates: the same table gives the same file."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("pdf", "png")]
    with styled():
        about = {"CreationDate": None, "Subject": caption(figure)}
        figure.savefig(paths[0], metadata=about, bbox_inches="tight")
        figure.savefig(paths[1], metadata={"Description": caption(figure)}, bbox_inches="tight")
    return paths
