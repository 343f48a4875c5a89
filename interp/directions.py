"""The safety steering direction (SSD) and its estimators. Pure tensors."""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

ESTIMATORS = ("paired_svd", "mean_diff")


def paired_svd(
    harmful: Float[Tensor, "pair layer d_model"], harmless: Float[Tensor, "pair layer d_model"], rank: int = 1
) -> Float[Tensor, "layer rank d_model"]:
    """First right singular vectors of harmful - harmless, uncentred: stage 1 of VLM-Guard (arXiv:2502.10486).

    Centring the differences would remove the very direction that all pairs share.

    Raises:
        ValueError: the classes are not paired, or there are fewer pairs than ranks.
    """
    if harmful.shape != harmless.shape:
        raise ValueError(
            f"paired_svd needs a harmless partner for each harmful query; got {len(harmful)} harmful and "
            f"{len(harmless)} harmless. Give pairs, or use estimator 'mean_diff'."
        )
    if len(harmful) < rank:
        raise ValueError(f"rank {rank} needs at least {rank} pairs; got {len(harmful)}")
    differences = rearrange(harmful.double() - harmless.double(), "pair layer d_model -> layer pair d_model")
    return torch.linalg.svd(differences, full_matrices=False).Vh[:, :rank]


def mean_diff(
    harmful: Float[Tensor, "harmful layer d_model"], harmless: Float[Tensor, "harmless layer d_model"]
) -> Float[Tensor, "layer 1 d_model"]:
    """Difference of class means, of unit length (Arditi et al., arXiv:2406.11717)."""
    direction = harmful.double().mean(0) - harmless.double().mean(0)
    return (direction / direction.norm(dim=-1, keepdim=True))[:, None]


def orient(
    basis: Float[Tensor, "layer rank d_model"],
    harmful: Float[Tensor, "harmful layer d_model"],
    harmless: Float[Tensor, "harmless layer d_model"],
) -> Float[Tensor, "layer rank d_model"]:
    """Turns each row so that harmful lies on its positive side: the sign of a singular vector is arbitrary."""
    gap = harmful.double().mean(0) - harmless.double().mean(0)
    side = einsum(gap, basis, "layer d_model, layer rank d_model -> layer rank").sign()
    return basis * torch.where(side == 0, 1.0, side)[..., None]


def random_basis(basis: Float[Tensor, "layer rank d_model"], seed: int) -> Float[Tensor, "layer rank d_model"]:
    """A random orthonormal basis of the same shape: the control that shows what any direction would do."""
    noise = torch.randn(basis.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = torch.linalg.qr(rearrange(noise, "layer rank d_model -> layer d_model rank")).Q
    return rearrange(rows, "layer d_model rank -> layer rank d_model").to(basis.dtype)


@dataclass(frozen=True)
class SafetyDirection:
    """Per layer, the subspace in which the language model writes harmful apart from harmless."""

    basis: Float[Tensor, "layer rank d_model"]
    """Orthonormal rows; the first points from harmless to harmful."""
    estimator: str

    @classmethod
    def fit(cls, activations: xr.Dataset, estimator: str = "paired_svd", rank: int = 1) -> "SafetyDirection":
        """From the traced anchors, text only, at token `last`; sums and SVD in float64.

        Args:
            activations: `interp.trace.trace` of the anchors.
            estimator: one of `ESTIMATORS`.
            rank: rows of the basis; `mean_diff` has one.

        Raises:
            ValueError: no such estimator, a class without anchors, unpaired anchors for `paired_svd`.
        """
        harmful, harmless = _by_class(activations)
        if estimator == "paired_svd":
            basis = paired_svd(*_aligned_by_pair(activations), rank)
        elif estimator == "mean_diff" and rank == 1:
            basis = mean_diff(harmful, harmless)
        else:
            raise ValueError(
                f"estimator {estimator!r} of rank {rank}; expected one of {', '.join(ESTIMATORS)}, "
                "and rank 1 for 'mean_diff'"
            )
        return cls(orient(basis, harmful, harmless).float(), estimator)

    @property
    def rank(self) -> int:
        return self.basis.shape[1]


def _states(activations: xr.Dataset, chosen: np.ndarray) -> Float[Tensor, "prompt layer d_model"]:
    return torch.from_numpy(activations.resid_post.sel(token="last").values[chosen])


def _by_class(activations: xr.Dataset) -> tuple[Tensor, Tensor]:
    is_harmful = activations.harmful.values
    if is_harmful.all() or not is_harmful.any():
        raise ValueError(
            f"a direction needs anchors of both classes; got {is_harmful.sum()} harmful, {(~is_harmful).sum()} harmless"
        )
    return _states(activations, is_harmful), _states(activations, ~is_harmful)


def _aligned_by_pair(activations: xr.Dataset) -> tuple[Tensor, Tensor]:
    """(harmful, harmless), row by row the partners of one pair."""
    pairs, is_harmful = activations.pair.values, activations.harmful.values
    rows = [np.flatnonzero(is_harmful == label) for label in (True, False)]
    names = [pairs[chosen] for chosen in rows]
    if sorted(names[0]) != sorted(names[1]) or len(set(names[0])) != len(names[0]) or "" in names[0]:
        raise ValueError(
            "paired_svd needs exactly one harmful and one harmless anchor in each pair. "
            "Give pairs, or use estimator 'mean_diff'."
        )
    return tuple(_states(activations, chosen[np.argsort(name)]) for chosen, name in zip(rows, names, strict=True))
