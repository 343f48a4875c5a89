"""How well harmful and harmless requests can be separated, layer by layer: as text, with a picture and inside one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from sklearn.decomposition import PCA

from interp import LLM, VLM, Query, SafetyDirection, collate, to_prompt
from interp.identity import fingerprint
from interp.projection import coordinates
from probes import PROBES, auroc, measure, word_probe
from studies.bookkeeping.console import plain_console
from studies.bookkeeping.estimates import mean
from studies.bookkeeping.tables import tidy
from studies.experiment.config import BUILT_IN, TRAINED, Config, ConfigError
from studies.experiment.experiment import Experiment, load_experiment
from studies.generation.generate import answers
from studies.probing.measures import paired_rows
from studies.probing.rows import as_control, drop_rows, probe_rows, shift_cosines, stacked
from studies.probing.settings import ProbeError, ProbeSettings, QueryLabels, without_slow_probes
from studies.probing.states import FILLER, ProbeData

_QUICK = ProbeSettings(n_shuffles=2, n_tasks=0)
PROBE_SETTINGS = {
    "tiny": ProbeSettings(n_shuffles=1, n_tasks=0, n_swaps=100),
    "brief": _QUICK,
    "quick": _QUICK,
    "full": ProbeSettings(
        sites=("resid_post", "attn_out", "mlp_out"),
        tokens=("last", "instruction", "image_mean", "text_mean"),
        probes=tuple(PROBES),
        by_category=True,
        attacks=True,
        trained=True,
    ),
}
"""Probe settings of each scale."""
FILLERS = (".", ",", "-", "_", "the", "a", "and")
"""Words without content; the first that is a single token of the model is used as filler."""


def run(config: Config, experiment: Experiment | None = None, settings: ProbeSettings | None = None) -> pd.DataFrame:
    """Measure how well harmful and harmless requests separate, at every place and in every modality, with controls.

    Three questions, distinguished by `probe` and `setting`:

    1. Probes fitted and tested within a modality (`folds`): is the difference there at all?
    2. The first probe, fitted on the text of the `anchors`: is the difference where text has it?
    3. `ssd`, the coordinate on the safety steering direction: is the difference where the guard looks?

    Each question also gets the loss from text to each other modality (`auroc_drop`, `auroc_drop_p`), the third one in
    each of `studies.probing.measures`. Further rows: probes tested in other modalities than their own, the modality
    gap, the cosine between modality shifts and the SSD (`shift_cosine`), and whether that cosine predicts which attacks
    succeed (`asr_auroc`). The other columns are explained in `studies.probing.rows`.

    Args:
        config: the run.
        experiment: model and queries, if they are loaded already.
        settings: what is probed; by default that of the config's scale.

    Returns:
        A tidy table, one row per measurement.

    Raises:
        ProbeError: fewer pairs than folds, a class missing in one, places that do not exist.
    """
    experiment = experiment or load_experiment(config)
    settings = without_slow_probes(settings or PROBE_SETTINGS[config.scale], experiment.vlm.d_model)
    settings.check_layers(range(experiment.vlm.n_layers))
    settings.folds(QueryLabels.of(experiment.queries[config.split]), config.seed)
    rows = _split_rows(experiment, config.split, settings)
    if settings.trained and TRAINED in experiment.queries and config.model == BUILT_IN:
        rows += _split_rows(experiment, TRAINED, replace(_first_only(settings), n_shuffles=0, n_tasks=0))
    if settings.n_tasks and not any(row["metric"] == "selectivity" for row in rows):
        rows += _anchor_task_rows(experiment, replace(_first_only(settings), n_shuffles=0))
    return tidy(experiment.labels | row for row in rows)


def probe_settings(scale: str, changes: Mapping) -> ProbeSettings:
    """Return the probe settings of a scale, with changes.

    Raises:
        ConfigError: the scale does not exist.
        ProbeError: a change names something that does not exist.
    """
    if scale not in PROBE_SETTINGS:
        raise ConfigError(f"scale {scale!r} does not exist; expected one of {', '.join(PROBE_SETTINGS)}")
    return replace(PROBE_SETTINGS[scale], **changes)


def _first_only(settings: ProbeSettings) -> ProbeSettings:
    """Keep only the first place and the first probe."""
    return replace(
        settings,
        sites=settings.sites[:1],
        tokens=settings.tokens[:1],
        probes=settings.probes[:1],
        by_category=False,
        attacks=False,
    )


def _anchor_task_rows(experiment: Experiment, settings: ProbeSettings) -> Iterator[dict]:
    """Run control tasks on the anchors, for splits in which too few queries share their verb."""
    places = {"sites": settings.sites, "tokens": settings.tokens}
    states = {name: experiment.activations("anchors", name, **places) for name in experiment.sizes.modalities}
    try:
        data = ProbeData(states, settings, experiment.config.seed, verbs=_verbs(experiment.queries["anchors"]))
    except ProbeError as error:
        plain_console(stderr=True).print(f"no control task on the anchors: {error}", soft_wrap=True)
        return
    if "verb_labels" not in data.plan.controls:
        plain_console(stderr=True).print("no control task: hardly any verb occurs in more than one pair of queries")
        return
    prompts = chain(*(experiment.prompts("anchors", name) for name in states))
    inputs = {"states": fingerprint(experiment.vlm, list(prompts))}
    for row in probe_rows(data, Path(experiment.config.out) / "probes", inputs, "control tasks, anchors"):
        if row.get("control") == "verb_labels":
            yield {"split": "anchors"} | row


def _verbs(queries: Sequence[Query]) -> list[str]:
    """Return the verb of each query: the first word of what a picture shows of it, or of its text."""
    return [query.rendered.split()[0].lower() for query in queries]


def _split_rows(experiment: Experiment, split: str, settings: ProbeSettings) -> list[dict]:
    config, queries = experiment.config, experiment.queries[split]
    # 1. states of the split in every modality, and of the anchors as text
    places = {"sites": settings.sites, "tokens": settings.tokens}
    states = {name: experiment.activations(split, name, **places) for name in experiment.sizes.modalities}
    template = filler_template(experiment.vlm, queries[0])
    if template:
        filler_prompts = experiment.prompts(split, "text", template=template)
        states[FILLER] = experiment.traced(filler_prompts, f"trace {split}, filler tokens", **places)
    token_lists = [experiment.vlm.tokenizer.tokenize(query.text) for query in queries]
    data = ProbeData(
        states,
        settings,
        config.seed,
        experiment.activations("anchors", "text", **places),
        lengths=[len(tokens) for tokens in token_lists],
        ends=[f"first={tokens[0]} last={tokens[-1]}" for tokens in token_lists],
        verbs=_verbs(queries),
    )
    # 2. probes, and baselines that need no model
    prompts = [
        *experiment.prompts("anchors", "text"),
        *chain(*(experiment.prompts(split, name) for name in states if name != FILLER)),
    ]
    inputs = {"states": fingerprint(experiment.vlm, prompts), "filler": template}
    rows = probe_rows(data, Path(config.out) / "probes", inputs, f"probes, {split}")
    rows += _anchor_word_rows(experiment.queries["anchors"], queries, data)
    # 3. the direction that the guard uses
    successes = partial(_successful_attacks, experiment, split) if settings.attacks else None
    rows += _direction_rows(data, fit_direction(experiment), successes)
    return [{"split": split} | row for row in rows]


def fit_direction(experiment: Experiment) -> SafetyDirection:
    """Fit the safety direction: the paper's estimator if the anchors are paired, otherwise the mean difference."""
    estimator = "paired_svd" if experiment.is_paired else "mean_diff"
    tested = {query.text for query in experiment.queries[experiment.config.split]}
    return SafetyDirection.fit(experiment.activations("anchors", "text"), estimator, apart_from=tested)


