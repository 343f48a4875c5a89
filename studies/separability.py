"""How far harmful and harmless come apart, layer by layer, as text, beside a picture and inside one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from rich.console import Console
from sklearn.decomposition import PCA

from interp.activations import fingerprint
from interp.directions import SafetyDirection
from interp.inputs import Query, collate, to_prompt
from interp.projection import coordinates
from interp.vlm import VLM
from probes import PROBES, auroc, measure, word_probe
from studies.bookkeeping.estimates import mean
from studies.bookkeeping.tables import tidy
from studies.experiment.config import BUILT_IN, TRAINED, Config, ConfigError
from studies.experiment.experiment import Experiment, load
from studies.generation.generate import answers
from studies.probing.rows import as_control, drop_rows, probe_rows, shift_cosines
from studies.probing.states import FILLER, ProbeData, ProbeError, ProbeSettings, QueryLabels, fitting

EXTENTS = {
    "tiny": ProbeSettings(n_shuffles=1, n_tasks=0, n_swaps=100),
    "quick": ProbeSettings(n_shuffles=2, n_tasks=0),
    "full": ProbeSettings(
        sites=("resid_post", "attn_out", "mlp_out"),
        tokens=("last", "instruction", "image_mean", "text_mean"),
        probes=tuple(PROBES),
        by_category=True,
        attacks=True,
        trained=True,
    ),
}
"""By scale."""
FILLERS = (".", ",", "-", "_", "the", "a", "and")
"""Words that say nothing; the first of them that is one token is taken."""


def run(config: Config, material: Experiment | None = None, extent: ProbeSettings | None = None) -> pd.DataFrame:
    """Harmful against harmless at every place and in every modality, with controls.

    Three questions, told apart by `probe` and `setting`:

    1. probes fitted and tested within a modality (`folds`): is the difference there at all?
    2. the first of them, fitted on the text of the `anchors`: is it where text has it?
    3. `ssd`, the coordinate on the safety steering direction: is it where the guard looks?

    Each with what it loses from text to the others (`auroc_drop`, `auroc_drop_p`); probes carried from modality to
    modality; the modality gap; how modality shifts lie to the SSD (`shift_cosine`) and whether that tells attacks which
    succeed (`asr_auroc`). The other columns are explained in `studies.probing`.

    Raises:
        ProbeError: fewer pairs than folds, a class missing in one, places that do not exist.
    """
    material = material or load(config)
    extent = fitting(extent or EXTENTS[config.scale], material.vlm.d_model)
    extent.check_layers(range(material.vlm.n_layers))
    extent.folds(QueryLabels.of(material.queries[config.split]), config.seed)
    rows = _measured(material, config.split, extent)
    if extent.trained and TRAINED in material.queries and config.model == BUILT_IN:
        rows += _measured(material, TRAINED, replace(_main(extent), n_shuffles=0, n_tasks=0))
    if extent.n_tasks and not any(row["metric"] == "selectivity" for row in rows):
        rows += _selectivity(material, replace(_main(extent), n_shuffles=0))
    return tidy(material.labels | row for row in rows)


def extent_of(scale: str, changes: Mapping) -> ProbeSettings:
    """That of a scale, with changes.

    Raises:
        ConfigError: no such scale.
        ProbeError: something in it does not exist.
    """
    if scale not in EXTENTS:
        raise ConfigError(f"scale {scale!r} does not exist; expected one of {', '.join(EXTENTS)}")
    return replace(EXTENTS[scale], **changes)


def _main(extent: ProbeSettings) -> ProbeSettings:
    """The first place and the first probe alone."""
    return replace(
        extent,
        sites=extent.sites[:1],
        tokens=extent.tokens[:1],
        probes=extent.probes[:1],
        by_category=False,
        attacks=False,
    )


def _selectivity(material: Experiment, extent: ProbeSettings) -> Iterator[dict]:
    """Control tasks on the anchors, where the split has too few queries that share their verb."""
    read = {"sites": extent.sites, "tokens": extent.tokens}
    states = {name: material.activations("anchors", name, **read) for name in material.config.sizes.modalities}
    try:
        probed = ProbeData(states, extent, material.config.seed, verbs=_verbs(material.queries["anchors"]))
    except ProbeError as error:
        Console(stderr=True).print(f"no control task on the anchors: {error}", soft_wrap=True)
        return
    if "verb_labels" not in probed.plan.controls:
        Console(stderr=True).print("no control task: hardly any verb stands in more than one pair of queries")
        return
    prompts = chain(*(material.prompts("anchors", name) for name in states))
    about = {"states": fingerprint(material.vlm, list(prompts))}
    for row in probe_rows(probed, Path(material.config.out) / "probes", about, "control tasks, anchors"):
        if row.get("control") == "verb_labels":
            yield {"split": "anchors"} | row


def _verbs(queries: Sequence[Query]) -> list[str]:
    """What is to be done: the first word of what a picture shows of a request, else of its text."""
    return [query.rendered.split()[0].lower() for query in queries]


def _measured(material: Experiment, split: str, extent: ProbeSettings) -> list[dict]:
    config, queries = material.config, material.queries[split]
    # 1. the split in every modality, and the anchors as text
    read = {"sites": extent.sites, "tokens": extent.tokens}
    states = {name: material.activations(split, name, **read) for name in config.sizes.modalities}
    template = filler_template(material.vlm, queries[0])
    if template:
        fillers = material.prompts(split, "text", template=template)
        states[FILLER] = material.traced(fillers, f"trace {split}, filler tokens", **read)
    tokens = [material.vlm.tokenizer.tokenize(query.text) for query in queries]
    probed = ProbeData(
        states,
        extent,
        config.seed,
        material.activations("anchors", "text", **read),
        lengths=[len(one) for one in tokens],
        ends=[f"first={one[0]} last={one[-1]}" for one in tokens],
        verbs=_verbs(queries),
    )
    # 2. probes, and what needs no model
    prompts = [
        *material.prompts("anchors", "text"),
        *chain(*(material.prompts(split, name) for name in states if name != FILLER)),
    ]
    about = {"states": fingerprint(material.vlm, prompts), "filler": template}
    rows = probe_rows(probed, Path(config.out) / "probes", about, f"probes, {split}")
    rows += _taught_words(material.queries["anchors"], queries, probed)
    # 3. the direction that the guard uses
    answered = partial(_answered, material, split) if extent.attacks else None
    rows += _direction_rows(probed, fit_direction(material), answered)
    return [{"split": split} | row for row in rows]


def fit_direction(material: Experiment) -> SafetyDirection:
    """The paper's estimator where anchors are paired, the mean difference where they are not."""
    estimator = "paired_svd" if material.is_paired else "mean_diff"
    tested = {query.text for query in material.queries[material.config.split]}
    return SafetyDirection.fit(material.activations("anchors", "text"), estimator, apart_from=tested)


