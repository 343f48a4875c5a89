"""Directions of related methods, fitted on pictures, in null spaces or across layers (see `related_methods`)."""

import math
from dataclasses import replace

import torch
import xarray as xr

from interp.directions import SafetyDirection
from interp.estimators import AnchorError
from interp.null_space import RIDGE, null_space_readout

__all__ = [
    "angular_plane",
    "drift_direction",
    "modality_shift",
    "null_space_direction",
]


def modality_shift(to: xr.Dataset, origin: xr.Dataset, estimator: str = "paired_svd", rank: int = 1) -> SafetyDirection:
    """Fit a direction on what a picture does to a prompt: the shifts {h_to - h_origin} of the same prompts.

    The shifts are not centred, since centring would remove their mean, which is what they share.

    Args:
        to: traced prompts, at the end of the shift.
        origin: the same prompts in the same order, at its start: without a picture if the others have one.
        estimator: `paired_svd` for their first components, `mean_diff` for their mean.
        rank: number of components.

    Returns:
        A direction whose `harmful` mean coordinates are those of `to`, and whose `harmless` ones those of `origin`.

    Raises:
        ValueError: the two datasets do not hold the same prompts.
    """
    if to.text.values.tolist() != origin.text.values.tolist():
        raise ValueError("a shift needs the same prompts, in the same order, without and with a picture; these differ")
    # The estimator expects pairs of harmful and harmless; here they are the two ends of a shift.
    names = [str(i) for i in range(len(to.prompt))]
    halves = [
        states.assign_coords(harmful=("prompt", [is_end] * len(names)), pair=("prompt", names))
        for states, is_end in ((to, True), (origin, False))
    ]
    return SafetyDirection.fit(xr.concat(halves, "prompt"), estimator, rank)


def null_space_direction(text: xr.Dataset, steered: xr.Dataset, ridge: float = RIDGE) -> SafetyDirection:
    """Fit the linear map of AlphaSteer and NullSteer: it reads 1 in harmful states and nothing in harmless ones.

    Args:
        text: traced anchors as text; their mean difference r is what is added.
        steered: traced anchors as the map will see them.
        ridge: see `interp.null_space.null_space_readout`.
    """
    direction = SafetyDirection.fit(text, "mean_diff")
    states = torch.from_numpy(steered.resid_post.sel(token="last").values)
    is_harmful = torch.from_numpy(steered.harmful.values)
    row = null_space_readout(states[is_harmful], states[~is_harmful], ridge)
    # The rule adds coordinates along the unit vector of r, so W has r's length in it.
    length = (direction.harmful - direction.harmless).double()
    readout = (length * row)[:, None].float()
    return replace(direction, readout=readout, centre=torch.zeros_like(direction.centre))


def drift_direction(text: xr.Dataset, pictured: xr.Dataset) -> SafetyDirection:
    """Fit the mean drift h_pictured - h_text, with the refusal signal of a state from which it was taken back.

    Args:
        text: traced anchors as text.
        pictured: the same anchors in the same order, with a picture without meaning.

    Returns:
        The drift, with a `readout` of the corrected state: 0 at the mean of harmless text, 1 at that of harmful text.
    """
    drift, refusal = modality_shift(pictured, text, "mean_diff"), SafetyDirection.fit(text, "mean_diff")
    # With a mean difference r, the coordinates of the class means are |r| apart, and the centre lies between them.
    between = (refusal.harmful - refusal.harmless) * refusal.basis[:, 0]
    correction = (drift.harmful - drift.harmless) * drift.basis[:, 0]
    readout = refusal.basis / (refusal.harmful - refusal.harmless)[..., None]
    return replace(drift, readout=readout, centre=refusal.centre - between / 2 + correction)


def angular_plane(text: xr.Dataset, angle: float = 0.0) -> SafetyDirection:
    """Fit the plane of angular steering at each layer: the mean difference, and the first component of all layers'.

    Args:
        text: traced anchors as text.
        angle: direction in the plane that the first row points to, in degrees from the mean difference.

    Raises:
        AnchorError: the mean differences of all layers are parallel, so they span no plane.
    """
    first = SafetyDirection.fit(text, "mean_diff").basis[:, 0].double()
    component = torch.linalg.svd(first - first.mean(0), full_matrices=False).Vh[:1]
    # Gram-Schmidt: what the component has next to the mean difference of each layer.
    across = component - (component * first).sum(-1, keepdim=True) * first
    length = across.norm(dim=-1, keepdim=True)
    if len(first) < 2 or not (length > 1e-6).all():
        raise AnchorError("the mean differences of all layers are parallel, so they span no plane to turn in")
    # Turn the plane's two axes together, so that the first row points at the angle.
    turn = math.radians(angle)
    plane = [first, across / length]
    rows = [
        math.cos(turn) * plane[0] + math.sin(turn) * plane[1],
        math.cos(turn) * plane[1] - math.sin(turn) * plane[0],
    ]
    return SafetyDirection(torch.stack(rows, dim=1).float(), "mean_diff and pca")
