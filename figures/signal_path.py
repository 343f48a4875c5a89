"""Where the safety signal is written, and at which layer and token a picture loses it."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import (
    CLASS_COLORS,
    FEW_LAYERS,
    MODALITY_COLORS,
    MODALITY_MARKERS,
    WIDE,
    by_modality,
    captioned,
    counted,
    filled,
    intervals_told,
    layer_ticks,
    present,
    readable,
    require_columns,
    styled,
    value_map,
)

COLUMNS = ["category", "modality", "layer", "site", "token", "metric", "value", "ci_low", "ci_high", "n"]
ROLES = ("image", "request", "instruction", "template", "last", "all")
"""Tokens whose states are patched, in the order of the prompt."""
N_STRONGEST = 8
KEYS = ["modality", "layer", "site"]


def _measured(table: pd.DataFrame, metric: str, figure: str) -> pd.DataFrame:
    require_columns(table, COLUMNS, figure)
    rows = table[table.metric == metric]
    if rows.empty:
        raise ValueError(
            f"{figure} found no {metric}; TransformerLens has no bridge for this model, or the study did not measure it"
        )
    return filled(rows, ["modality", "layer", "value"], f"{figure} of {metric}")


def refusal_lens(table: pd.DataFrame) -> Figure:
    """Logit lens: the refusal score that the residual stream of each layer would give, a panel a class.

    Args:
        table: of `studies.signal_path`.
    """
    rows = _measured(table, "refusal_score", "refusal_lens")
    with styled():
        figure, axes = plt.subplots(1, 2, figsize=(WIDE, 2.5), sharey=True, layout="constrained")
        for axis, name in zip(axes, CLASS_COLORS, strict=True):
            by_modality(axis, rows[rows.category == name])
            axis.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
            axis.set(title=f"{name} requests", xlabel="layer")
            layer_ticks(axis, rows.layer)
        axes[0].set_ylabel("refusal score, nats")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
        plt.close(figure)
    return captioned(
        figure,
        f"""Refusal score (log-odds of the model's refusal openings against everything else) read from the residual
        stream after each layer at the last prompt token, through the final norm and the unembedding; means and bands
        of 95 %. Above the dotted line an answer more likely begins with a refusal. {counted(rows)} of each class.""",
    )


def attribution(table: pd.DataFrame, modalities: tuple[str, ...] = ("text", "blank", "typographic")) -> Figure:
    """What each head and MLP adds to the coordinate on the SSD for harmful requests, beyond what it adds for harmless.

    Above, a map for each modality; below, the strongest of them in text, each class by itself, with intervals.
    """
    require_columns(table, [*COLUMNS, "direction_layer"], "attribution")
    rows = _measured(table, "coordinate_written", "attribution")
    names = [name for name in present(rows.modality) if name in modalities] or present(rows.modality)
    differences = _between_classes(rows)
    strongest = differences[differences.modality == names[0]].set_index(["layer", "site"]).value
    strongest = strongest.loc[strongest.abs().nlargest(N_STRONGEST).index]
    sites = sorted(rows.site.unique(), key=lambda site: (site == "mlp_out", len(site), site))
    bound = float(differences.value.abs().max())
    n_layers = rows.layer.nunique()
    with styled():
        figure = plt.figure(figsize=(WIDE, 0.13 * n_layers + 3.6), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(0.13 * n_layers + 1.2, 2.2))
        maps = above.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axis, name in zip(maps, names, strict=True):
            _written_map(axis, differences[differences.modality == name], sites, bound, axis is maps[-1])
            axis.set(title=readable(name), xlabel="head", ylabel="layer" if axis is maps[0] else "")
        strip = below.subplots()
        _strongest(strip, rows[rows.modality.isin(names)], list(strongest.index), names)
        plt.close(figure)
    return captioned(
        figure,
        f"""What heads and MLPs add to the coordinate on the safety direction of layer
        {rows.direction_layer.dropna().iloc[0]:.0f} at the last prompt token. Maps: harmful less harmless; bold:
        intervals of the two classes are apart. Below: the {len(strongest)} that tell the classes apart most in
        {readable(names[0])}, filled for harmful and hollow for harmless requests, means with 95 % intervals.
        {counted(rows)} of each class.""",
    )


def _between_classes(rows: pd.DataFrame) -> pd.DataFrame:
    both = rows[rows.category == "harmful"].merge(
        rows[rows.category == "harmless"], on=KEYS, suffixes=("", "_harmless"), validate="1:1"
    )
    apart = (both.ci_low > both.ci_high_harmless) | (both.ci_high < both.ci_low_harmless)
    return both[KEYS].assign(value=both.value - both.value_harmless, is_firm=apart, layer=both.layer.astype(int))


def _written_map(axis: Axes, cells: pd.DataFrame, sites: list[str], bound: float, with_bar: bool) -> None:
    cells = cells.assign(site=pd.Categorical(cells.site, sites))
    look = {"vmin": -bound, "vmax": bound, "cmap": "vlag", "cbar": with_bar}
    value_map(axis, cells, "layer", "site", sorted(cells.layer.unique(), reverse=True), **look)
    short = [site.replace("head ", "").replace("mlp_out", "MLP") for site in sites]
    # Labels of dozens of heads would lie on each other: some of them, and always the MLP.
    shown = [*range(0, len(sites) - 1, 1 + len(sites) // FEW_LAYERS), len(sites) - 1]
    axis.set_xticks([i + 0.5 for i in shown], [short[i] for i in shown], rotation=0)


def _strongest(axis: Axes, rows: pd.DataFrame, places: list[tuple[int, str]], names: list[str]) -> None:
    for i, (layer, site) in enumerate(places):
        here = rows[(rows.layer == layer) & (rows.site == site)]
        for j, name in enumerate(names):
            at = i + 0.22 * (j - (len(names) - 1) / 2)
            for row in here[here.modality == name].itertuples():
                face = MODALITY_COLORS[name] if row.category == "harmful" else "white"
                look = {"color": MODALITY_COLORS[name], "marker": MODALITY_MARKERS[name], "markerfacecolor": face}
                axis.plot([at, at], [row.ci_low, row.ci_high], color=MODALITY_COLORS[name], linewidth=0.9)
                label = readable(name) if i == 0 and row.category == "harmful" else None
                axis.plot(at, row.value, linestyle="", markersize=4, label=label, **look)
    axis.axhline(0, color="0.5", linewidth=0.8)
    shown = [f"{layer}, {site.replace('mlp_out', 'MLP')}" for layer, site in places]
    axis.set_xticks(range(len(places)), shown)
    axis.set(xlabel="layer, head or MLP", ylabel="added to the coordinate")
    axis.grid(axis="x", visible=False)
    axis.legend(loc="best")


def patching_map(table: pd.DataFrame) -> Figure:
    """Activation patching: how much of the refusal score lost to a picture comes back, by layer and token, a map a
    modality.

    1 is all of it, 0 nothing. Bold: the interval lies above 0.
    """
    rows = _measured(table, "recovered", "patching_map")
    rows = rows.assign(layer=rows.layer.astype(int), is_firm=rows.ci_low > 0)
    names = present(rows.modality)
    roles = [role for role in ROLES if role in set(rows.token)]
    heights = [rows[rows.modality == name].token.nunique() for name in names]
    with styled():
        size = (WIDE, 0.3 * sum(heights) + 0.42 * len(names) + 0.4)
        figure, axes = plt.subplots(
            len(names), 1, figsize=size, sharex=True, squeeze=False, height_ratios=heights, layout="constrained"
        )
        for axis, name in zip(axes[:, 0], names, strict=True):
            own = rows[rows.modality == name]
            order = [role for role in roles if role in set(own.token)]
            look = {"vmin": 0, "vmax": 1, "cmap": "cividis", "cbar_kws": {"label": "recovered"}}
            value_map(axis, own, "token", "layer", order, **look)
            axis.set(title=readable(name), xlabel="", ylabel="")
        axes[-1, 0].set_xlabel("layer")
        plt.close(figure)
    return captioned(
        figure,
        f"""Share of the lost refusal score that comes back when the states of the request as text take the place of
        the picture run's, at one layer and token role (harmful requests; inside a picture the donor is the true
        request); {intervals_told(rows)}, by bootstrap; bold (or dotted): above 0. {counted(rows)}.""",
    )
