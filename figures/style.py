"""Style shared by all figures: colours, fonts and captions, and checks of the table that is drawn.

For papers: 8 points, 7 in legends and at ticks, and vector PDF with embedded fonts; `figures.page` has the widths.
Modalities and classes each have a colour, a marker and a line style, so they can be distinguished in grey and by the
colour-blind.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.words import MODALITIES, in_words

__all__ = [
    "CLASS_COLORS",
    "CLASS_LINES",
    "CLASS_MARKERS",
    "MODALITY_COLORS",
    "MODALITY_MARKERS",
    "add_caption",
    "by_modality",
    "caption",
    "first_judge",
    "layer_ticks",
    "modalities_in",
    "number_range",
    "paper_style",
    "readable",
    "require_columns",
    "require_values",
    "sample_size",
    "save",
    "short_answers",
]

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
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "figure.titlesize": 8,
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
    """Check that a table has rows and the columns that a figure draws.

    Raises:
        ValueError: the table is empty or lacks columns; the message names them.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{figure} needs the columns {', '.join(columns)}; missing: {', '.join(missing)}")
    if table.empty:
        raise ValueError(f"{figure} got an empty table; run its study first")


def require_values(table: pd.DataFrame, columns: Sequence[str], figure: str) -> pd.DataFrame:
    """Return the table after checking that each of the columns holds values.

    Raises:
        ValueError: the table is empty, or columns are missing or empty; the message names them.
    """
    require_columns(table, columns, figure)
    empty = [column for column in columns if table[column].isna().all()]
    if empty:
        raise ValueError(f"{figure} needs values in {', '.join(columns)}; empty: {', '.join(empty)}")
    return table


def first_judge(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the deciding judge, which is the first in the table, and rows that need no judge."""
    judges = table.judge.dropna()
    return table[table.judge.isna() | (table.judge == judges.iloc[0])] if len(judges) else table


def modalities_in(values: pd.Series) -> list[str]:
    """Return the modalities that occur, in the order of the palette."""
    names = set(values.dropna())
    return [name for name in MODALITIES if name in names]


def readable(name: str) -> str:
    """Write a name from a table with spaces instead of underscores."""
    return name.replace("_", " ")


def paper_style():
    """Return the context in which figures are drawn."""
    return mpl.rc_context(STYLE)


def by_modality(axis: Axes, rows: pd.DataFrame, x: str = "layer", line="-", label: str = "{}") -> None:
    """Draw a line with markers and a band for the interval, for each modality.

    Args:
        axis: where to draw.
        rows: columns `modality`, `value`, `ci_low`, `ci_high`, and `x`.
        x: column of the horizontal axis.
        line: line style.
        label: label of a line, with a placeholder for the name of the modality.
    """
    for name in modalities_in(rows.modality):
        own, color = rows[rows.modality == name].sort_values(x), MODALITY_COLORS[name]
        style = {"color": color, "linewidth": 1.2, "linestyle": line, "marker": MODALITY_MARKERS[name], "markersize": 3}
        axis.plot(own[x], own.value, label=label.format(in_words(name, "modality")), **style)
        axis.fill_between(own[x], own.ci_low, own.ci_high, color=color, alpha=0.12, linewidth=0)


def layer_ticks(axis: Axes) -> None:
    """Label as many layers as there is room for."""
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 4, 5, 10]))


def number_range(numbers: pd.Series) -> str:
    """Write numbers as one (`60`), or from the smallest to the largest (`16 to 20`)."""
    smallest, largest = int(numbers.min()), int(numbers.max())
    return f"{smallest}" if smallest == largest else f"{smallest} to {largest}"


def sample_size(rows: pd.DataFrame, of: str = "requests") -> str:
    """Write the sample size for a caption, such as `n = 60 requests`, as a range if it varies."""
    n = rows.n.dropna()
    n = n[n > 0]
    return f"n = {number_range(n)} {of}" if len(n) else "n unknown"


def short_answers(table: pd.DataFrame) -> str:
    """Return the warning that a table of defences carries if only keywords have judged short answers; else nothing."""
    rows = table[table.metric == "answer_tokens"]
    return f"{rows.interval.iloc[0].capitalize()} (at most {rows.value.iloc[0]:.0f} here)." if len(rows) else ""


def add_caption(figure: Figure, text: str) -> Figure:
    """Attach a caption that says what is drawn, how many cases it is based on, and what the intervals are."""
    figure.caption = " ".join(text.split())
    return figure


def caption(figure: Figure) -> str:
    """Return the caption of a figure of this package; empty for other figures."""
    return getattr(figure, "caption", "")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Save a figure as PDF for papers and as PNG for screens, both with the caption in their metadata.

    The folder is created. Files are as wide as the page that the figure was drawn for, and carry no date, so the same
    table gives the same files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("pdf", "png")]
    with paper_style():
        metadata = {"CreationDate": None, "Subject": caption(figure)}
        for path, about in zip(paths, (metadata, {"Description": caption(figure)}), strict=True):
            # Drawn in memory, since on a full disk Matplotlib ends in an error of another kind; and written under
            # another name first, so that a file is never half a figure.
            drawn, new = BytesIO(), path.with_name(f".{path.name}.new")
            figure.savefig(drawn, format=path.suffix[1:], metadata=about)
            new.write_bytes(drawn.getvalue())
            new.replace(path)
    return paths
