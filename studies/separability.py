"""How far harmful and harmless come apart, layer by layer, as text, beside a picture and inside one."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline

from interp.directions import SafetyDirection
from interp.inputs import Query
from interp.projection import coordinates
from probes import auroc_interval, grouped_folds, out_of_fold_scores, shuffled_labels, train_and_apply
from studies.material import Config, Material, load
from studies.progress import phase
from studies.records import tidy

CONTROL_SEED = 1000
"""Shuffled labels are dealt with seeds from here on, apart from those of folds and splits."""


def run(config: Config, material: Material | None = None) -> pd.DataFrame:
    """AUROC of harmful against harmless, per layer and modality, with its controls.

    Three questions, told apart by `probe` and `fit_modality`:

    1. `logistic`, fitted and tested within a modality (folds by pair): is the difference there at all?
    2. `logistic`, fitted on the text of the anchors, tested on each modality: is it where text has it?
    3. `ssd`, the coordinate on the safety steering direction: is it where the guard looks?

    Beside them what needs no model: `length`, `opening` (first word and final punctuation), `bag_of_words`; the last
    two fitted within the split, and on the anchors (`fit_modality` text), as probe and direction are.

    Raises:
        ValueError: fewer pairs than folds, or a class missing in one.
    """
    material = material or load(config)
    # 1. trace anchors as text, and the reported split in every modality
    anchors = material.activations("anchors", "text")
    direction = fit_direction(material)
    states = {name: material.activations(config.split, name) for name in config.sizes.modalities}
    groups = [query.group for query in material.queries[config.split]]
    folds = grouped_folds(states["text"].harmful.values, groups, seed=config.seed)
    deals = [
        shuffled_labels(states["text"].harmful.values, states["text"].pair.values, CONTROL_SEED + config.seed + i)
        for i in range(config.sizes.n_shuffles)
    ]
    # 2. probe every layer of every modality
    rows = []
    n_layers = material.vlm.n_layers
    with phase("probes", len(states) * n_layers) as report:
        for modality, traced in states.items():
            for layer in range(n_layers):
                resid = traced.resid_post.sel(layer=layer, token="last").values
                fitted = anchors.resid_post.sel(layer=layer, token="last").values, anchors.harmful.values
                place = {"modality": modality, "layer": layer, "site": "resid_post", "token": "last"}
                is_harmful = traced.harmful.values
                rows += [place | row for row in _within(resid, is_harmful, folds, deals)]
                rows.append(place | _transfer(fitted, resid, is_harmful) | {"fit_modality": "text"})
                rows.append(place | _along(direction, layer, resid, is_harmful) | {"fit_modality": "text"})
                report(1)
    # 3. what no model is needed for
    rows += _baselines(material.queries["anchors"], material.queries[config.split], folds)
    return tidy(material.labels | {"split": config.split} | row for row in rows)


def fit_direction(material: Material) -> SafetyDirection:
    """The paper's estimator where anchors are paired, the mean difference where they are not."""
    estimator = "paired_svd" if material.is_paired else "mean_diff"
    tested = {query.text for query in material.queries[material.config.split]}
    return SafetyDirection.fit(material.activations("anchors", "text"), estimator, apart_from=tested)


def _score(is_harmful: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> dict:
    auroc, low, high = auroc_interval(is_harmful, scores)
    return {"metric": "auroc", "value": auroc, "ci_low": low, "ci_high": high, "n": len(scores)}


def _within(resid, is_harmful, folds, deals: list[Bool[np.ndarray, " n"]]) -> Iterator[dict]:
    """The probe, and its control: the mean over all deals of shuffled labels, from the least to the largest of them."""
    logistic = {"probe": "logistic"}
    yield logistic | _score(is_harmful, out_of_fold_scores(resid, is_harmful, folds))
    scores = [roc_auc_score(dealt, out_of_fold_scores(resid, dealt, folds)) for dealt in deals]
    spread = {"value": np.mean(scores), "ci_low": min(scores), "ci_high": max(scores), "n": len(is_harmful)}
    yield logistic | {"control": "shuffled_labels", "metric": "auroc"} | spread


def _transfer(fitted, resid, is_harmful) -> dict:
    return {"probe": "logistic"} | _score(is_harmful, train_and_apply(*fitted, resid))


def _along(direction: SafetyDirection, layer: int, resid, is_harmful) -> dict:
    return {"probe": "ssd", "estimator": direction.estimator} | _score(is_harmful, coordinate(direction, layer, resid))


def coordinate(direction: SafetyDirection, layer: int, resid: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """First coordinate on the SSD of a layer."""
    return coordinates(torch.from_numpy(resid), direction.basis[layer])[:, 0].numpy()


def _baselines(anchors: tuple[Query, ...], queries: tuple[Query, ...], folds) -> Iterator[dict]:
    """What the wording alone gives away: fitted within the split (folds by pair), and on the anchors as the SSD is."""
    is_harmful = np.array([query.harmful for query in queries])
    taught = np.array([query.harmful for query in anchors])
    lengths = np.array([len(query.text) for query in queries], dtype=float)
    # Length has no direction of its own: either way of telling the classes apart counts.
    length = _score(is_harmful, lengths)
    if length["value"] < 0.5:
        length = _score(is_harmful, -lengths)
    yield {"probe": "length", "modality": "text"} | length
    for name, write in (("opening", _opening), ("bag_of_words", lambda query: query.text)):
        shown, known = (np.array([write(q) for q in chosen], dtype=object) for chosen in (queries, anchors))
        scores = np.empty(len(shown))
        for train, test in folds:
            scores[test] = _word_probe().fit(shown[train], is_harmful[train]).decision_function(shown[test])
        yield {"probe": name, "modality": "text"} | _score(is_harmful, scores)
        applied = _word_probe().fit(known, taught).decision_function(shown)
        yield {"probe": name, "modality": "text", "fit_modality": "text"} | _score(is_harmful, applied)


def _opening(query: Query) -> str:
    """First word and final punctuation."""
    return f"{query.text.split()[0].lower()} end{ord(query.text.strip()[-1])}"


def _word_probe() -> Pipeline:
    return make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), LogisticRegression(C=10, max_iter=1000))


def points(material: Material) -> pd.DataFrame:
    """One row a prompt and layer: the hidden state in 2-D, and its coordinate on the SSD.

    The plane is found by PCA on text alone, and the other modalities are projected into it: a modality's own offset
    cannot take an axis of the picture.
    """
    direction, sizes = fit_direction(material), material.config.sizes
    states = {name: material.activations(material.config.split, name) for name in sizes.modalities}
    frames = []
    for layer in range(material.vlm.n_layers):
        resid = {name: traced.resid_post.sel(layer=layer, token="last").values for name, traced in states.items()}
        plane = PCA(2, svd_solver="full").fit(resid["text"])
        for name, traced in states.items():
            x, y = plane.transform(resid[name]).T
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
