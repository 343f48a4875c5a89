"""Heads and MLPs that write the safety signal, and the layer and token at which a picture suppresses it.

Four measurements, distinguished by `metric`:

1. `refusal_score` at `resid_post` of every layer: the logit lens of the refusal openings. A layer's state says nothing
   about a second token: with two-token openings it is `refusal_score_single`, of the single tokens alone, or left out.
2. `coordinate_written`: what each head and MLP adds to the coordinate at `last` on the SSD of the guard's layer.
3. `attention_image`, `attention_text`, `attention_first`: what the heads that write most of it attend to.
4. `recovered`: activation patching, the causal measurement. States of the text-only run replace those of the run with
   the picture, one layer and token role (`token`) at a time: how much of the lost refusal score comes back?
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pandas as pd
import xarray as xr

from interp import TYPOGRAPHIC, Prompt, patch, recovered, text_prompt
from interp.lens import ATTENDED, Lens, writers
from probes import Measured
from studies.bookkeeping.console import plain_console
from studies.bookkeeping.estimates import mean
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.experiment.config import SWEPT, Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.generation.first_token import opening_score
from studies.generation.openings import RefusalOpenings
from studies.separability import fit_direction

N_WRITERS = 5
"""Number of heads whose attention is reported."""
N_DRAWS = 1000
"""Bootstrap draws of an interval."""
CLASSES = {"harmful": True, "harmless": False}


def run(config: Config, experiment: Experiment | None = None, layer: int | None = None) -> pd.DataFrame:
    """Take the four measurements on the reported split.

    Models that TransformerLens does not support, or not correctly, get the patching alone.

    Args:
        config: the run.
        experiment: model and queries, if they are loaded already.
        layer: layer whose coordinate is attributed; by default the last.

    Returns:
        A tidy table, one row per measurement.
    """
    experiment = experiment or load_experiment(config)
    layer = experiment.vlm.n_layers - 1 if layer is None else layer
    rows = []
    try:
        rows += list(_all_lens_rows(experiment, Lens(experiment.vlm), layer))
    except Exception as error:
        # The lens is a second opinion, perhaps after hours of work: no failure in it may cost the rest.
        plain_console(stderr=True).print(f"logit lens, attribution and attention are left out: {error}", soft_wrap=True)
    rows += _all_patching_rows(experiment)
    return tidy(experiment.labels | {"split": config.split} | row for row in rows)


def _all_lens_rows(experiment: Experiment, lens: Lens, layer: int) -> Iterator[dict]:
    direction = fit_direction(experiment)
    batch_size = experiment.config.generation.batch_size
    basis = direction.basis[layer, 0]
    strongest = writers(lens.attribution(experiment.prompts("anchors", "text"), basis, layer, batch_size), N_WRITERS)
    modalities = experiment.sizes.modalities
    with phase("lens", len(modalities)) as report:
        for modality in modalities:
            prompts = experiment.prompts(experiment.config.split, modality)
            labels = {"modality": modality, "token": "last"}
            direction_labels = {"estimator": direction.estimator, "direction_layer": layer}
            yield from (labels | row for row in _lens_rows(lens, prompts, experiment.refusal_openings, batch_size))
            contributions = lens.attribution(prompts, basis, layer, batch_size)
            yield from (labels | direction_labels | row for row in _attribution_rows(contributions))
            yield from (labels | row for row in _attention_rows(lens.attention(prompts, batch_size), strongest))
            report(1)


def _lens_rows(lens: Lens, prompts: Sequence[Prompt], openings: RefusalOpenings, batch_size: int) -> Iterator[dict]:
    """Yield the logit lens of the single-token openings; nothing if there are none."""
    if not openings.single:
        return
    metric = "refusal_score_single" if openings.seconds else "refusal_score"
    scores = lens.logit_lens(prompts, opening_score(openings.single_only), batch_size)
    for category, label in CLASSES.items():
        of_class = scores.values[scores.harmful.values == label]
        for layer in scores.layer.values:
            labels = {"category": category, "layer": int(layer), "site": "resid_post"}
            yield labels | mean(metric, of_class[:, layer])


def _attribution_rows(contributions: xr.Dataset) -> Iterator[dict]:
    for category, label in CLASSES.items():
        of_class = contributions.isel(prompt=contributions.harmful.values == label)
        for layer in contributions.layer.values:
            labels = {"category": category, "layer": int(layer)}
            for head in contributions["head"].values:
                written = of_class.heads.sel(layer=layer, head=head).values
                yield labels | {"site": f"head {head}"} | mean("coordinate_written", written)
            yield labels | {"site": "mlp_out"} | mean("coordinate_written", of_class.mlp.sel(layer=layer).values)
    yield Measured("attribution_error", contributions.attrs["error"], n=len(contributions.prompt)).row()


def _attention_rows(attention: xr.DataArray, strongest: list[tuple[int, int]]) -> Iterator[dict]:
    for (layer, head), attended, (category, label) in product(strongest, ATTENDED, CLASSES.items()):
        shares = attention.sel(layer=layer, head=head, attended=attended).values[attention.harmful.values == label]
        yield {"category": category, "layer": layer, "site": f"head {head}"} | mean(f"attention_{attended}", shares)


def _all_patching_rows(experiment: Experiment) -> Iterator[dict]:
    """Patch harmful queries with their text; the donor of a typographic prompt is its true request."""
    config = experiment.config
    n_patched, score = experiment.sizes.n_patched, opening_score(experiment.refusal_openings)
    modalities = [name for name in SWEPT if name in experiment.sizes.modalities]
    with phase("activation patching", n_patched * len(modalities)) as report:
        for modality in modalities:
            prompts = [prompt for prompt in experiment.prompts(config.split, modality) if prompt.query.harmful]
            prompts = prompts[:n_patched]
            is_typographic = modality in TYPOGRAPHIC
            donors = [text_prompt(prompt.query.text) for prompt in prompts] if is_typographic else None
            patched = patch(experiment.vlm, prompts, score, donors, batch_size=16, advance=report)
            labels = {"modality": modality, "category": "harmful", "site": "resid_post"}
            labels["reference"] = "oracle" if is_typographic else "prompt_text"
            yield from (labels | row for row in _patching_rows(patched))


def _patching_rows(patched: xr.Dataset) -> Iterator[dict]:
    """Yield the ratio of means with its bootstrap interval, over the prompts that have such a token."""
    shares = recovered(patched)
    for i, layer in enumerate(patched.layer.values):
        for j, role in enumerate(patched.role.values):
            scores = patched.patched.values[:, i, j]
            has_role = np.isfinite(scores)
            n = int(has_role.sum())
            if not n:
                continue
            unpatched = patched.unpatched.values[has_role]
            gained, lost = scores[has_role] - unpatched, patched.donor.values[has_role] - unpatched
            draws = np.random.default_rng(0).integers(n, size=(N_DRAWS, n))
            low, high = np.percentile(gained[draws].sum(1) / lost[draws].sum(1), [2.5, 97.5])
            share = Measured("recovered", float(shares.values[i, j]), float(low), float(high), n)
            yield {"layer": int(layer), "token": str(role)} | share.row()
