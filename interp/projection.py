"""The projection formula, its rules and its gates, on plain tensors.

Every rule replaces the coordinates of a residual state h in a subspace and leaves the rest of h unchanged:

    h* = h + (c_target - c) V,    c = h V^T

V is the basis of the safety steering direction (orthonormal rows) and c are the coordinates of h along its rows. The
rules in `RULES` differ only in c_target. A gate decides for each prompt whether the change is made at all.

VLM-Guard (arXiv:2502.10486) is the rule `substitute`: its stage 2 projects h onto the orthogonal complement of V, and
its stage 3 inserts the coordinates of the text-only LLM in their place. Stage 2 alone (`ablate`) *removes* refusal
(Arditi et al., arXiv:2406.11717). The published descriptions disagree on whose coordinates are inserted, and into
which state, so every reading of them is a rule here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "GATES",
    "GATE_SCOPES",
    "ProbeGate",
    "RELATED_RULES",
    "RULES",
    "coordinates",
    "delta_norm",
    "rule_named",
    "set_coordinates",
]


def coordinates(
    resid: Float[Tensor, "*batch d_model"], basis: Float[Tensor, "*#batch rank d_model"]
) -> Float[Tensor, "*batch rank"]:
    """Return c = h V^T, the coordinates of states along the rows of the basis."""
    return einsum(resid, basis, "... d_model, ... rank d_model -> ... rank")


def set_coordinates(
    resid: Float[Tensor, "*batch d_model"],
    basis: Float[Tensor, "*#batch rank d_model"],
    target: Float[Tensor, "*#batch rank"],
) -> Float[Tensor, "*batch d_model"]:
    """Return h + (c_target - c) V: the coordinates are replaced, the orthogonal complement is untouched.

    Args:
        resid: the states h.
        basis: orthonormal rows V. Rows of zeros pad a smaller rank and change nothing.
        target: the coordinates c_target that the states get.
    """
    change = target - coordinates(resid, basis)
    return resid + einsum(change, basis, "... rank, ... rank d_model -> ... d_model")


Strength = float | Float[Tensor, "*#batch 1"]


@dataclass(frozen=True)
class RuleInputs:
    """Quantities that a rule may use in addition to the state's own coordinates.

    Coordinates have the shape `... rank`, scalars the shape `... 1`.
    """

    reference: Tensor | None = None
    """c_q: coordinates of the reference."""
    harmful: Tensor | None = None
    """mu+: mean coordinates of the harmful anchors."""
    harmless: Tensor | None = None
    """mu-: mean coordinates of the harmless anchors."""
    length: Tensor | None = None
    """||h||."""
    cosine: Tensor | None = None
    """cos(h - h_ref, V), with h_ref a mean over the states of anchors."""
    readout: Tensor | None = None
    """W (h - h_ref): what a linear map that was fitted with the direction reads in the state."""


@dataclass(frozen=True)
class Rule:
    """One choice of c_target."""

    formula: str
    """c_target as it is printed, with α for the strength."""
    target: Callable[[Tensor, RuleInputs, Strength], Tensor]
    """c_target as a function of the state's own coordinates c, the inputs named in `needs`, and α."""
    needs: tuple[str, ...] = ()
    """Fields of `RuleInputs` that the rule uses."""
    any_rank: bool = True
    """False for rules that are defined for a basis of rank 1 only."""
    has_strength: bool = True
    """False for rules that α does not change."""