def filler_template(vlm: VLM | LLM, query: Query) -> str | None:
    """Build a prompt template with as many filler tokens before the request as a picture takes.

    It separates the effect of the picture from that of the distance which it adds.

    Returns:
        The template; None if pictures take no place in the sequence, or if no filler is a single token of this model.
    """
    if isinstance(vlm, LLM):
        return None

    def n_tokens(modality: str, template: str = "{request}") -> int:
        return collate(vlm, [to_prompt(query, modality, vlm.picture_size, template)])["input_ids"].shape[1]

    plain, pictured = n_tokens("text"), n_tokens("blank")
    for word in FILLERS if pictured > plain else ():
        template = " ".join([word] * (pictured - plain)) + " {request}"
        if n_tokens("text", template) == pictured:
            return template
    return None


def _anchor_word_rows(anchors: Sequence[Query], queries: Sequence[Query], data: ProbeData) -> Iterator[dict]:
    """Yield what the wording alone reveals to a bag of words that is fitted on the anchors, as the SSD is."""
    is_harmful = np.array([query.harmful for query in anchors])
    anchor_texts, texts = (np.array([query.text for query in part], dtype=object) for part in (anchors, queries))
    scores = word_probe().fit(anchor_texts, is_harmful).decision_function(texts)
    labels = {"probe": "bag_of_words", "setting": "anchors", "modality": "text", "fit_modality": "text"}
    yield labels | auroc(data.is_harmful, scores, data.groups).row()