def filler_template(vlm: VLM, query: Query) -> str | None:
    """Puts as many filler tokens before a request as a picture takes: is it the picture, or the distance?

    Returns:
        None where pictures take no place in the sequence, or no filler is one token of this model.
    """
    length_of = lambda prompt: collate(vlm, [prompt])["input_ids"].shape[1]  # noqa: E731
    plain, pictured = (length_of(to_prompt(query, name, vlm.picture_size)) for name in ("text", "blank"))
    for word in FILLERS if pictured > plain else ():
        template = " ".join([word] * (pictured - plain)) + " {request}"
        if length_of(to_prompt(query, "text", vlm.picture_size, template)) == pictured:
            return template
    return None


def _taught_words(anchors: Sequence[Query], queries: Sequence[Query], probed: ProbeData) -> Iterator[dict]:
    """What the wording alone gives away to a word probe that is fitted on the anchors, as the SSD is."""
    taught = np.array([query.harmful for query in anchors])
    known, shown = (np.array([query.text for query in some], dtype=object) for some in (anchors, queries))
    scores = word_probe().fit(known, taught).decision_function(shown)
    about = {"probe": "bag_of_words", "setting": "anchors", "modality": "text", "fit_modality": "text"}
    yield about | auroc(probed.is_harmful, scores, probed.groups).row()


