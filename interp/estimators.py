"""Estimators of the safety steering direction: states of harmful and harmless anchors in, a basis per layer out.

Pure tensors; sums and decompositions in float64. The sign of a row is arbitrary here, `SafetyDirection.fit` sets it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor


class AnchorError(ValueError):
    """No direction can be fitted on these anchors; the message says why."""


def paired_svd(
    harmful: Float[Tensor, "pair layer d_model"], harmless: Float[Tensor, "pair layer d_model"], rank: int = 1
) -> Float[Tensor, "layer rank d_model"]:
    """Return the first right singular vectors of harmful - harmless: stage 1 of VLM-Guard (arXiv:2502.10486).

    The differences are not centred: centring would remove the very direction that all pairs share.

    Raises:
        AnchorError: the classes are not paired, or there are fewer pairs than the rank.
    """
    if harmful.shape != harmless.shape:
        raise AnchorError(
            f"paired_svd needs a harmless partner for each harmful query; got {len(harmful)} harmful and "
            f"{len(harmless)} harmless. Give pairs, or use estimator 'mean_diff'."
        )
    if len(harmful) < rank:
        raise AnchorError(f"rank {rank} needs at least {rank} pairs; got {len(harmful)}")
    # The SVD is batched over its leading axes, so layers come first.
    differences = rearrange(harmful.double() - harmless.double(), "pair layer d_model -> layer pair d_model")
    return torch.linalg.svd(differences, full_matrices=False).Vh[:, :rank]


def mean_diff(
    harmful: Float[Tensor, "harmful layer d_model"], harmless: Float[Tensor, "harmless layer d_model"]
) -> Float[Tensor, "layer 1 d_model"]:
    """Return the difference of class means, scaled to unit length (Arditi et al., arXiv:2406.11717).

    Raises:
        AnchorError: the class means coincide at some layer.
    """
    direction = harmful.double().mean(0) - harmless.double().mean(0)
    if not direction.norm(dim=-1).all():
        raise AnchorError("harmful and harmless anchors have the same mean, so their difference has no direction")
    return (direction / direction.norm(dim=-1, keepdim=True))[:, None]


def pca(
    harmful: Float[Tensor, "harmful layer d_model"], harmless: Float[Tensor, "harmless layer d_model"], rank: int = 1
) -> Float[Tensor, "layer rank d_model"]:
    """Return the first principal components of both classes together, centred.

    Raises:
        AnchorError: there are not more anchors than the rank.
    """
    states = torch.cat([harmful, harmless]).double()
    if len(states) <= rank:
        raise AnchorError(f"rank {rank} needs more than {rank} anchors; got {len(states)}")
    # Over both classes at once: labels are not used, so the first component need not separate them.
    centred = rearrange(states - states.mean(0), "prompt layer d_model -> layer prompt d_model")
    return torch.linalg.svd(centred, full_matrices=False).Vh[:, :rank]


def lda(
    harmful: Float[Tensor, "harmful layer d_model"], harmless: Float[Tensor, "harmless layer d_model"]
) -> Float[Tensor, "layer 1 d_model"]:
    """Return Fisher's discriminant with Ledoit and Wolf's shrinkage, scaled to unit length."""
    return _weights(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"), harmful, harmless)


def logistic(
    harmful: Float[Tensor, "harmful layer d_model"], harmless: Float[Tensor, "harmless layer d_model"]
) -> Float[Tensor, "layer 1 d_model"]:
    """Return the weights of a logistic regression (L2, C = 1) on standardised states, scaled to unit length."""
    return _weights(LogisticRegression(max_iter=1000), harmful, harmless)


def _weights(
    classifier: LinearDiscriminantAnalysis | LogisticRegression, harmful: Tensor, harmless: Tensor
) -> Float[Tensor, "layer 1 d_model"]:
    """Return unit weights per layer in the space of the states, although the classifier sees them standardised.

    Raises:
        AnchorError: there are too few anchors, or a layer has the same state for all of them.
    """
    if min(len(harmful), len(harmless)) < 2:
        raise AnchorError(
            f"{len(harmful)} harmful and {len(harmless)} harmless anchors; a classifier needs at least two of each"
        )
    states = torch.cat([harmful, harmless]).double().numpy()
    labels, rows = np.arange(len(states)) < len(harmful), []
    for layer in range(states.shape[1]):
        scaler = StandardScaler().fit(states[:, layer])
        # w . (h - mean) / scale = (w / scale) . h + constant
        if not scaler.var_.any():
            raise AnchorError(
                f"all anchors have the same state at layer {layer}; a classifier finds no direction there"
            )
        weights = classifier.fit(scaler.transform(states[:, layer]), labels).coef_[0] / scaler.scale_
        rows.append(torch.from_numpy(weights / np.linalg.norm(weights)))
    return torch.stack(rows)[:, None]


@dataclass(frozen=True)
class Estimator:
    """One way to fit a basis on the states of two classes."""

    formula: str
    """The rows of the basis as they are printed, with h₊ and h₋ for harmful and harmless states."""
    fit: Callable[..., Float[Tensor, "layer rank d_model"]]
    """A function of harmful and harmless states, and of the rank if `any_rank`."""
    needs_pairs: bool = False
    """True if row i of both classes must be the partners of one pair."""
    any_rank: bool = True
    """False for estimators that give a single direction."""

    def __call__(
        self,
        harmful: Float[Tensor, "harmful layer d_model"],
        harmless: Float[Tensor, "harmless layer d_model"],
        rank: int = 1,
    ) -> Float[Tensor, "layer rank d_model"]:
        return self.fit(harmful, harmless, rank) if self.any_rank else self.fit(harmful, harmless)


ESTIMATORS = {
    "paired_svd": Estimator("top right singular vectors of h₊ − h₋", paired_svd, needs_pairs=True),
    "mean_diff": Estimator("mean h₊ − mean h₋", mean_diff, any_rank=False),
    "pca": Estimator("top principal components of h", pca),
    "lda": Estimator("Σ⁻¹ (mean h₊ − mean h₋)", lda, any_rank=False),
    "logistic": Estimator("weights of a logistic regression of the class on h", logistic, any_rank=False),
}
"""All estimators by name."""
