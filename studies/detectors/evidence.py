"""Everything that detectors read of a set of prompts, read once and kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Shaped

from interp import Guard, Prompt, text_prompt
from interp.detectors import gate_scores, perplexity_of_texts, refusal_cosines
from interp.identity import fingerprint
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.progress import phase
from studies.experiment.experiment import Experiment
from studies.experiment.reference_states import read_references
from studies.generation.first_token import first_token_refusal
from studies.generation.reference_texts import reference_for
from studies.probing.settings import QueryLabels

PROMPT_TEXT, REQUEST_TEXT = "prompt_text", "request_text"
"""Texts that a detector can read: what the user wrote; and where the request is, which for one inside a picture is what
the model reads there. The guard reads the second."""
Key = tuple[str, str | None]
"""Name of a detector, and the reference that it reads; None for the prompt itself."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """States of prompts at the last token, their cosines with refusal, and scores that need no fit."""

    labels: QueryLabels
    groups: Shaped[np.ndarray, " prompt"]
    """Pairs and copies, which intervals and folds keep together."""
    clusters: Shaped[np.ndarray, " prompt"]
    """Name of the set that each prompt comes from."""
    states: xr.Dataset
    cosines: Float[np.ndarray, "prompt layer"]
    scores: dict[Key, Float[np.ndarray, " prompt"]] = field(default_factory=dict)

    @property
    def is_harmful(self) -> Bool[np.ndarray, " prompt"]:
        return self.labels.harmful

    @property
    def has_both_classes(self) -> bool:
        return bool(self.is_harmful.any() and not self.is_harmful.all())

    def at(self, layer: int) -> Float[np.ndarray, "prompt d_model"]:
        """Return the states of a layer."""
        return self.states.resid_post.sel(layer=layer, token="last").values

    def rows(self, chosen: Bool[np.ndarray, " prompt"]) -> "Evidence":
        """Return the evidence on some of the prompts."""
        kept = np.flatnonzero(chosen)
        labels = QueryLabels(self.labels.harmful[kept], *([column[i] for i in kept] for column in self.labels[1:]))
        scores = {key: values[kept] for key, values in self.scores.items()}
        states = self.states.isel(prompt=kept)
        return Evidence(labels, self.groups[kept], self.clusters[kept], states, self.cosines[kept], scores)


def pooled(parts: Sequence[Evidence]) -> Evidence:
    """Return the evidence on all prompts of several sets."""
    columns = zip(*(part.labels[1:] for part in parts), strict=True)
    harmful = np.concatenate([part.is_harmful for part in parts])
    labels = QueryLabels(harmful, *([value for part in column for value in part] for column in columns))
    return Evidence(
        labels,
        labels.groups,
        np.concatenate([part.clusters for part in parts]),
        xr.concat([part.states for part in parts], "prompt"),
        np.concatenate([part.cosines for part in parts]),
        {key: np.concatenate([part.scores[key] for part in parts]) for key in parts[0].scores},
    )


def read(experiment: Experiment, prompts: Sequence[Prompt], name: str, guard: Guard | None = None) -> Evidence:
    """Read the states of some prompts, and with a guard also everything that needs no fit.

    What an earlier run has read is reused.

    Args:
        experiment: model, settings and output folder.
        prompts: of one modality.
        name: name of the set.
        guard: its gate is a detector too, unless it is `always`.
    """
    states = experiment.traced(prompts, f"trace {name}")
    tokens = experiment.refusal_openings.single or tuple(experiment.refusal_openings.seconds)
    cosines = refusal_cosines(experiment.vlm, states, tokens)
    labels = QueryLabels.of([prompt.query for prompt in prompts])
    scores = _scores(experiment, prompts, name, guard) if guard else {}
    clusters = np.array([name] * len(prompts), dtype=object)
    return Evidence(labels, labels.groups, clusters, states, cosines, scores)


def _scores(
    experiment: Experiment, prompts: Sequence[Prompt], name: str, guard: Guard
) -> dict[Key, Float[np.ndarray, " prompt"]]:
    """Score prompts by their first answer token, and the texts that references name by that, perplexity and gate."""
    kinds = {PROMPT_TEXT: PROMPT_TEXT, REQUEST_TEXT: reference_for(prompts[0].modality)}
    openings, generation = experiment.refusal_openings, experiment.config.generation
    depends_on = {"prompts": fingerprint(experiment.vlm, prompts), "openings": openings.ids, "kinds": kinds}
    depends_on |= {"max_new_tokens": generation.max_new_tokens}
    checkpoints = Checkpoints(Path(experiment.config.out) / "detection", depends_on)
    arrays = checkpoints.read("scores")
    if arrays is None:
        with phase(f"scores {name}", len(prompts) * (1 + 2 * len(set(kinds.values())))) as report:
            arrays = {"prompt": _refusal_scores(experiment, prompts)}
            report(len(prompts))
            for kind in dict.fromkeys(kinds.values()):
                texts = read_references(experiment, prompts, kind).texts
                arrays[f"refusal {kind}"] = _refusal_scores(experiment, [text_prompt(text) for text in texts])
                report(len(prompts))
                arrays[f"perplexity {kind}"] = perplexity_of_texts(experiment.vlm, texts, generation.batch_size)
                report(len(prompts))
        checkpoints.write("scores", arrays)
    found: dict[Key, np.ndarray] = {("refusal_score", None): arrays["prompt"]}
    for reference, kind in kinds.items():
        found["text_refusal_score", reference] = arrays[f"refusal {kind}"]
        found["perplexity", reference] = arrays[f"perplexity {kind}"]
        if guard.gate != "always":
            states = read_references(experiment, prompts, kind, guard.source).states
            found["gate", reference] = gate_scores(guard, states)
    return {key: values.astype(float) for key, values in found.items()}


def _refusal_scores(experiment: Experiment, prompts: Sequence[Prompt]) -> Float[np.ndarray, " prompt"]:
    openings, generation = experiment.refusal_openings, experiment.config.generation
    return first_token_refusal(experiment.vlm, prompts, generation, openings)[1].double().numpy()
