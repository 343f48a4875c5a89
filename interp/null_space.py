"""Linear maps that see nothing in benign states: the null-space projection of AlphaSteer, in closed form.

The map steers every state along one vector r, so it is r times a row w: the change of h is (w · h) r. The row is the
ridge regression of 1 on harmful states, within the null space of benign ones.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from interp.estimators import AnchorError

LEAST_SHARE = 0.1
"""Smallest share of all dimensions that counts as the null space, as in AlphaSteer's released code."""
RIDGE = 10.0
"""Weight of the penalty on w, as in that code."""


def null_space_readout(
    harmful: Float[Tensor, "harmful layer d_model"],
    benign: Float[Tensor, "benign layer d_model"],
    ridge: float = RIDGE,
    least_share: float = LEAST_SHARE,
) -> Float[Tensor, "layer d_model"]:
    """Return the row w per layer that minimises |H P w − 1|² + ridge |P w|², with P w in its place (w = P w).

    After AlphaSteer (arXiv:2506.07022) and its released code, whose matrix Δ P is r wᵀ for a refusal vector r. P
    projects onto the directions in which benign states have nothing, to rounding; if these are fewer than `least_share`
    of all, onto as many in which they have least, and w then reads a little in benign states too.

    Args:
        harmful: states H that w should read 1 in.
        benign: states that w should read 0 in.
        ridge: weight of the penalty, in squared units of the states.
        least_share: share of `d_model`, above 0 and below 1.

    Raises:
        AnchorError: harmful states have nothing in the null space, so there is nothing to steer by.
    """
    rows = [
        _readout(harmful[:, layer].double(), benign[:, layer].double(), ridge, least_share)
        for layer in range(harmful.shape[1])
    ]
    return torch.stack(rows)


def _readout(
    harmful: Float[Tensor, "harmful d_model"], benign: Float[Tensor, "benign d_model"], ridge: float, share: float
) -> Float[Tensor, " d_model"]:
    d_model = harmful.shape[1]
    sizes, directions = torch.linalg.svd(benign, full_matrices=False)[1:]
    # The usual numerical rank; at most as many directions count as occupied as leave `share` of the space free.
    rank = int((sizes > sizes[0] * torch.finfo(sizes.dtype).eps * max(benign.shape)).sum())
    occupied = directions[: min(rank, d_model - max(1, int(share * d_model)))]

    def projected(states: Tensor) -> Tensor:
        # Twice: what rounding leaves of large benign parts the first time is gone after the second.
        for _ in range(2):
            states = states - states @ occupied.T @ occupied
        return states

    seen = projected(harmful)
    if seen.norm() <= torch.finfo(sizes.dtype).eps * max(harmful.shape) * harmful.norm():
        raise AnchorError(
            "harmful states have nothing in the null space of benign ones; give more different harmful anchors"
        )
    # The dual form: as many equations as harmful states, not as dimensions.
    gram = seen @ seen.T + ridge * torch.eye(len(seen), dtype=seen.dtype)
    return projected(seen.T @ torch.linalg.solve(gram, torch.ones(len(seen), dtype=seen.dtype)))