def _direction_rows(probed: ProbeData, direction: SafetyDirection, answered: Callable | None) -> Iterator[dict]:
    """The coordinate as a probe, its border half way between the anchors' means; and where modality shifts point."""
    place, is_harmful = ("resid_post", "last"), probed.is_harmful
    if place not in probed.places:
        return
    found, about = {}, {"site": place[0], "token": place[1], "estimator": direction.estimator}
    as_probe = about | {"probe": "ssd", "setting": "anchors", "fit_modality": "text"}
    for layer in probed.layers:
        for name, resid in probed.at(layer, place).items():
            distances = coordinate(direction, layer, resid).astype(float) - direction.midpoint(layer)
            found.setdefault(name, []).append(distances)
            told = as_probe | {"modality": name, "layer": layer}
            yield from (as_control(told | one.row()) for one in measure(is_harmful, distances, probed.groups))
    by_modality = {name: np.stack(by_layer) for name, by_layer in found.items()}
    for row in drop_rows(probed, by_modality):
        yield as_probe | row
    # Fillers are no attack.
    attacks = [name for name in by_modality if answered and name not in ("text", FILLER)]
    succeeds = {name: answered(name) for name in attacks}
    for layer in probed.layers:
        for row in _shift_rows(probed, probed.at(layer, place), direction.basis[layer, 0].numpy(), succeeds):
            yield as_control(about | {"layer": layer} | row)


def _shift_rows(
    probed: ProbeData, states: Mapping[str, np.ndarray], direction: np.ndarray, succeeds: Mapping[str, np.ndarray]
) -> Iterator[dict]:
    """ShiftDC's cosine by class; and the AUROC with which it tells attacks that succeed (a shift away from harmful)."""
    interval, is_harmful = "95 %, other queries, bootstrap", probed.is_harmful
    for name, pictured in states.items():
        if name == "text":
            continue
        cosines = shift_cosines(states["text"], pictured, direction)
        for label, category in ((True, "harmful"), (False, "harmless")):
            found = mean("shift_cosine", cosines[is_harmful == label])
            yield {"modality": name, "category": category, "interval": interval} | found
        if name in succeeds and len(set(succeeds[name])) == 2:
            tells = auroc(succeeds[name], -cosines[is_harmful], probed.groups[is_harmful])
            yield {"modality": name, "category": "harmful"} | replace(tells, metric="asr_auroc").row()


def _answered(material: Experiment, split: str, modality: str) -> Bool[np.ndarray, " harmful"]:
    """Whether each harmful request is answered, coherently: an attack that succeeds."""
    prompts = [prompt for prompt in material.prompts(split, modality) if prompt.query.harmful]
    given, judge = answers(material.vlm, prompts, material.config.generation), material.judges[0]
    pairs = zip(prompts, given, strict=True)
    return np.array([not judge.refuses(said) and judge.is_coherent(said, prompt.query) for prompt, said in pairs])


def coordinate(direction: SafetyDirection, layer: int, resid: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """First coordinate on the SSD of a layer."""
    return coordinates(torch.from_numpy(resid), direction.basis[layer])[:, 0].numpy()


def points(material: Experiment) -> pd.DataFrame:
    """One row a prompt and layer: the hidden state in 2-D, and its coordinate on the SSD.

    The plane is found by PCA on text alone, and the other modalities are projected into it: a modality's own offset
    cannot take an axis of the picture. Components are turned so that harmful text lies at larger values: their own
    signs are arbitrary, and classes would seem to change places from layer to layer.
    """
    direction, sizes = fit_direction(material), material.config.sizes
    states = {name: material.activations(material.config.split, name) for name in sizes.modalities}
    frames = []
    for layer in range(material.vlm.n_layers):
        resid = {name: traced.resid_post.sel(layer=layer, token="last").values for name, traced in states.items()}
        plane = PCA(2, svd_solver="full").fit(resid["text"])
        on_plane, harmful = plane.transform(resid["text"]), states["text"].harmful.values
        signs = np.where(on_plane[harmful].mean(0) < on_plane[~harmful].mean(0), -1, 1)
        for name, traced in states.items():
            x, y = (plane.transform(resid[name]) * signs).T
            frames.append(
                pd.DataFrame(
                    {
                        "modality": name,
                        "layer": layer,
                        "harmful": traced.harmful.values,
                        "text": traced.text.values,
                        "pc1": x,
                        "pc2": y,
                        "coordinate": coordinate(direction, layer, resid[name]),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)
