"""Directions, gates and thresholds fitted on the anchors, each of them once."""

from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
import xarray as xr

from interp import ESTIMATORS, LLM, Guard, SafetyDirection, fit_gate, trace
from interp.projection import ProbeGate, coordinates
from probes import shuffled_labels
from studies.bookkeeping.progress import phase
from studies.experiment.config import WIDEST_LDA
from studies.experiment.experiment import Experiment

FIT_TOKENS = ("last", "instruction")
"""Token roles at which directions are fitted."""


@dataclass(frozen=True)
class AnchorFits:
    """The traced anchors, and everything fitted on them so far."""

    anchors: dict[str, xr.Dataset]
    """States of the text-only anchors at `FIT_TOKENS`, by source."""
    is_paired: bool = True
    directions: dict[tuple, SafetyDirection] = field(default_factory=dict)
    """Fitted directions, by estimator, rank, token and source."""
    gates: dict[tuple[int, str], ProbeGate] = field(default_factory=dict)
    """Fitted probe gates, by layer and source."""

    @classmethod
    def on(cls, experiment: Experiment) -> "AnchorFits":
        """Return the fits of an experiment, which its studies share; the first of them traces the anchors."""
        if experiment not in _FITS:
            _FITS[experiment] = cls(trace_anchors(experiment), experiment.is_paired)
        return _FITS[experiment]

    def direction(
        self, estimator: str | None = None, rank: int = 1, token: str = "last", source: str = "vlm_text"
    ) -> SafetyDirection:
        """Return a direction at every layer, fitting it on first use.

        Args:
            estimator: by default `self.estimator`.
            rank: dimensions of the subspace.
            token: token role of the states.
            source: model that the anchors were traced with.
        """
        key = estimator or self.estimator, rank, token, source
        if key not in self.directions:
            self.directions[key] = SafetyDirection.fit(self.anchors[source], key[0], rank, token)
        return self.directions[key]

    @property
    def estimator(self) -> str:
        """The default estimator: the paper's if the anchors are paired, else the mean difference."""
        return self.estimators[0]

    @property
    def estimators(self) -> list[str]:
        """The estimators that these anchors can be fitted with."""
        return available_estimators(self.anchors["vlm_text"].sizes["d_model"], self.is_paired)

    def gate(self, layer: int, source: str) -> ProbeGate:
        """Return the gate `probe` of a layer, fitting it on first use."""
        if (layer, source) not in self.gates:
            self.gates[layer, source] = fit_gate(self.anchors[source], layer)
        return self.gates[layer, source]

    def threshold(self, guard: Guard, source: str) -> float:
        """Return the midpoint between the classes' mean coordinates on the anchors.

        It is measured where the guard reads references, at the last token of its first layer, wherever its direction
        was fitted.
        """
        layer, anchors = guard.layers[0], self.anchors[source]
        states = torch.from_numpy(anchors.resid_post.sel(layer=layer, token="last").values)
        is_harmful = torch.from_numpy(anchors.harmful.values)
        coords = coordinates(states, guard.basis(layer))[:, 0]
        return ((coords[is_harmful].mean() + coords[~is_harmful].mean()) / 2).item()

    def shuffled(self, seed: int, estimator: str) -> SafetyDirection:
        """Fit a direction on labels that are reshuffled within the pairs, as a control.

        For `paired_svd` it is a weak control: swapping a pair only flips the sign of its row, which leaves the singular
        vectors unchanged and destroys nothing but the orientation. Where the classes are the main source of variance, a
        mean difference of mixed groups keeps much of the axis as well.
        """
        anchors = self.anchors["vlm_text"]
        labels = shuffled_labels(anchors.harmful.values, anchors.pair.values, seed, exactly_half=True)
        return SafetyDirection.fit(anchors.assign_coords(harmful=("prompt", labels)), estimator)


_FITS: WeakKeyDictionary[Experiment, AnchorFits] = WeakKeyDictionary()


def available_estimators(d_model: int, is_paired: bool) -> list[str]:
    """List the estimators: those that need pairs only for paired anchors, `lda` only up to `WIDEST_LDA`."""
    usable = [name for name, estimator in ESTIMATORS.items() if is_paired or not estimator.needs_pairs]
    return [name for name in usable if name != "lda" or d_model <= WIDEST_LDA]


def trace_anchors(experiment: Experiment) -> dict[str, xr.Dataset]:
    """Trace the anchors as text.

    Returns:
        States by source: `vlm_text`, and `llm` where the aligned LLM has a checkpoint of its own (the built-in model).
    """
    prompts = experiment.prompts("anchors", "text")
    by_source = {"vlm_text": experiment.activations("anchors", "text", tokens=FIT_TOKENS).load()}
    if isinstance(experiment.scorer, LLM):
        with phase("trace anchors, aligned LLM", len(prompts)) as report:
            batch_size = experiment.config.generation.batch_size
            by_source["llm"] = trace(
                experiment.scorer, prompts, tokens=FIT_TOKENS, batch_size=batch_size, advance=report
            )
    return by_source


def with_gate(guard: Guard, gate: str, fits: AnchorFits, source: str) -> Guard:
    """Return the guard with a gate that is calibrated on the anchors.

    Args:
        guard: the guard without it.
        gate: `always`, `sign`, `threshold` or `probe`.
        fits: where thresholds and probes come from.
        source: model whose states the gate reads.
    """
    if gate == "threshold":
        return replace(guard, gate=gate, threshold=fits.threshold(guard, source))
    if gate == "probe":
        return replace(guard, gate=gate, probe=fits.gate(guard.layers[0], source))
    return replace(guard, gate=gate)
