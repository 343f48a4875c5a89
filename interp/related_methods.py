"""Methods related to VLM-Guard, as guards: the same formula with other settings.

Each docstring cites the source of its formula, and says so if only descriptions of the method were available.
"""

from collections.abc import Sequence

import xarray as xr

from interp.directions import SafetyDirection
from interp.guard import Guard

__all__ = [
    "arditi_ablation",
    "arditi_addition",
    "astra",
    "cmrm",
    "infer_aligner",
    "shift_dc",
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
    points from pictured to text and is as long as the mean shift along it. The shifts are not centred, since centring
    would remove their mean, which is what they share.

    Args:
        text: traced prompts without pictures.
        pictured: the same prompts in the same order, with a picture without meaning.
        layers: in the paper all layers.
        strength: a.

    Raises:
        ValueError: the two datasets do not hold the same prompts.
    """
    if text.text.values.tolist() != pictured.text.values.tolist():
        raise ValueError("cmrm needs the same prompts, in the same order, without and with a picture; these differ")
    # The estimator expects pairs of harmful and harmless; here they are prompts without and with the picture.
    names = [str(i) for i in range(len(text.prompt))]
    halves = [
        states.assign_coords(harmful=("prompt", [is_text] * len(names)), pair=("prompt", names))
        for states, is_text in ((text, True), (pictured, False))
    ]
    direction = SafetyDirection.fit(xr.concat(halves, "prompt"), "paired_svd")
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
