"""The measures of separability along the safety direction, named before anything is measured, and their paired rows.

A claim about separability names its measure, since they answer different questions:

    auroc      is a harmful request above a harmless one? Their order; unchanged if both classes move together.
    d_prime    how far apart are the class means, in standard deviations?
    accuracy   are the classes on the right sides of the border that text has: half-way between the anchors' means?
    margin     how wide is the gap: the smallest harmful coordinate minus the largest harmless one?
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes import accuracy_drop, d_prime_drop, margin, margin_drop
from studies.bookkeeping.estimates import mean
from studies.probing.rows import as_control, both_exist
from studies.probing.states import ProbeData


@dataclass(frozen=True)
class SeparabilityMeasure:
    """A measure of how well two classes are separated, with the limits at which no difference can be seen."""

    metric: str
    """Name of its rows."""
    name: str
    """Name in sentences."""
    floor: float | None
    """Value without any separation; None if there is no lowest value."""
    ceiling: float | None
    """Value of complete separation; None if there is no highest value."""

    @property
    def drop(self) -> str:
        """Name of the rows with the loss against text, paired over the same requests."""
        return f"{self.metric}_drop"


MEASURES = (
    SeparabilityMeasure("auroc", "AUROC (their order)", 0.5, 1.0),
    SeparabilityMeasure("d_prime", "d' (their distance)", 0.0, None),
    SeparabilityMeasure("accuracy", "accuracy at text's border", 0.5, 1.0),
    SeparabilityMeasure("margin", "margin (the gap between them)", None, None),
)
"""All measures, in the order of the claims."""


def paired_rows(data: ProbeData, by_modality: Mapping[str, Float[np.ndarray, "layer n"]]) -> Iterator[dict]:
    """Yield the margin of each modality, and against text the other losses and how far each class has moved.

    Losses of AUROC are yielded by `studies.probing.rows.drop_rows`. `coordinate_shift` is the mean change of the
    coordinate from text to the modality on the same requests, by class (column `category`).

    Args:
        data: labels and pairs of the requests, and the layers.
        by_modality: distances from the border of text along the safety direction.
    """
    is_harmful, groups, text = data.is_harmful, data.groups, by_modality.get("text")
    for name, distances in by_modality.items():
        for i in both_exist(distances, distances):
            labels = as_control({"modality": name, "layer": data.layers[i]})
            yield labels | margin(is_harmful, distances[i]).row()
            if name == "text" or text is None or np.isnan(text[i]).any():
                continue
            for drop in (d_prime_drop, accuracy_drop, margin_drop):
                yield labels | drop(is_harmful, text[i], distances[i], groups).row()
            for category, label in (("harmful", True), ("harmless", False)):
                moved = (distances[i] - text[i])[is_harmful == label]
                yield labels | {"category": category} | mean("coordinate_shift", moved)