def _direction_rows(data: ProbeData, direction: SafetyDirection, successes: Callable | None) -> Iterator[dict]:
    """Yield rows of the SSD as a probe, whose boundary is half-way between the anchor means, and of modality shifts."""
    place = ("resid_post", "last")
    if place not in data.places:
        return
    distances, labels = [], {"site": place[0], "token": place[1], "estimator": direction.estimator}
    probe_labels = labels | {"probe": "ssd", "setting": "anchors", "fit_modality": "text"}
    for layer in data.layers:
        distances.append({})
        for name, resid in data.states_at(layer, place).items():
            from_midpoint = coordinate(direction, layer, resid).astype(float) - direction.midpoint(layer)
            distances[-1][name] = from_midpoint
            row = probe_labels | {"modality": name, "layer": layer}
            measures = measure(data.is_harmful, from_midpoint, data.groups)
            yield from (as_control(row | measured.row()) for measured in measures)
    by_modality = stacked(distances)
    for row in (*drop_rows(data, by_modality), *paired_rows(data, by_modality)):
        yield probe_labels | row
    # Text is the baseline and filler tokens are a control: neither is an attack.
    attacks = [name for name in by_modality if successes and name not in ("text", FILLER)]
    has_succeeded = {name: successes(name) for name in attacks}
    for layer in data.layers:
        basis = direction.basis[layer, 0].numpy()
        for row in _shift_rows(data, data.states_at(layer, place), basis, has_succeeded):
            yield as_control(labels | {"layer": layer} | row)


def _shift_rows(
    data: ProbeData, states: Mapping[str, np.ndarray], direction: np.ndarray, has_succeeded: Mapping[str, np.ndarray]
) -> Iterator[dict]:
    """Yield ShiftDC's cosine by class, and how well a shift away from harmful predicts which attacks succeed."""
    interval, is_harmful = "95 %, other queries, bootstrap", data.is_harmful
    for name, pictured in states.items():
        if name == "text" or "text" not in states:
            continue
        cosines = shift_cosines(states["text"], pictured, direction)
        for label, category in ((True, "harmful"), (False, "harmless")):
            row = {"modality": name, "category": category, "interval": interval}
            yield row | mean("shift_cosine", cosines[is_harmful == label])
        if name in has_succeeded and len(set(has_succeeded[name])) == 2:
            prediction = auroc(has_succeeded[name], -cosines[is_harmful], data.groups[is_harmful])
            yield {"modality": name, "category": "harmful"} | replace(prediction, metric="asr_auroc").row()


def _successful_attacks(experiment: Experiment, split: str, modality: str) -> Bool[np.ndarray, " harmful"]:
    """Tell for each harmful request whether the attack succeeds: the answer is coherent and not a refusal."""
    prompts = [prompt for prompt in experiment.prompts(split, modality) if prompt.query.harmful]
    texts, judge = answers(experiment.vlm, prompts, experiment.config.generation), experiment.judges[0]
    pairs = zip(prompts, texts, strict=True)
    return np.array([not judge.refuses(text) and judge.is_coherent(text, prompt.query) for prompt, text in pairs])


def coordinate(direction: SafetyDirection, layer: int, resid: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Return the first coordinate of states on the SSD of a layer."""
    return coordinates(torch.from_numpy(resid), direction.basis[layer])[:, 0].numpy()


def points(experiment: Experiment) -> pd.DataFrame:
    """Project the hidden state of each prompt at each layer onto a plane, and onto the SSD.

    The plane is fitted by PCA on text alone and the other modalities are projected into it, so that a modality's own
    offset cannot become an axis. Components are oriented so that harmful text has the larger values: their signs are
    arbitrary, and classes would seem to swap sides from layer to layer.

    Returns:
        One row per prompt and layer: `modality`, `layer`, `harmful`, `text`, `pc1`, `pc2`, `coordinate`, and `border`,
        the coordinate half-way between the class means of the anchors as text.
    """
    direction, sizes = fit_direction(experiment), experiment.sizes
    states = {name: experiment.activations(experiment.config.split, name) for name in sizes.modalities}
    frames = []
    for layer in range(experiment.vlm.n_layers):
        resid = {name: traced.resid_post.sel(layer=layer, token="last").values for name, traced in states.items()}
        plane = PCA(2, svd_solver="full").fit(resid["text"])
        text, is_harmful = plane.transform(resid["text"]), states["text"].harmful.values
        signs = np.where(text[is_harmful].mean(0) < text[~is_harmful].mean(0), -1, 1)
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
                        "border": direction.midpoint(layer),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)
