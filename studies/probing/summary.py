"""Sentences on the table of separability: which baselines the probes beat."""

import pandas as pd

from studies.experiment.config import TRAINED
from studies.probing.settings import named_layers


def summary_lines(table: pd.DataFrame) -> list[str]:
    """Say for each modality in one sentence which baselines the probe beats, and at which layers it does not.

    Args:
        table: the table of the separability study.
    """
    table = table[~table.split.isin([TRAINED, "anchors"])] if "split" in table and table.split.nunique() > 1 else table
    is_first_place = (table.site == table.site.dropna().iloc[0]) & (table.token == table.token.dropna().iloc[0])
    table = table[(table.setting == "folds") & is_first_place]
    gains = table[table.metric == "auroc_gain"]
    return [_summary_line(table, modality, rows) for modality, rows in gains.groupby("modality", sort=False)]


def _summary_line(table: pd.DataFrame, modality: str, gains: pd.DataFrame) -> str:
    probe, unbeaten = gains.probe.iloc[0], {}
    is_own = (table.probe == probe) & (table.modality == modality) & (table.fit_modality == modality)
    aurocs = table[is_own & (table.metric == "auroc") & table.control.isna()]
    best = aurocs.loc[aurocs.value.idxmax()]
    for control, rows in gains.groupby("control", sort=False):
        layers = tuple(sorted(rows[~(rows.ci_low > 0)].layer.astype(int)))
        unbeaten.setdefault(layers, []).append(control.replace("_", " "))
    beaten = ", ".join(unbeaten.pop((), []))
    parts = [f"beats {beaten} at every layer"] if beaten else []
    parts += [f"does not beat {', '.join(names)} at {named_layers(layers)}" for layers, names in unbeaten.items()]
    return f"{modality}: {probe} probe, AUROC up to {best.value:.2f} (layer {best.layer:.0f}): {'; '.join(parts)}"
