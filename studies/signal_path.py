"""Where the safety signal is written, and at which layer and token a picture loses it.

Four measurements, told apart by `metric`:

1. `refusal_score` at `resid_post` of every layer: the logit lens of the refusal openings.
2. `coordinate_written`: what each head and MLP adds to the SSD coordinate at `last`, of the layer that a guard uses.
3. `attention_image`, `attention_text`, `attention_first`: where the heads that write safety look.
4. `recovered`: activation patching. The states of the text run in place of the picture run's, layer by layer and role
   by role (`token`): how much of the lost refusal score comes back. The causal one.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console

from interp.inputs import TYPOGRAPHIC, text_prompt
from interp.lens import ATTENDED, Lens, writers
from interp.patching import patch, recovered
from studies.bookkeeping.estimates import mean
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.experiment.config import SWEPT, Config
from studies.experiment.experiment import Experiment, load
from studies.generation.first_token import refusal_scores
from studies.separability import fit_direction

N_WRITERS = 5
N_DRAWS = 1000
CLASSES = {"harmful": True, "harmless": False}


def run(config: Config, material: Experiment | None = None, layer: int | None = None) -> pd.DataFrame:
    """The four measurements on the reported split.

    Args:
        layer: whose coordinate is attributed; by default the last.

    Models that TransformerLens does not know, or not rightly, get the patching alone.
    """
    material = material or load(config)
    layer = material.vlm.n_layers - 1 if layer is None else layer
    score = partial(refusal_scores, tokens=material.refusal_tokens.ids)
    rows = []
    try:
        rows += list(_through_the_lens(material, Lens(material.vlm), score, layer))
    except Exception as error:
        # A second opinion, after hours perhaps: whatever goes wrong in it must not cost the rest.
        Console(stderr=True).print(f"logit lens, attribution and attention are left out: {error}", soft_wrap=True)
    rows += _patched(material, score)
    return tidy(material.labels | {"split": config.split} | row for row in rows)


def _through_the_lens(material: Experiment, lens: Lens, score: Callable, layer: int) -> Iterator[dict]:
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
    for (layer, head), attended, (name, label) in product(strongest, ATTENDED, CLASSES.items()):
        share = found.sel(layer=layer, head=head, attended=attended).values[found.harmful.values == label]
        yield {"category": name, "layer": layer, "site": f"head {head}"} | mean(f"attention_{attended}", share)


def _patched(material: Experiment, score: Callable) -> Iterator[dict]:
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
    """Ratio of means, with its bootstrap interval over the prompts that have such a token."""
    whole = recovered(found)
    for i, layer in enumerate(found.layer.values):
        for j, role in enumerate(found.role.values):
            patched = found.patched.values[:, i, j]
            known = np.isfinite(patched)
            n = int(known.sum())
            if not n:
                continue
            unpatched = found.unpatched.values[known]
            moved, lost = patched[known] - unpatched, found.donor.values[known] - unpatched
            rows = np.random.default_rng(0).integers(n, size=(N_DRAWS, n))
            low, high = np.percentile(moved[rows].sum(1) / lost[rows].sum(1), [2.5, 97.5])
            value = {"value": float(whole.values[i, j]), "ci_low": low, "ci_high": high, "n": n}
            yield {"layer": int(layer), "token": str(role), "metric": "recovered"} | value
