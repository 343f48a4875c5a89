"""Where the safety signal is written, and at which layer and token a picture loses it.

Four measurements, told apart by `metric`:

1. `refusal_score` at `resid_post` of every layer: the logit lens of the refusal openings.
2. `coordinate_written`: what each head and MLP adds to the SSD coordinate at `last`, of the layer that a guard uses.
3. `attention_image`: how much of their attention the heads that write safety give to the picture.
4. `recovered`: activation patching. The states of the text run in place of the picture run's, layer by layer and role
   by role (`token`): how much of the lost refusal score comes back. The causal one.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console

from interp.inputs import TYPOGRAPHIC, text_prompt
from interp.lens import Lens, NotInTransformerLens, writers
from interp.patching import patch, recovered
from studies.guarding import mean
from studies.layer_sweep import SWEPT
from studies.material import Config, Material, load
from studies.progress import phase
from studies.records import tidy
from studies.scores import refusal_scores
from studies.separability import fit_direction

N_WRITERS = 5
N_DRAWS = 1000
CLASSES = {"harmful": True, "harmless": False}


def run(config: Config, material: Material | None = None, layer: int | None = None) -> pd.DataFrame:
    """The four measurements on the reported split.

    Args:
        layer: whose coordinate is attributed; by default the last.

    Families that TransformerLens does not know get the patching alone.
    """
    material = material or load(config)
    layer = material.vlm.n_layers - 1 if layer is None else layer
    score = partial(refusal_scores, tokens=material.refusal_tokens.ids)
    rows = []
    try:
        rows += _through_the_lens(material, Lens(material.vlm), score, layer)
    except NotInTransformerLens as error:
        Console(stderr=True).print(f"logit lens, attribution and attention are left out: {error}", soft_wrap=True)
    rows += _patched(material, score)
    return tidy(material.labels | {"split": config.split} | row for row in rows)


def _through_the_lens(material: Material, lens: Lens, score: Callable, layer: int) -> Iterator[dict]:
    direction = fit_direction(material)
    size = material.config.generation.batch_size
    row = direction.basis[layer, 0]
    strongest = writers(lens.attribution(material.prompts("anchors", "text"), row, layer, size), N_WRITERS)
    modalities = material.config.sizes.modalities
    with phase("lens", len(modalities)) as report:
        for modality in modalities:
            prompts = material.prompts(material.config.split, modality)
            about = {"modality": modality, "token": "last"}
            written = {"estimator": direction.estimator, "direction_layer": layer}
            yield from (about | found for found in _lens_rows(lens.logit_lens(prompts, score, size)))
            contributions = lens.attribution(prompts, row, layer, size)
            yield from (about | written | found for found in _written_rows(contributions))
            yield from (about | found for found in _attention_rows(lens.attention(prompts, size), strongest))
            report(1)


def _lens_rows(found: xr.DataArray) -> Iterator[dict]:
    for name, label in CLASSES.items():
        chosen = found.values[found.harmful.values == label]
        for layer in found.layer.values:
            place = {"category": name, "layer": int(layer), "site": "resid_post"}
            yield place | mean("refusal_score", chosen[:, layer])


def _written_rows(found: xr.Dataset) -> Iterator[dict]:
    for name, label in CLASSES.items():
        chosen = found.isel(prompt=found.harmful.values == label)
        for layer in found.layer.values:
            place = {"category": name, "layer": int(layer)}
            for head in found["head"].values:
                at = chosen.heads.sel(layer=layer, head=head).values
                yield place | {"site": f"head {head}"} | mean("coordinate_written", at)
            yield place | {"site": "mlp_out"} | mean("coordinate_written", chosen.mlp.sel(layer=layer).values)
    yield {"metric": "attribution_error", "value": found.attrs["error"], "n": len(found.prompt)}


def _attention_rows(found: xr.DataArray, strongest: list[tuple[int, int]]) -> Iterator[dict]:
    for layer, head in strongest:
        at = found.sel(layer=layer, head=head, attended="image")
        for name, label in CLASSES.items():
            place = {"category": name, "layer": layer, "site": f"head {head}"}
            yield place | mean("attention_image", at.values[found.harmful.values == label])


def _patched(material: Material, score: Callable) -> Iterator[dict]:
    """Of harmful queries; the donor of a typographic prompt is its true request."""
    config = material.config
    n = config.sizes.n_patched
    modalities = [name for name in SWEPT if name in config.sizes.modalities]
    with phase("activation patching", n * len(modalities)) as report:
        for modality in modalities:
            prompts = [p for p in material.prompts(config.split, modality) if p.query.harmful][:n]
            is_typographic = modality in TYPOGRAPHIC
            donors = [text_prompt(p.query.text) for p in prompts] if is_typographic else None
            found = patch(material.vlm, prompts, score, donors, batch_size=16, advance=report)
            about = {"modality": modality, "category": "harmful", "site": "resid_post"}
            about["reference"] = "oracle" if is_typographic else "prompt_text"
            yield from (about | row for row in _recovered_rows(found))


def _recovered_rows(found: xr.Dataset) -> Iterator[dict]:
    """Ratio of means, with its bootstrap interval over prompts."""
    n = len(found.prompt)
    whole = recovered(found)
    draws = np.random.default_rng(0).integers(n, size=(N_DRAWS, n))
    drawn = np.stack([recovered(found.isel(prompt=rows)).values for rows in draws])
    for i, layer in enumerate(found.layer.values):
        for j, role in enumerate(found.role.values):
            if np.isfinite(whole.values[i, j]):
                low, high = np.nanpercentile(drawn[:, i, j], [2.5, 97.5])
                value = {"value": float(whole.values[i, j]), "ci_low": low, "ci_high": high, "n": n}
                yield {"layer": int(layer), "token": str(role), "metric": "recovered"} | value
