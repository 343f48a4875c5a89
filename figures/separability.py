"""Separability of harmful and harmless requests: by layer, what a picture costs, and transfer between modalities."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from figures.maps import fit_cells, value_map
from figures.page import legend_below, page_width, panels, wrapped
from figures.style import (
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

SIDE_SPLITS = ("train", "anchors")
"""Splits that are not reported: requests that the model was trained on, and those that directions are fitted on."""
CONTROLS = {
    "shuffled_labels": ("shuffled labels", (0, (4, 2))),
    "filler_tokens": ("filler tokens in place of a picture", (0, (6, 1, 1, 1, 1, 1))),
}
WORDS = {
    "random_features": ("noise as wide as the states", (0, (1, 1))),
    "length": ("length alone", ":"),
    "first_last_token": ("first and last token alone", (0, (5, 1, 1, 1))),
    "bag_of_words": ("bag of words", "-."),
}
FITTED = {"folds": "within the modality", "anchors": "fitted on anchors' text"}
"""How a probe was fitted, by the setting of the table."""
SIGNIFICANT = 0.05
"""Drops with a smaller p-value are bold."""


def _main_place(table: pd.DataFrame, figure: str, metrics: tuple[str, ...] = ("auroc",)) -> pd.DataFrame:
    """Keep the reported split at the first site and token, where the controls are."""
    columns = ["split", "setting", "site", "token", "probe", "modality", "fit_modality", "layer", "control", "metric"]
    require_columns(table, [*columns, "value", "ci_low", "ci_high", "n"], figure)
    # A table that holds nothing else is drawn all the same.
    is_side = table.split.isin(SIDE_SPLITS)
    table = table[table.metric.isin(metrics) & (~is_side | is_side.all())]
    require_values(table, ["value", "site"], f"{figure} of {', '.join(metrics)}")
    first = table[table.site.notna()].iloc[0]
    return table[table.site.isna() | ((table.site == first.site) & (table.token == first.token))]


def probe_auroc(table: pd.DataFrame) -> Figure:
    """Draw AUROC of harmful against harmless by layer: probes within a modality, probes fitted on text, and the SSD.

    Thin grey lines are controls, fitted like the probe of their panel and averaged over modalities: what shuffled
    labels and noise reach, and words alone.

    Args:
        table: written by `studies.separability`.
    """
    table = _main_place(table, "probe_auroc")
    probe, plain = table[table.site.notna()].probe.iloc[0], table[table.control.isna() & table.layer.notna()]
    is_own = plain.fit_modality == plain.modality
    by_title = {
        f"{probe} probe, within the modality": plain[(plain.probe == probe) & (plain.setting == "folds") & is_own],
        f"{probe} probe, fitted on anchors' text": plain[(plain.probe == probe) & (plain.setting == "anchors")],
        "coordinate on the SSD": plain[plain.probe == "ssd"],
    }
    by_title = {title: rows for title, rows in by_title.items() if len(rows)}
    with paper_style():
        figure, axes = panels(len(by_title), 1.7, 2.1, sharey=True)
        for axis, (title, rows) in zip(axes, by_title.items(), strict=True):
            by_modality(axis, rows)
            axis.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
            axis.set(title=wrapped(title, 1.4), xlabel="layer")
            layer_ticks(axis)
        for axis, setting in zip(axes, ("folds", "anchors", "anchors"), strict=False):
            _controls(axis, table[table.setting == setting])
        axes[0].set(ylabel="AUROC", ylim=(min(0.35, plain.value.min() - 0.05), 1.02))
        handles = dict(pair[::-1] for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True))
        legend_below(figure, list(handles.values()), list(handles))
        plt.close(figure)
    drawn, place = pd.concat(by_title.values()), table[table.site.notna()].iloc[0]
    return add_caption(
        figure,
        f"""AUROC of harmful against harmless requests by layer, for states of `{place.site}` at token `{place.token}`;
        bands are 95 % intervals over other requests. Thin grey lines are controls, fitted like the panel's probe and
        averaged over modalities: a probe that does not beat them shows nothing. {sample_size(drawn)} of both classes in
        each modality.""",
    )


def _controls(axis, table: pd.DataFrame) -> None:
    """Draw controls that are fitted at each layer, and baselines that need no states as horizontal lines."""
    style = {"color": "0.45", "linewidth": 0.7}
    for name, (label, line) in CONTROLS.items():
        rows = table[(table.control == name) & table.layer.notna()]
        if len(rows):
            mean = rows.groupby("layer").value.mean()
            axis.plot(mean.index, mean, linestyle=line, label=label, **style)
    for name, (label, line) in WORDS.items():
        rows = table[(table.probe == name) & table.layer.isna()]
        if len(rows):
            axis.axhline(rows.value.mean(), linestyle=line, label=label, **style)


def degradation(table: pd.DataFrame) -> Figure:
    """Draw how much AUROC each modality loses against text at each layer, on the same requests: one map per probe.

    Bold: chance rarely gives as large a drop at any layer (`auroc_drop_p` below 0.05).

    Args:
        table: written by `studies.separability`.
    """
    rows = _main_place(table, "degradation", ("auroc_drop", "auroc_drop_p"))
    rows = rows[rows.control.isna()]
    keys = ["probe", "setting", "modality", "layer"]
    drops, p_values = (rows[rows.metric == name] for name in ("auroc_drop", "auroc_drop_p"))
    drops = drops.merge(p_values[[*keys, "value"]].rename(columns={"value": "p"}), on=keys, how="left")
    drops = drops.assign(is_significant=drops.p < SIGNIFICANT, layer=drops.layer.astype(int))
    by_title = {
        "coordinate on the SSD" if probe == "ssd" else f"{probe} probe, {FITTED.get(setting, setting)}": group
        for (probe, setting), group in drops.groupby(["probe", "setting"], sort=False)
    }
    names = modalities_in(drops.modality)
    if not names:
        raise ValueError("degradation found no drop; expected another modality besides text")
    with paper_style():
        figure, axes = panels(len(by_title), page_width(), 0.32 * len(names) + 0.45)
        bound = max(0.1, drops.value.max())
        for axis, (title, cells) in zip(axes, by_title.items(), strict=True):
            style = {"vmin": 0, "vmax": bound, "cmap": "rocket_r", "cbar_kws": {"label": "AUROC lost"}}
            value_map(axis, cells, "modality", "layer", names, **style)
            axis.set_yticklabels([in_words(name, "modality") for name in names])
            axis.set_title(title)
        for axis in axes[:-1]:
            axis.set_xticks([])
        axes[-1].set_xlabel("layer")
        notes = fit_cells(figure)
        plt.close(figure)
    return add_caption(
        figure,
        f"""AUROC of text minus that of each modality, on the same requests; {notes.intervals}.
        {notes.marks.capitalize()}: fewer than {SIGNIFICANT:.0%} of random swaps within pairs give as large a drop at
        any layer. {sample_size(drops)}.""",
    )


MEASURES = {
    "auroc": "AUROC: order",
    "d_prime": "d': distance",
    "accuracy": "accuracy at text's border",
    "margin": "margin: gap",
}
"""Titles of the measures of separation along the SSD."""


def separation(table: pd.DataFrame) -> Figure:
    """Draw four measures of how well the coordinate on the SSD separates the classes, by layer and modality.

    They answer different questions: a picture that moves both classes together keeps their order and loses the border.

    Args:
        table: written by `studies.separability`.
    """
    rows = _main_place(table, "separation", tuple(MEASURES))
    rows = rows[(rows.probe == "ssd") & rows.control.isna()]
    require_values(rows, ["value"], "separation along the SSD")
    metrics = [name for name in MEASURES if name in set(rows.metric)]
    with paper_style():
        figure, axes = panels(len(metrics), 1.4, 1.8)
        for axis, metric in zip(axes, metrics, strict=True):
            own = rows[rows.metric == metric]
            by_modality(axis, own)
            if metric in ("auroc", "accuracy"):
                axis.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
            elif metric == "margin":
                axis.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
            axis.set(title=wrapped(MEASURES[metric], 1.2), xlabel="layer")
            layer_ticks(axis)
        legend_below(figure, *axes[0].get_legend_handles_labels())
        plt.close(figure)
    return add_caption(
        figure,
        f"""Separation of harmful and harmless requests by the coordinate on the SSD, by layer: AUROC, the distance of
        the class means in standard deviations, the share on the right side of the border that text has (half-way
        between the anchors' means), and the smallest harmful coordinate minus the largest harmless one; bands are 95 %
        intervals over other pairs, the margin has none. Dotted: no separation. {sample_size(rows)} of both classes in
        each modality.""",
    )


def transfer(table: pd.DataFrame, layer: int) -> Figure:
    """Draw AUROC of a probe fitted in one modality (rows) on requests that it has not seen, in another (columns).

    Args:
        table: written by `studies.separability`.
        layer: layer that is drawn.

    Raises:
        ValueError: columns that are missing, or no probes at that layer.
    """
    table = _main_place(table, "transfer")
    probe = table[table.site.notna()].probe.iloc[0]
    rows = table[(table.probe == probe) & (table.setting == "folds") & (table.layer == layer) & table.control.isna()]
    if rows.empty:
        layers = sorted(int(layer) for layer in table.layer.dropna().unique())
        raise ValueError(f"transfer found no probes at layer {layer}; the table has layers {layers}")
    names = modalities_in(rows.modality)
    with paper_style():
        figure, (axis,) = panels(1, page_width(), 0.36 * len(names) + 0.9)
        rows = rows.assign(modality=pd.Categorical(rows.modality, names))
        style = {"vmin": 0.5, "vmax": 1, "cmap": "cividis", "cbar_kws": {"label": "AUROC"}}
        value_map(axis, rows, "fit_modality", "modality", names, **style)
        words = [in_words(name, "modality") for name in names]
        axis.set_xticklabels([wrapped(name, 0.45) for name in words])
        axis.set_yticklabels(words)
        axis.set(xlabel="tested in", ylabel="fitted in", title=f"{probe} probe, layer {layer}")
        notes = fit_cells(figure)
        plt.close(figure)
    return add_caption(
        figure,
        f"""AUROC of a {probe} probe at layer {layer}, fitted in one modality and tested in another, on requests that
        it has not seen; {notes.intervals}. {sample_size(rows)} of both classes.""",
    )
