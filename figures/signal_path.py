"""Heads and MLPs that write the safety signal, and the layer and token at which a picture suppresses it."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.maps import fit_cells, value_map
from figures.page import legend_below, page_width, panels
from figures.style import (
    CLASS_COLORS,
    MODALITY_COLORS,
    MODALITY_MARKERS,
    add_caption,
    by_modality,
    layer_ticks,
    modalities_in,
    paper_style,
    require_columns,
    require_values,
    sample_size,
)
from figures.words import in_words

COLUMNS = ["category", "modality", "layer", "site", "token", "metric", "value", "ci_low", "ci_high", "n"]
ROLES = ("image", "request", "instruction", "template", "last", "all")
"""Tokens whose states are patched, in the order of the prompt."""
N_STRONGEST = 8
KEYS = ["modality", "layer", "site"]
MOST_LAYER_LABELS = 12
SINGLE = "refusal_score_single"
"""Metric of a model whose refusals have openings of two tokens too."""


def _rows_of(table: pd.DataFrame, metric: str, figure: str) -> pd.DataFrame:
    """Return the rows of a metric.

    Raises:
        ValueError: there are none, or columns are missing or empty.
    """
    require_columns(table, COLUMNS, figure)
    rows = table[table.metric == metric]
    if rows.empty:
        raise ValueError(
            f"{figure} found no {metric}; TransformerLens has no bridge for this model, or the study did not measure it"
        )
    return require_values(rows, ["modality", "layer", "value"], f"{figure} of {metric}")


def refusal_lens(table: pd.DataFrame) -> Figure:
    """Draw the logit lens: the refusal score read from the residual stream after each layer, one panel per class.

    Args:
        table: written by `studies.signal_path`.
    """
    require_columns(table, COLUMNS, "refusal_lens")
    # Where some refusals open with two tokens, the study reads the openings of one token alone.
    is_single = SINGLE in set(table.metric)
    rows = _rows_of(table, SINGLE if is_single else "refusal_score", "refusal_lens")
    openings = "refusal openings, those of one token," if is_single else "refusal openings"
    with paper_style():
        figure, axes = panels(2, 2.2, 2.0, sharey=True)
        for axis, name in zip(axes, CLASS_COLORS, strict=True):
            by_modality(axis, rows[rows.category == name])
            axis.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
            axis.set(title=f"{name} requests", xlabel="layer")
            layer_ticks(axis)
        axes[0].set_ylabel("refusal score, nats")
        handles, labels = axes[0].get_legend_handles_labels()
        legend_below(figure, handles, labels)
        plt.close(figure)
    return add_caption(
        figure,
        f"""Refusal score (log-odds of the model's {openings} against everything else) read from the residual stream
        after each layer at the last prompt token, through the final norm and the unembedding; means with 95 % intervals
        as bands. Above the dotted line an answer is more likely than not to begin with a refusal.
        {sample_size(rows)} of each class.""",
    )


def attribution(table: pd.DataFrame, modalities: tuple[str, ...] = ("text", "blank", "typographic")) -> Figure:
    """Draw what each head and MLP adds to the coordinate on the SSD for harmful requests minus harmless ones.

    Above, one map per modality; below, the heads and MLPs with the largest difference in text, for each class with its
    interval.

    Args:
        table: written by `studies.signal_path`.
        modalities: modalities that are drawn, if the table has any of them.
    """
    require_columns(table, [*COLUMNS, "direction_layer"], "attribution")
    rows = _rows_of(table, "coordinate_written", "attribution")
    names = [name for name in modalities_in(rows.modality) if name in modalities] or modalities_in(rows.modality)
    differences = _class_differences(rows)
    strongest = differences[differences.modality == names[0]].set_index(["layer", "site"]).value
    strongest = strongest.loc[strongest.abs().nlargest(N_STRONGEST).index]
    sites = sorted(rows.site.unique(), key=lambda site: (site == "mlp_out", len(site), site))
    bound = float(differences.value.abs().max())
    map_height = 0.13 * rows.layer.nunique() + 0.7
    n_rows = -(-len(names) // max(1, int(page_width() / 1.6)))
    with paper_style():
        figure = plt.figure(figsize=(page_width(), n_rows * map_height + 2.2), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(n_rows * map_height, 2.2))
        maps = above.subplots(n_rows, -(-len(names) // n_rows), sharey=True, squeeze=False).flat
        for axis in maps[len(names) :]:
            axis.remove()
        maps = list(maps[: len(names)])
        for axis, name in zip(maps, names, strict=True):
            _contribution_map(axis, differences[differences.modality == name], sites, bound)
            axis.set(title=in_words(name, "modality"), xlabel="head")
            if axis is maps[0]:
                axis.set_ylabel("layer")
        bar = above.colorbar(maps[0].collections[0], ax=maps, shrink=0.9, pad=0.02)
        bar.set_label("harmful − harmless")
        strip = below.subplots()
        _strongest_writers(strip, rows[rows.modality.isin(names)], list(strongest.index), names)
        fit_cells(figure)
        plt.close(figure)
    return add_caption(
        figure,
        f"""What heads and MLPs add to the coordinate on the safety direction of layer
        {rows.direction_layer.dropna().iloc[0]:.0f} at the last prompt token. Maps: harmful minus harmless; dots:
        the intervals of the two classes do not overlap. Below: the {len(strongest)} heads and MLPs with the largest
        difference in {in_words(names[0], "modality")}, filled for harmful and hollow for harmless requests, means with
        95 % intervals. {sample_size(rows)} of each class.""",
    )


def _class_differences(rows: pd.DataFrame) -> pd.DataFrame:
    pairs = rows[rows.category == "harmful"].merge(
        rows[rows.category == "harmless"], on=KEYS, suffixes=("", "_harmless"), validate="1:1"
    )
    is_apart = (pairs.ci_low > pairs.ci_high_harmless) | (pairs.ci_high < pairs.ci_low_harmless)
    value = pairs.value - pairs.value_harmless
    return pairs[KEYS].assign(value=value, is_significant=is_apart, layer=pairs.layer.astype(int))


def _contribution_map(axis: Axes, cells: pd.DataFrame, sites: list[str], bound: float) -> None:
    cells = cells.assign(site=pd.Categorical(cells.site, sites))
    style = {"vmin": -bound, "vmax": bound, "cmap": "vlag", "cbar": False}
    layers = sorted(cells.layer.unique(), reverse=True)
    value_map(axis, cells, "layer", "site", layers, number=None, **style)
    axis.set_xticks([i + 0.5 for i in range(len(sites))], [_site(site) for site in sites], rotation=0)
    step = 1 + len(layers) // MOST_LAYER_LABELS
    axis.set_yticks([i + 0.5 for i in range(0, len(layers), step)], layers[::step])


def _site(site: str) -> str:
    return site.replace("head ", "").replace("mlp_out", "MLP")


def _strongest_writers(axis: Axes, rows: pd.DataFrame, places: list[tuple[int, str]], names: list[str]) -> None:
    for i, (layer, site) in enumerate(places):
        at_place = rows[(rows.layer == layer) & (rows.site == site)]
        for j, name in enumerate(names):
            x, color = i + 0.22 * (j - (len(names) - 1) / 2), MODALITY_COLORS[name]
            for row in at_place[at_place.modality == name].itertuples():
                face = color if row.category == "harmful" else "white"
                style = {"color": color, "marker": MODALITY_MARKERS[name], "markerfacecolor": face}
                axis.plot([x, x], [row.ci_low, row.ci_high], color=color, linewidth=0.9)
                label = in_words(name, "modality") if i == 0 and row.category == "harmful" else None
                axis.plot(x, row.value, linestyle="", markersize=4, label=label, **style)
    axis.axhline(0, color="0.5", linewidth=0.8)
    axis.set_xticks(range(len(places)), [f"{layer}\n{_site(site)}" for layer, site in places])
    axis.set(xlabel="layer, and head or MLP below it", ylabel="added to\nthe coordinate")
    axis.grid(axis="x", visible=False)
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(names))


def patching_map(table: pd.DataFrame) -> Figure:
    """Draw activation patching: how much of the refusal score that a picture removes comes back, by layer and token.

    There is one map per modality; 1 is all of it, 0 nothing. Bold: the interval is above 0.

    Args:
        table: written by `studies.signal_path`.
    """
    rows = _rows_of(table, "recovered", "patching_map")
    rows = rows.assign(layer=rows.layer.astype(int), is_significant=rows.ci_low > 0)
    names = modalities_in(rows.modality)
    roles = [role for role in ROLES if role in set(rows.token)]
    heights = [rows[rows.modality == name].token.nunique() for name in names]
    with paper_style():
        size = (page_width(), 0.28 * sum(heights) + 0.3 * len(names) + 0.4)
        figure, grid = plt.subplots(
            len(names), 1, figsize=size, squeeze=False, height_ratios=heights, layout="constrained"
        )
        axes = grid[:, 0]
        for axis, name in zip(axes, names, strict=True):
            own = rows[rows.modality == name]
            order = [role for role in roles if role in set(own.token)]
            value_map(axis, own, "token", "layer", order, vmin=0, vmax=1, cmap="cividis", cbar=False)
            axis.set_title(in_words(name, "modality"))
        figure.colorbar(axes[0].collections[0], ax=list(axes), shrink=0.6, pad=0.02, label="share recovered")
        for axis in axes[:-1]:
            axis.set_xticks([])
        axes[-1].set_xlabel("layer")
        notes = fit_cells(figure)
        plt.close(figure)
    return add_caption(
        figure,
        f"""Share of the lost refusal score that comes back when states from the request as text replace those of the
        run with the picture, at one layer and token role (harmful requests; for requests inside a picture, the donor is
        the true request); {notes.intervals}, by bootstrap; {notes.marks}: above 0. {sample_size(rows)}.""",
    )
