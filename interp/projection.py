"""The one formula, its rules and its gate. Pure tensors.

    h* = h + (c_target - c) V,    c = h V^T

VLM-Guard (arXiv:2502.10486) is the rule `substitute`: its stage 2 projects the state orthogonally to the safety
steering direction V, its stage 3 puts the coordinate of the text-only LLM in the gap. Stage 2 alone (`ablate`)
*removes* refusal (Arditi et al., arXiv:2406.11717).
"""

from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

RULES = ("ablate", "substitute")


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


def target_coordinates(
    rule: str,
    own: Float[Tensor, "*batch rank"],
    reference: Float[Tensor, "*#batch rank"] | None = None,
    strength: float = 1.0,
) -> Float[Tensor, "*batch rank"]:
    """c_target of a rule.

    Args:
        rule: `ablate` (0) or `substitute` (strength x the reference's coordinates).
        own: the states' own coordinates.
        reference: coordinates of the reference, for rules that need one.
        strength: alpha; `ablate` has none.

    Raises:
        ValueError: no such rule, or a rule that needs a reference without one.
    """
    if rule == "ablate":
        return own * 0
    if rule != "substitute":
        raise ValueError(f"rule {rule!r} does not exist; expected one of {', '.join(RULES)}")
    if reference is None:
        raise ValueError("rule 'substitute' puts a reference's coordinates in place, and no reference was given")
    return strength * reference.expand_as(own)


def sign_gate(reference: Float[Tensor, "*batch rank"]) -> Bool[Tensor, " *batch"]:
    """The paper's gate: open where the reference's first coordinate is above 0, i.e. the LLM sees harm."""
    return reference[..., 0] > 0
