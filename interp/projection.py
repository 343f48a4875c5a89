"""The one formula, its rules and its gates. Pure tensors.

    h* = h + (c_target - c) V,    c = h V^T

VLM-Guard (arXiv:2502.10486) is the rule `substitute`: its stage 2 projects the state orthogonally to the safety
steering direction V, its stage 3 puts the coordinate of the text-only LLM in the gap. Stage 2 alone (`ablate`)
*removes* refusal (Arditi et al., arXiv:2406.11717). The published descriptions leave open whose coordinate is put back,
and where; every reading is a rule here.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor


def coordinates(
    resid: Float[Tensor, "*batch d_model"], basis: Float[Tensor, "*#batch rank d_model"]
) -> Float[Tensor, "*batch rank"]:
    """c = h V^T: where a state lies along the rows of the basis."""
    return einsum(resid, basis, "... d_model, ... rank d_model -> ... rank")


def set_coordinates(
    resid: Float[Tensor, "*batch d_model"],
    basis: Float[Tensor, "*#batch rank d_model"],
    target: Float[Tensor, "*#batch rank"],
) -> Float[Tensor, "*batch d_model"]:
    """h + (c_target - c) V: replaces the coordinates, leaves the orthogonal complement untouched.

    Args:
        resid: states.
        basis: orthonormal rows; rows of zeros pad a smaller rank and change nothing.
        target: the coordinates that the states get.
    """
    change = target - coordinates(resid, basis)
    return resid + einsum(change, basis, "... rank, ... rank d_model -> ... d_model")


Coordinates = Float[Tensor, "*batch rank"]
Strength = float | Float[Tensor, "*#batch 1"]


@dataclass(frozen=True)
class RuleInputs:
    """What rules may use beside the states' own coordinates. Coordinates are `... rank`, numbers `... 1`."""

    reference: Tensor | None = None
    """c_q: of the reference."""
    harmful: Tensor | None = None
    """mu+: mean over harmful anchors."""
    harmless: Tensor | None = None
    """mu-: mean over harmless anchors."""
    length: Tensor | None = None
    """||h||."""
    cosine: Tensor | None = None
    """cos(h - h_ref, V), h_ref a mean over anchors' states."""


@dataclass(frozen=True)
class Rule:
    """From own coordinates c to c_target."""

    target: Callable[[Tensor, RuleInputs, Strength], Tensor]
    written: str
    """c_target on paper, with α for the strength."""
    needs: tuple[str, ...] = ()
    """Fields of `RuleInputs`."""
    any_rank: bool = True
    has_strength: bool = True


RULES = {
    "ablate": Rule(lambda own, known, strength: torch.zeros_like(own), "0", has_strength=False),
    "substitute": Rule(lambda own, known, strength: strength * known.reference, "α c_q", ("reference",)),
    "add_reference": Rule(lambda own, known, strength: own + strength * known.reference, "c + α c_q", ("reference",)),
    "amplify": Rule(lambda own, known, strength: (1 + strength) * own, "(1 + α) c"),
    "class_mean": Rule(
        lambda own, known, strength: known.harmless + strength * (known.harmful - known.harmless),
        "μ₋ + α (μ₊ − μ₋)",
        ("harmful", "harmless"),
    ),
    "steer": Rule(
        lambda own, known, strength: own + strength * (known.harmful - known.harmless),
        "c + α (μ₊ − μ₋)",
        ("harmful", "harmless"),
    ),
    "adaptive": Rule(
        lambda own, known, strength: own - strength * known.cosine.clamp(min=0) * known.length,
        "c − α max(0, cos(h − h_ref, V)) ‖h‖",
        ("length", "cosine"),
        any_rank=False,
    ),
    "adaptive_mirror": Rule(
        lambda own, known, strength: own + strength * (-known.cosine).clamp(min=0) * known.length,
        "c + α max(0, −cos(h − h_ref, V)) ‖h‖",
        ("length", "cosine"),
        any_rank=False,
    ),
}
"""c_target of each reading.

`ablate`: VLM-Guard's stage 2; Arditi et al.'s ablation at one place. `substitute`: stages 2 and 3; with rank 1 and
strength 1 ShiftDC's formula (arXiv:2502.13095) without the caption. `add_reference`: stage 3 as printed, the state not
projected. `amplify`: stage 3 if q is read as the multimodal query itself. `class_mean`: affine editing (ACE,
arXiv:2411.09003). `steer`: activation addition within the subspace; gated it is InferAligner's step (arXiv:2401.11206).
`adaptive`: ASTRA's subtraction (arXiv:2411.16721), and `adaptive_mirror`, which adds where ASTRA would not subtract.
"""


