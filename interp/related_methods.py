"""Methods related to VLM-Guard, as guards: the same formula with other settings.

Each docstring cites the source of its formula, and says so if only descriptions of the method were available.
"""

from collections.abc import Sequence

import xarray as xr

from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.related_directions import modality_shift

__all__ = [
    "alpha_steer",
    "angular_steering",
    "arditi_ablation",
    "arditi_addition",
    "astra",
    "cmrm",
    "infer_aligner",
    "re_gap",
    "refusal_cone",
    "shift_dc",
    "tbop",
]


def shift_dc(direction: SafetyDirection, layers: Sequence[int]) -> Guard:
    """Return ShiftDC (Zou et al., arXiv:2502.13095): x - proj_s(x_vl - x_tt) at the last prompt token.

    As in its released code, the shift of every layer is measured on unguarded runs, and s is harmless - harmful; the
    projection does not depend on the sign. Its reference is the prompt's text with a caption: pass that as references.

    Args:
        direction: estimator `mean_diff`, fitted on text.
        layers: in the paper the second half of all layers.
    """
    return Guard(direction, tuple(layers), "substitute", gate="always", frozen_shift=True)


def cmrm(text: xr.Dataset, pictured: xr.Dataset, layers: Sequence[int], strength: float = 1.0) -> Guard:
    """Return CMRM's dataset-level form, h + a v, with v along the first component of {h_text - h_pictured}.

    Follows notes on Liu et al., arXiv:2410.09047. The sign is unverified: the notes print both h + v and h - v. Here v
    points from pictured to text and is as long as the mean shift along it.

    Args:
        text: traced prompts without pictures.
        pictured: the same prompts in the same order, with a picture without meaning.
        layers: in the paper all layers.
        strength: a.

    Raises:
        ValueError: the two datasets do not hold the same prompts.
    """
    direction = modality_shift(text, pictured)
    return Guard(direction, tuple(layers), "steer", gate="always", strength=strength)


def infer_aligner(direction: SafetyDirection, layers: Sequence[int], strength: float = 1.0) -> Guard:
    """Return InferAligner: x + a g theta at every position, with theta the mean difference and g a threshold gate.

    As described in Wang et al., arXiv:2401.11206, and the figures of its repository. The bias of the gate is
    unverified: here the threshold is the midpoint of the class means at the first layer. The gate reads the reference,
    not the prompt with its picture. In the paper theta comes from an aligned model: fit the direction on that.
    """
    return Guard(
        direction,
        tuple(layers),
        "steer",
        gate="threshold",
        threshold=direction.midpoint(layers[0]),
        positions="all",
        strength=strength,
    )


def astra(direction: SafetyDirection, layer: int, strength: float = 1.0) -> Guard:
    """Return ASTRA's adaptive subtraction: h - a clamp(cos(h - h_ref, v), 0, 1) |h| v at the last position of a pass.

    Wang et al., arXiv:2411.16721, as in its released code. Its v comes from adversarial pictures and its h_ref from
    answers about harmless ones; here they are the direction and the midpoint of its anchors.
    """
    return Guard(direction, (layer,), "adaptive", gate="always", positions="last", strength=strength)


def arditi_ablation(direction: SafetyDirection, direction_layer: int) -> Guard:
    """Return directional ablation: one direction is removed from every write of every layer, at all positions.

    Arditi et al., arXiv:2406.11717, as in its released code: x - r r^T x on the input of each block and on the outputs
    of its attention and MLP. It removes refusal.
    """
    return Guard(
        direction,
        tuple(range(len(direction.basis))),
        "ablate",
        gate="always",
        positions="all",
        direction_layer=direction_layer,
        all_writes=True,
    )


def arditi_addition(direction: SafetyDirection, layer: int, strength: float = 1.0) -> Guard:
    """Return activation addition: x + a r at one layer, at all positions, with r the difference of class means.

    Arditi et al., arXiv:2406.11717, as in its released code, which adds to the input of a block: the output of the
    block before it. It induces refusal.
    """
    return Guard(direction, (layer,), "steer", gate="always", positions="all", strength=strength)


def tbop(shift: SafetyDirection, layer: int) -> Guard:
    """Return TBOP: h - h B^T B, with the rows of B the first components of {h_pictured - h_text}.

    After its description (arXiv:2603.14825), which has no code: it projects out the modality, not the safety direction.
    Which positions it changes is not described; here they are the last prompt token and the generated ones.

    Args:
        shift: from `modality_shift`, of any rank.
        layer: described as late.
    """
    return Guard(shift, (layer,), "ablate", gate="always", positions="last")


def alpha_steer(direction: SafetyDirection, layers: Sequence[int], strength: float = 1.0) -> Guard:
    """Return AlphaSteer: h + a D P h, with P the projector on the null space of benign states; or NullSteer.

    Sheng et al., arXiv:2506.07022, fitted as in its released code. There the change, which is read at the last prompt
    token, is added to the whole prompt at the input of a block; here it is added to the last prompt token, at the
    output of the block before, so that guards can share a prefill. NullSteer (arXiv:2603.22094, after its description,
    which has no code) is the same map fitted on anchors with a picture.

    Args:
        direction: from `null_space_direction`.
        layers: in AlphaSteer from a quarter to two thirds of the way up.
        strength: a.
    """
    return Guard(direction, tuple(layers), "linear", gate="always", strength=strength)


def re_gap(drift: SafetyDirection, layers: Sequence[int], strength: float = 1.0) -> Guard:
    """Return ReGap's adaptive correction: the drift is taken back as far as the state would then look harmful.

    After its description (arXiv:2605.18104), which has no code: h - a s d, with d the mean of h_pictured - h_text, and
    s the refusal signal of h - d, from 0 at the mean of harmless anchors to 1 at that of harmful ones.

    Args:
        drift: from `drift_direction`.
        layers: guarded layers.
        strength: a.
    """
    return Guard(drift, tuple(layers), "drift", gate="always", strength=strength)


def angular_steering(plane: SafetyDirection, layers: Sequence[int], strength: float = 1.0) -> Guard:
    """Return angular steering: h is turned in a plane towards its first row, and keeps its norm.

    Vu and Nguyen, NeurIPS 2025. At strength 1 it is the released code's step to a target angle, without the mask of its
    adaptive mode; a smaller strength goes that share of the way. It acts at the output of blocks, where that code acts
    at each norm, and at the last prompt token and generated ones.

    Args:
        plane: from `angular_plane`; its first row is the target.
        layers: in the paper all layers.
        strength: share of the angle, 1 for all of it.
    """
    return Guard(plane, tuple(layers), "rotate", gate="always", positions="last", strength=strength)


def refusal_cone(direction: SafetyDirection, layers: Sequence[int], strength: float = 1.0) -> Guard:
    """Return activation addition within a refusal cone, whose vectors were found elsewhere: c + a (mu+ - mu-).

    Wollschläger et al., arXiv:2502.17420, find the vectors by gradients; here they are loaded.

    Args:
        direction: from `SafetyDirection.from_basis`, of any rank.
        layers: guarded layers.
        strength: a.
    """
    return Guard(direction, tuple(layers), "steer", gate="always", strength=strength)
