"""Labels of prompts, as coordinates that everything downstream selects by."""

from collections.abc import Mapping, Sequence

import numpy as np

from interp.inputs import Prompt


def labels(prompts: Sequence[Prompt]) -> dict[str, tuple[str, np.ndarray]]:
    """What is known of each prompt, as coordinates along `prompt`: everything downstream selects by them."""
    known = list(map(prompt_labels, prompts))
    return columns({name: [one[name] for one in known] for name in known[0]})


def prompt_labels(prompt: Prompt) -> dict[str, str | bool]:
    """What a prompt is labelled with."""
    query = prompt.query
    return {
        "text": query.text,
        "harmful": query.harmful,
        "category": query.category,
        "pair": query.pair or "",
        "split": query.split,
        "modality": prompt.modality,
    }


def columns(known: Mapping[str, list]) -> dict[str, tuple[str, np.ndarray]]:
    """Lists with one entry a prompt -> coordinates along `prompt`."""
    return {
        name: ("prompt", np.array(values, dtype=bool if isinstance(values[0], bool) else object))
        for name, values in known.items()
    }