RULES = {
    # VLM-Guard's stage 2; Arditi et al.'s ablation at a single place.
    "ablate": Rule("0", lambda c, inputs, alpha: torch.zeros_like(c), has_strength=False),
    # Stages 2 and 3. With rank 1 and α = 1: ShiftDC's formula (arXiv:2502.13095) without the caption.
    "substitute": Rule("α c_q", lambda c, inputs, alpha: alpha * inputs.reference, ("reference",)),
    # Stage 3 as printed: h is not projected first.
    "add_reference": Rule("c + α c_q", lambda c, inputs, alpha: c + alpha * inputs.reference, ("reference",)),
    # Stage 3 if q is read as the multimodal query itself.
    "amplify": Rule("(1 + α) c", lambda c, inputs, alpha: (1 + alpha) * c),
    # Affine concept editing (ACE, arXiv:2411.09003): α = 0 gives the harmless mean, α = 1 the harmful mean.
    "class_mean": Rule(
        "μ₋ + α (μ₊ − μ₋)",
        lambda c, inputs, alpha: inputs.harmless + alpha * (inputs.harmful - inputs.harmless),
        ("harmful", "harmless"),
    ),
    # Activation addition within the subspace. With a gate: InferAligner's step (arXiv:2401.11206).
    "steer": Rule(
        "c + α (μ₊ − μ₋)",
        lambda c, inputs, alpha: c + alpha * (inputs.harmful - inputs.harmless),
        ("harmful", "harmless"),
    ),
    # ASTRA's adaptive subtraction (arXiv:2411.16721): states that lean to the harmful side are pushed back.
    "adaptive": Rule(
        "c − α max(0, cos(h − h_ref, V)) ‖h‖",
        lambda c, inputs, alpha: c - alpha * inputs.cosine.clamp(min=0) * inputs.length,
        ("length", "cosine"),
        any_rank=False,
    ),
    # Its mirror image: adds where ASTRA would not subtract.
    "adaptive_mirror": Rule(
        "c + α max(0, −cos(h − h_ref, V)) ‖h‖",
        lambda c, inputs, alpha: c + alpha * (-inputs.cosine).clamp(min=0) * inputs.length,
        ("length", "cosine"),
        any_rank=False,
    ),
}
"""Rules for any direction by name, each with the c_target that it puts into the formula h* = h + (c_target - c) V."""


def _turned(c: Tensor, inputs: RuleInputs, alpha: Strength) -> Tensor:
    """Turn coordinates towards the first row, by a share of the angle between them; their length stays the same."""
    first, others = c[..., :1], c[..., 1:]
    length, across = c.norm(dim=-1, keepdim=True), others.norm(dim=-1, keepdim=True)
    angle = (1 - alpha) * torch.atan2(across, first)
    sideways = others / across.clamp(min=torch.finfo(c.dtype).tiny)
    return torch.cat([length * angle.cos(), length * angle.sin() * sideways], dim=-1)


RELATED_RULES = {
    # AlphaSteer (arXiv:2506.07022) and NullSteer (arXiv:2603.22094): W sees nothing in benign states.
    "linear": Rule("c + α W (h − h_ref)", lambda c, inputs, alpha: c + alpha * inputs.readout, ("readout",)),
    # ReGap (arXiv:2605.18104): the drift is taken back as far as the state would then look harmful.
    "drift": Rule(
        "c − α clamp(W (h − h_ref), 0, 1) (μ₊ − μ₋)",
        lambda c, inputs, alpha: c - alpha * inputs.readout.clamp(0, 1) * (inputs.harmful - inputs.harmless),
        ("harmful", "harmless", "readout"),
        any_rank=False,
    ),
    # Angular steering (Vu and Nguyen, NeurIPS 2025): α = 1 turns the coordinates all the way, 0 not at all.
    "rotate": Rule("c with its angle to V₁ times (1 − α)", _turned),
}
"""Rules of related methods, whose directions are fitted for them alone: see `interp.related_methods`."""


def rule_named(name: str) -> Rule:
    """Return a rule of `RULES` or `RELATED_RULES`.

    Raises:
        ValueError: the rule does not exist.
    """
    if name not in RULES and name not in RELATED_RULES:
        raise ValueError(f"rule {name!r} does not exist; expected one of {', '.join((*RULES, *RELATED_RULES))}")
    return RULES.get(name) or RELATED_RULES[name]


