"""The direction that separates pairs as text, and with a blank picture: cosine and length, layer by layer."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from interp import VLM, Query, to_prompts, trace
from probes import cosine
from studies.defences.benchmark_sets import with_blank
from studies.presets.preset import PresetError
from studies.presets.verdicts import OurResult

N_DRAWS = 1000
LEAST_PAIRS = 3


def compare_directions(
    vlm: VLM,
    pairs: Sequence[Query],
    layers: Sequence[int],
    blank: str,
    advance: Callable[[int], None] = lambda n_prompts: None,
) -> dict[tuple[str, int], OurResult]:
    """Compare mean differences as text and with a blank picture, at the last prompt token.

    Args:
        vlm: the model.
        pairs: harmful and harmless requests in pairs, which are drawn whole for the intervals.
        layers: decoder blocks after which states are read.
        blank: colour of the picture.
        advance: called with the number of prompts finished after each batch.

    Returns:
        `("cosine", layer)` and `("ratio", layer)`, the length with a picture relative to text, with 95 % bootstrap
        intervals over pairs.

    Raises:
        PresetError: the requests are not in pairs, or there are fewer than three.
    """
    _check_pairs(pairs)
    size = vlm.picture_size
    pictured = [with_blank(prompt, blank, size) for prompt in to_prompts(pairs, "blank", size)]
    by_modality = [to_prompts(pairs, "text", size), pictured]
    text, blank_ = (_differences(trace(vlm, prompts, layers=layers, advance=advance)) for prompts in by_modality)
    drawn = np.random.default_rng(0).integers(len(text), size=(N_DRAWS, len(text)))
    results = {}
    for i, layer in enumerate(layers):
        values = _cosine_and_ratio(text[:, i].mean(0), blank_[:, i].mean(0))
        draws = [_cosine_and_ratio(text[rows, i].mean(0), blank_[rows, i].mean(0)) for rows in drawn]
        low, high = np.percentile(draws, [2.5, 97.5], axis=0)
        for k, measure in enumerate(("cosine", "ratio")):
            results[measure, layer] = OurResult(values[k], float(low[k]), float(high[k]), len(text))
    return results


def _check_pairs(pairs: Sequence[Query]) -> None:
    classes = defaultdict(list)
    for query in pairs:
        classes[query.pair].append(query.harmful)
    lonely = [name for name, members in classes.items() if name is None or sorted(members) != [False, True]]
    if lonely or len(classes) < LEAST_PAIRS:
        found = f"pair {lonely[0]!r} has {len(classes[lonely[0]])} requests" if lonely else f"{len(classes)} pairs"
        raise PresetError(f"{found}; expected {LEAST_PAIRS} pairs at least, each of a harmful and a harmless request")


def _differences(states: xr.Dataset) -> Float[np.ndarray, "pair layer d_model"]:
    """Return harmful minus harmless of each pair."""
    values, pairs = states.resid_post.values[:, :, 0].astype(np.float64), states.pair.values
    harmful = states.harmful.values.astype(bool)
    names = list(dict.fromkeys(pairs))
    return np.stack([values[(pairs == n) & harmful].mean(0) - values[(pairs == n) & ~harmful].mean(0) for n in names])


def _cosine_and_ratio(text: Float[np.ndarray, " d"], blank: Float[np.ndarray, " d"]) -> tuple[float, float]:
    return float(cosine(text, blank)), float(np.linalg.norm(blank) / np.linalg.norm(text))
