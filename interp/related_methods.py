"""The neighbours of VLM-Guard as guards: the same formula under other settings.

Each cites where its formula was read. Where only descriptions were at hand, the docstring says so.
"""

from collections.abc import Sequence

import xarray as xr

from interp.directions import SafetyDirection
from interp.guard import Guard


def shift_dc(direction: SafetyDirection, layers: Sequence[int]) -> Guard:
    """ShiftDC (Zou et al., arXiv:2502.13095): x - proj_s(x_vl - x_tt) at the last prompt token, from middle to end.

    As in its released code the shift of every layer is measured on unguarded runs, and s is harmless - harmful; the
    projection does not notice the sign. Its reference is the prompt's text with a caption: pass that as references.

    Args:
        direction: `mean_diff`, of text.
        layers: in the paper the second half of all.
    """
    return Guard(direction, tuple(layers), "substitute", gate="always", frozen_shift=True)


def cmrm(text: xr.Dataset, pictured: xr.Dataset, layers: Sequence[int], strength: float = 1.0) -> Guard:
    """CMRM's dataset-level form, h + a v, v along the first component of {h_text - h_pictured}.

    As described in notes on Liu et al., arXiv:2410.09047; sign unverified: the notes print h + v and h - v. Here v
    points from pictured to text, and is as long as the mean shift along it. Component of the uncentred shifts, since
    centring would take their mean, which is what they share, away.

    Args:
        text: traced prompts without pictures.
        pictured: the same prompts, in the same order, beside a picture without meaning.
        layers: all of them in the paper.
        strength: a.

    Raises:
        ValueError: the two are not the same prompts.
    """
    if text.text.values.tolist() != pictured.text.values.tolist():
        raise ValueError("cmrm takes the same prompts, in the same order, without and with a picture; these differ")
    # Partners for the estimator: with and without the picture, in place of harmful and harmless.
    names = [str(i) for i in range(len(text.prompt))]
    halves = [
        states.assign_coords(harmful=("prompt", [without] * len(names)), pair=("prompt", names))
        for states, without in ((text, True), (pictured, False))
    ]
    direction = SafetyDirection.fit(xr.concat(halves, "prompt"), "paired_svd")
    return Guard(direction, tuple(layers), "steer", gate="always", strength=strength)


def infer_aligner(direction: SafetyDirection, layers: Sequence[int], strength: float = 1.0) -> Guard:
    """InferAligner: x + a g theta at every position, theta the mean difference, g a border along it.

    As described in Wang et al., arXiv:2401.11206, and its repository's figures; the gate's bias is unverified: here the
    border lies half way between the class means of the first layer. The gate reads the reference, not the prompt with
    its picture. In the paper theta comes from an aligned model: fit the direction on that.
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
    """ASTRA's adaptive subtraction: h - a clamp(cos(h - h_ref, v), 0, 1) |h| v, at the last position of every pass.

    Wang et al., arXiv:2411.16721, as in its released code. Its v comes from adversarial pictures and its h_ref from
    answers about harmless ones; here they are the direction and the middle of its anchors.
    """
    return Guard(direction, (layer,), "adaptive", gate="always", positions="last", strength=strength)


def arditi_ablation(direction: SafetyDirection, direction_layer: int) -> Guard:
    """Directional ablation: every write of every layer, at all positions, loses one direction.

    Arditi et al., arXiv:2406.11717, x - r r^T x on what each block takes in and what its attention and MLP put out, as
    in its released code. It removes refusal.
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
    """Activation addition: x + a r at one layer, at all positions, r the difference of class means.

    Arditi et al., arXiv:2406.11717, as in its released code, which adds to what the block takes in: the output of the
    block before it. It induces refusal.
    """
    return Guard(direction, (layer,), "steer", gate="always", positions="all", strength=strength)