def check_rule(rule: str, rank: int) -> None:
    """Raises:
    ValueError: no such rule, or none for this rank.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} does not exist; expected one of {', '.join(RULES)}")
    if rank != 1 and not RULES[rule].any_rank:
        raise ValueError(f"rule {rule!r} is defined for rank 1; got rank {rank}")


def target_coordinates(
    rule: str, own: Float[Tensor, "*batch rank"], known: RuleInputs, strength: Strength = 1.0
) -> Float[Tensor, "*batch rank"]:
    """c_target of a rule.

    Args:
        rule: one of `RULES`.
        own: the states' own coordinates.
        known: what else the rule needs; the rest may be missing.
        strength: alpha; `ablate` has none.

    Raises:
        ValueError: no such rule, or it lacks what it needs.
    """
    check_rule(rule, own.shape[-1])
    missing = [name for name in RULES[rule].needs if getattr(known, name) is None]
    if "reference" in missing:
        raise ValueError(f"rule {rule!r} takes the coordinates of a reference, and no reference was given")
    if missing:
        raise ValueError(f"rule {rule!r} needs {' and '.join(missing)}; given: {_given(known)}")
    return RULES[rule].target(own, known, strength).expand_as(own)


def _given(known: RuleInputs) -> str:
    return ", ".join(field.name for field in fields(known) if getattr(known, field.name) is not None) or "nothing"


def centred_cosine(
    resid: Float[Tensor, "*batch d_model"],
    basis: Float[Tensor, "*#batch rank d_model"],
    centre: Float[Tensor, "*#batch d_model"],
) -> Float[Tensor, "*batch 1"]:
    """cos(h - h_ref, V) for the first row of the basis: how far a state leans to the harmful side (ASTRA)."""
    away = resid - centre
    return coordinates(away, basis)[..., :1] / away.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(away.dtype).tiny)


GATES = ("always", "sign", "threshold", "probe")
GATE_SCOPES = ("change", "target")
"""What a closed gate holds back: the whole change, or only the target: the coordinates are taken out all the same."""


def sign_gate(reference: Float[Tensor, "*batch rank"], threshold: float = 0.0) -> Bool[Tensor, " *batch"]:
    """The paper's gate: open where the reference's first coordinate is above 0, i.e. the LLM sees harm.

    Args:
        reference: coordinates.
        threshold: another border than 0, calibrated on anchors.
    """
    return reference[..., 0] > threshold


@dataclass(frozen=True, eq=False)
class ProbeGate:
    """A linear probe on the reference's state: open where its logit is above the threshold."""

    weight: Float[Tensor, " d_model"]
    bias: float
    threshold: float = 0.0

    def __call__(self, states: Float[Tensor, "*batch d_model"]) -> Bool[Tensor, " *batch"]:
        return states @ self.weight.to(states.device) + self.bias > self.threshold


def rescaled(
    changed: Float[Tensor, "*batch d_model"], resid: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """The changed states with the lengths that they had before."""
    return changed * (resid.norm(dim=-1, keepdim=True) / changed.norm(dim=-1, keepdim=True))


def delta_norm(
    changed: Float[Tensor, "*batch d_model"], resid: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, " *batch"]:
    """||h* - h|| / ||h||."""
    return (changed - resid).norm(dim=-1) / resid.norm(dim=-1)
