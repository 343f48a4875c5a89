"""Figures of the separability study."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from figures.style import (
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

SIDE_SPLITS = ("train", "anchors")
"""Requests that the model was trained on, and those that controls are taught on."""
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
P_SHOWN = 0.05


def _main_place(table: pd.DataFrame, figure: str, metrics: tuple[str, ...] = ("auroc",)) -> pd.DataFrame:
    """Of the reported split, where the controls stand: at the first site and token."""
    columns = ["split", "setting", "site", "token", "probe", "modality", "fit_modality", "layer", "control", "metric"]
    require_columns(table, [*columns, "value", "ci_low", "ci_high", "n"], figure)
    # Beside others they are not what is reported; by themselves they are.
    is_side = table.split.isin(SIDE_SPLITS)
    table = table[table.metric.isin(metrics) & (~is_side | is_side.all())]
    filled(table, ["value", "site"], f"{figure} of {', '.join(metrics)}")
    first = table[table.site.notna()].iloc[0]
    return table[table.site.isna() | ((table.site == first.site) & (table.token == first.token))]


def probe_auroc(table: pd.DataFrame) -> Figure:
    """AUROC of harmful against harmless by layer: probe within a modality, probe from text, coordinate on the SSD.

    Thin grey lines are the controls, taught as the probe of their panel, each by its mean over modalities: what
    shuffled labels and noise reach, and what words alone do.
    """
    table = _main_place(table, "probe_auroc")
    first, plain = table[table.site.notna()].probe.iloc[0], table[table.control.isna() & table.layer.notna()]
    own = plain.fit_modality == plain.modality
    panels = {
        f"{first} probe, within the modality": plain[(plain.probe == first) & (plain.setting == "folds") & own],
        f"{first} probe, fitted on anchors' text": plain[(plain.probe == first) & (plain.setting == "anchors")],
        "coordinate on the SSD": plain[plain.probe == "ssd"],
    }
    panels = {title: rows for title, rows in panels.items() if len(rows)}
    with styled():
        size = {"figsize": (WIDE, 2.6), "layout": "constrained"}
        figure, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False, **size)
        for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
            by_modality(axis, rows)
            axis.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
            axis.set(title=title, xlabel="layer")
            layer_ticks(axis, rows.layer)
        for axis, setting in zip(axes[0], ("folds", "anchors", "anchors"), strict=False):
            _controls(axis, table[table.setting == setting])
        axes[0, 0].set(ylabel="AUROC", ylim=(min(0.35, plain.value.min() - 0.05), 1.02))
        known = dict(pair[::-1] for axis in axes[0] for pair in zip(*axis.get_legend_handles_labels(), strict=True))
        figure.legend(list(known.values()), list(known), loc="outside lower center", ncols=3)
        plt.close(figure)
    shown, first = pd.concat(panels.values()), table[table.site.notna()].iloc[0]
    return captioned(
        figure,
        f"""AUROC of harmful against harmless requests by layer, states of `{first.site}` at token `{first.token}`;
        bands are 95 % intervals over other requests. Thin grey lines are controls taught as the panel's probe, means
        over modalities: a probe that does not beat them has found nothing. {counted(shown)} of both classes in each
        modality.""",
    )


def _controls(axis, table: pd.DataFrame) -> None:
    """By layer, and of what never saw a state."""
    look = {"color": "0.45", "linewidth": 0.7}
    for name, (label, line) in CONTROLS.items():
        rows = table[(table.control == name) & table.layer.notna()]
        if len(rows):
            mean = rows.groupby("layer").value.mean()
            axis.plot(mean.index, mean, linestyle=line, label=label, **look)
    for name, (label, line) in WORDS.items():
        rows = table[(table.probe == name) & table.layer.isna()]
        if len(rows):
            axis.axhline(rows.value.mean(), linestyle=line, label=label, **look)


def degradation(table: pd.DataFrame) -> Figure:
    """What each modality takes from the AUROC of text, layer by layer, over the same requests: a map a probe.

    Bold: the largest drop over all layers is rarely as large by chance (`auroc_drop_p`, below 0.05).
    """
    rows = _main_place(table, "degradation", ("auroc_drop", "auroc_drop_p"))
    rows = rows[rows.control.isna()]
    keys = ["probe", "setting", "modality", "layer"]
    drops, p_values = (rows[rows.metric == name] for name in ("auroc_drop", "auroc_drop_p"))
    drops = drops.merge(p_values[[*keys, "value"]].rename(columns={"value": "p"}), on=keys, how="left")
    drops = drops.assign(is_firm=drops.p < P_SHOWN, layer=drops.layer.astype(int))
    panels = {
        f"{'coordinate on the SSD' if probe == 'ssd' else f'{readable(probe)} probe, {readable(setting)}'}": some
        for (probe, setting), some in drops.groupby(["probe", "setting"], sort=False)
    }
    names = present(drops.modality)
    if not names:
        raise ValueError("degradation found no drop; expected a modality beside text")
    with styled():
        size = (WIDE, (0.3 * len(names) + 0.55) * len(panels))
        figure, axes = plt.subplots(len(panels), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
        bound = max(0.1, drops.value.max())
        for axis, (title, some) in zip(axes[:, 0], panels.items(), strict=True):
            look = {"vmin": 0, "vmax": bound, "cmap": "rocket_r", "cbar_kws": {"label": "AUROC lost"}}
            value_map(axis, some, "modality", "layer", names, **look)
            axis.set(title=title, xlabel="", ylabel="")
        axes[-1, 0].set_xlabel("layer")
        plt.close(figure)
    return captioned(
        figure,
        f"""AUROC of text less that of each modality, over the same requests; {intervals_told(drops)}. Bold (or
        dotted): as large a drop at any layer comes about in fewer than {P_SHOWN:.0%} of swaps within pairs.
        {counted(drops)}.""",
    )


def transfer(table: pd.DataFrame, layer: int) -> Figure:
    """AUROC of the probe fitted in one modality (rows) on requests it has not seen, in another (columns)."""
    table = _main_place(table, "transfer")
    first = table[table.site.notna()].probe.iloc[0]
    rows = table[(table.probe == first) & (table.setting == "folds") & (table.layer == layer) & table.control.isna()]
    if rows.empty:
        known = sorted(int(one) for one in table.layer.dropna().unique())
        raise ValueError(f"transfer found no probes at layer {layer}; the table has layers {known}")
    names = present(rows.modality)
    with styled():
        figure, axis = plt.subplots(figsize=(0.75 * WIDE, 0.42 * len(names) + 1.0), layout="constrained")
        rows = rows.assign(modality=pd.Categorical(rows.modality, names))
        value_map(
            axis,
            rows,
            "fit_modality",
            "modality",
            names,
            vmin=0.5,
            vmax=1,
            cmap="cividis",
            xticklabels=[readable(name) for name in names],
            cbar_kws={"label": "AUROC"},
        )
        axis.set(xlabel="tested in", ylabel="fitted in", title=f"{first} probe, layer {layer}")
        axis.tick_params(axis="x", rotation=20)
        plt.close(figure)
    return captioned(
        figure,
        f"""AUROC of a {first} probe at layer {layer}, fitted in one modality and tested in another on requests that
        it has not seen; 95 % intervals under each value. {counted(rows)} of both classes.""",
    )