def check_rule(rule: str, rank: int) -> None:
    """Check that a rule exists and is defined for a basis of this rank.

    Raises:
        ValueError: the rule does not exist, or is not defined for this rank.
    """
    if rank != 1 and not rule_named(rule).any_rank:
        raise ValueError(f"rule {rule!r} is defined for rank 1; got rank {rank}")


def target_coordinates(
    rule: str, own: Float[Tensor, "*batch rank"], inputs: RuleInputs, strength: Strength = 1.0
) -> Float[Tensor, "*batch rank"]:
    """Return the c_target of a rule.

    Args:
        rule: one of `RULES` or `RELATED_RULES`.
        own: the coordinates c of the states.
        inputs: must hold what the rule needs; other fields may be None.
        strength: α. `ablate` ignores it.

    Raises:
        ValueError: the rule does not exist, or an input that it needs is missing.
    """
    check_rule(rule, own.shape[-1])
    missing = [name for name in rule_named(rule).needs if getattr(inputs, name) is None]
    if "reference" in missing:
        raise ValueError(f"rule {rule!r} needs the coordinates of a reference, but no reference was given")
    if missing:
        raise ValueError(f"rule {rule!r} needs {' and '.join(missing)}; given: {_names_of_set_fields(inputs)}")
    return rule_named(rule).target(own, inputs, strength).expand_as(own)


def _names_of_set_fields(inputs: RuleInputs) -> str:
    return ", ".join(field.name for field in fields(inputs) if getattr(inputs, field.name) is not None) or "nothing"


def centred_cosine(
    resid: Float[Tensor, "*batch d_model"],
    basis: Float[Tensor, "*#batch rank d_model"],
    centre: Float[Tensor, "*#batch d_model"],
) -> Float[Tensor, "*batch 1"]:
    """Return cos(h - h_ref, V) for the first row of the basis: how far a state leans to the harmful side (ASTRA)."""
    offset = resid - centre
    return coordinates(offset, basis)[..., :1] / offset.norm(dim=-1, keepdim=True).clamp(
        min=torch.finfo(offset.dtype).tiny
    )


GATES = ("always", "sign", "threshold", "probe")
GATE_SCOPES = ("change", "target")
"""Effect of a closed gate: `change` leaves the state as it is; `target` sets c_target to 0, so h is still projected."""


def sign_gate(reference: Float[Tensor, "*batch rank"], threshold: float = 0.0) -> Bool[Tensor, " *batch"]:
    """Return whether the paper's gate opens: the reference's first coordinate is positive, so the LLM sees harm.

    Args:
        reference: coordinates of the reference.
        threshold: replaces 0 when it was calibrated on anchors.
    """
    return reference[..., 0] > threshold


@dataclass(frozen=True, eq=False)
class ProbeGate:
    """A linear probe on the reference's state; the gate opens where its logit exceeds the threshold."""

    weight: Float[Tensor, " d_model"]
    bias: float
    threshold: float = 0.0

    @property
    def is_finite(self) -> bool:
        """True if its border is one: comparisons with NaN are false, so that the gate would never open."""
        return math.isfinite(self.bias) and math.isfinite(self.threshold) and bool(self.weight.isfinite().all())

    def margins(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, " *batch"]:
        """Return the logits above the threshold."""
        return states @ self.weight.to(states) + self.bias - self.threshold

    def __call__(self, states: Float[Tensor, "*batch d_model"]) -> Bool[Tensor, " *batch"]:
        return states @ self.weight.to(states.device) + self.bias > self.threshold


def restore_norm(
    changed: Float[Tensor, "*batch d_model"], resid: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """Return the changed states, scaled to the norms that they had before."""
    return changed * (resid.norm(dim=-1, keepdim=True) / changed.norm(dim=-1, keepdim=True))


def delta_norm(
    changed: Float[Tensor, "*batch d_model"], resid: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, " *batch"]:
    """Return ||h* - h|| / ||h||."""
    return (changed - resid).norm(dim=-1) / resid.norm(dim=-1)
