"""Labels of prompts, as coordinates that everything downstream selects by."""

from collections.abc import Mapping, Sequence

import numpy as np

from interp.inputs import Prompt


def labels(prompts: Sequence[Prompt]) -> dict[str, tuple[str, np.ndarray]]:
    """Return the labels of prompts as coordinates along `prompt`.

    Returns:
        `(dimension, values)` by the name of the label, as xarray takes coordinates.
    """
    records = list(map(prompt_labels, prompts))
    return prompt_coordinates({name: [record[name] for record in records] for name in records[0]})


def prompt_labels(prompt: Prompt) -> dict[str, str | bool]:
    """Return the labels of one prompt, by name."""
    query = prompt.query
    return {
        "text": query.text,
        "harmful": query.harmful,
        "category": query.category,
        "pair": query.pair or "",
        "split": query.split,
        "modality": prompt.modality,
    }


def prompt_coordinates(columns: Mapping[str, list]) -> dict[str, tuple[str, np.ndarray]]:
    """Turn lists with one entry per prompt into coordinates along `prompt`.

    Returns:
        `(dimension, values)` by the name of the label, as xarray takes coordinates.
    """
    return {
        name: ("prompt", np.array(values, dtype=bool if isinstance(values[0], bool) else object))
        for name, values in columns.items()
    }
