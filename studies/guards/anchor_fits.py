"""Directions, gates and borders fitted on the anchors, each once."""

from dataclasses import dataclass, field, replace

import torch
import xarray as xr

from interp.directions import ESTIMATORS, SafetyDirection, fit_gate
from interp.guard import Guard
from interp.projection import ProbeGate, coordinates
from interp.trace import trace
from interp.vlm import LLM
from probes import shuffled_labels
from studies.bookkeeping.progress import phase
from studies.experiment.config import WIDEST_LDA
from studies.experiment.experiment import Experiment


@dataclass(frozen=True)
class AnchorFits:
    """Directions, and what they were fitted on."""

    anchors: dict[str, xr.Dataset]
    """Traced text of the anchors, by source; tokens `last` and `instruction`."""
    layer: int | None = None
    """Of the grid of readings."""
    is_paired: bool = True
    fits: dict[tuple, SafetyDirection] = field(default_factory=dict)
    gates: dict[tuple[int, str], ProbeGate] = field(default_factory=dict)

    def direction(self, estimator: str | None = None, rank: int = 1, token: str = "last", source: str = "vlm_text"):
        """Fitted once."""
        key = estimator or self.estimator, rank, token, source
        if key not in self.fits:
            self.fits[key] = SafetyDirection.fit(self.anchors[source], key[0], rank, token)
        return self.fits[key]

    @property
    def estimator(self) -> str:
        """The paper's where anchors are paired."""
        return self.estimators[0]

    @property
    def estimators(self) -> list[str]:
        """Those that these anchors can be fitted with."""
        return known_estimators(self.anchors["vlm_text"].sizes["d_model"], self.is_paired)

    def gate(self, layer: int, source: str) -> ProbeGate:
        """The gate `probe` of a layer; fitted once."""
        if (layer, source) not in self.gates:
            self.gates[layer, source] = fit_gate(self.anchors[source], layer)
        return self.gates[layer, source]

    def border(self, guard: Guard, source: str) -> float:
        """Half way between the anchors' means along the guard's direction, where references are read: at the first
        guarded layer, last token; wherever the direction was fitted."""
        layer, anchors = guard.layers[0], self.anchors[source]
        states = torch.from_numpy(anchors.resid_post.sel(layer=layer, token="last").values)
        own, is_harmful = coordinates(states, guard.basis(layer))[:, 0], torch.from_numpy(anchors.harmful.values)
        return ((own[is_harmful].mean() + own[~is_harmful].mean()) / 2).item()

    def shuffled(self, seed: int, estimator: str) -> SafetyDirection:
        """Fitted on labels that were dealt anew within the pairs.

        For `paired_svd` that is hardly a control: a pair turned round is the same row with another sign, which leaves
        the singular vectors as they are, and takes only the orientation's meaning. Where the classes are what varies
        most, a mean difference of mixed groups keeps much of the axis as well.
        """
        anchors = self.anchors["vlm_text"]
        dealt = shuffled_labels(anchors.harmful.values, anchors.pair.values, seed, exactly_half=True)
        return SafetyDirection.fit(anchors.assign_coords(harmful=("prompt", dealt)), estimator)


def known_estimators(d_model: int, is_paired: bool) -> list[str]:
    """The paper's first, where anchors are paired; without `lda` where it would take too long."""
    left_out = ({"lda"} if d_model > WIDEST_LDA else set()) | (set() if is_paired else {"paired_svd"})
    return [name for name in ESTIMATORS if name not in left_out]


def traced_anchors(material: Experiment) -> dict[str, xr.Dataset]:
    """By source; the aligned LLM has its own checkpoint for the built-in model alone."""
    tokens, prompts = ("last", "instruction"), material.prompts("anchors", "text")
    found = {"vlm_text": material.activations("anchors", "text", tokens=tokens).load()}
    if isinstance(material.scorer, LLM):
        with phase("trace anchors, aligned LLM", len(prompts)) as report:
            how = {"batch_size": material.config.generation.batch_size, "advance": report}
            found["llm"] = trace(material.scorer, prompts, tokens=tokens, **how)
    return found


def gated(guard: Guard, gate: str, made: AnchorFits, source: str) -> Guard:
    """The guard with a gate, calibrated on the anchors where it is asked."""
    if gate == "threshold":
        return replace(guard, gate=gate, threshold=made.border(guard, source))
    if gate == "probe":
        return replace(guard, gate=gate, probe=made.gate(guard.layers[0], source))
    return replace(guard, gate=gate)
