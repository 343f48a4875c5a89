"""The safety steering direction (SSD) and its estimators. Pure tensors, and anchors' activations."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from interp.projection import ProbeGate, coordinates


class AnchorError(ValueError):
    """No direction can be fitted on these anchors; says why."""


ESTIMATORS = ("paired_svd", "mean_diff", "pca", "lda", "logistic")
NAMED = 5
"""Anchors that an error lists by name."""
SINGLE = ("mean_diff", "lda", "logistic")
"""Estimators of one direction."""


def paired_svd(
    harmful: Float[Tensor, "pair layer d_model"], harmless: Float[Tensor, "pair layer d_model"], rank: int = 1
) -> Float[Tensor, "layer rank d_model"]:
    """First right singular vectors of harmful - harmless, uncentred: stage 1 of VLM-Guard (arXiv:2502.10486).

    Centring the differences would remove the very direction that all pairs share.

    Raises:
        ValueError: the classes are not paired, or there are fewer pairs than ranks.
    """
    if harmful.shape != harmless.shape:
        raise AnchorError(
            f"paired_svd needs a harmless partner for each harmful query; got {len(harmful)} harmful and "
            f"{len(harmless)} harmless. Give pairs, or use estimator 'mean_diff'."
        )
    if len(harmful) < rank:
        raise AnchorError(f"rank {rank} needs at least {rank} pairs; got {len(harmful)}")
    differences = rearrange(harmful.double() - harmless.double(), "pair layer d_model -> layer pair d_model")
    return torch.linalg.svd(differences, full_matrices=False).Vh[:, :rank]


def mean_diff(
    harmful: Float[Tensor, "harmful layer d_model"], harmless: Float[Tensor, "harmless layer d_model"]
) -> Float[Tensor, "layer 1 d_model"]:
    """Difference of class means, of unit length (Arditi et al., arXiv:2406.11717).

    Raises:
        AnchorError: there is none.
    """
    direction = harmful.double().mean(0) - harmless.double().mean(0)
    if not direction.norm(dim=-1).all():
        raise AnchorError("harmful and harmless anchors have the same mean; there is no difference to be a direction")
    return (direction / direction.norm(dim=-1, keepdim=True))[:, None]


def pca(
    harmful: Float[Tensor, "harmful layer d_model"], harmless: Float[Tensor, "harmless layer d_model"], rank: int = 1
) -> Float[Tensor, "layer rank d_model"]:
    """First principal components of both classes together, centred.

    Raises:
        ValueError: there are fewer anchors than ranks.
    """
    states = torch.cat([harmful, harmless]).double()
    if len(states) <= rank:
        raise AnchorError(f"rank {rank} needs more than {rank} anchors; got {len(states)}")
    centred = rearrange(states - states.mean(0), "prompt layer d_model -> layer prompt d_model")
    return torch.linalg.svd(centred, full_matrices=False).Vh[:, :rank]


def lda(
    harmful: Float[Tensor, "harmful layer d_model"], harmless: Float[Tensor, "harmless layer d_model"]
) -> Float[Tensor, "layer 1 d_model"]:
    """Fisher's discriminant with Ledoit and Wolf's shrinkage, of unit length."""
    return _weights(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"), harmful, harmless)


def logistic(
    harmful: Float[Tensor, "harmful layer d_model"], harmless: Float[Tensor, "harmless layer d_model"]
) -> Float[Tensor, "layer 1 d_model"]:
    """Weights of a logistic regression (L2, C = 1) on standardised states, of unit length."""
    return _weights(LogisticRegression(max_iter=1000), harmful, harmless)


def _weights(estimator, harmful: Tensor, harmless: Tensor) -> Float[Tensor, "layer 1 d_model"]:
    """In the space of the states, whatever scale the estimator saw them in."""
    states = torch.cat([harmful, harmless]).double().numpy()
    labels, rows = np.arange(len(states)) < len(harmful), []
    for layer in range(states.shape[1]):
        scaler = StandardScaler().fit(states[:, layer])
        weights = estimator.fit(scaler.transform(states[:, layer]), labels).coef_[0] / scaler.scale_
        rows.append(torch.from_numpy(weights / np.linalg.norm(weights)))
    return torch.stack(rows)[:, None]


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


@dataclass(frozen=True, eq=False)
class SafetyDirection:
    """Per layer, the subspace in which the language model writes harmful apart from harmless."""

    basis: Float[Tensor, "layer rank d_model"]
    """Orthonormal rows; the first points from harmless to harmful."""
    estimator: str
    harmful: Float[Tensor, "layer rank"] | None = None
    """Mean coordinates of harmful anchors (mu+); none where the direction was not fitted."""
    harmless: Float[Tensor, "layer rank"] | None = None
    """The same of harmless anchors (mu-)."""
    centre: Float[Tensor, "layer d_model"] | None = None
    """Half way between the class means: the reference state of the `adaptive` rules."""
    explained: Float[Tensor, "layer rank"] | None = None
    """Share of the anchors' variance that lies along each row."""
    token: str = "last"
    """Where the anchors were read."""
    anchors: str = ""
    """Hash of the anchors' prompts."""

    @classmethod
    def fit(
        cls,
        activations: xr.Dataset,
        estimator: str = "paired_svd",
        rank: int = 1,
        token: str = "last",
        apart_from: Collection[str] = (),
    ) -> "SafetyDirection":
        """From the traced anchors, text only; sums and SVD in float64.

        Args:
            activations: `interp.trace` of the anchors.
            estimator: one of `ESTIMATORS`.
            rank: rows of the basis; `mean_diff`, `lda` and `logistic` have one.
            token: `last` (nearer refusal), or `instruction` (nearer harmfulness).
            apart_from: texts of the test split, none of which may be an anchor.

        Raises:
            ValueError: no such estimator or token.
            AnchorError: a class without anchors, unpaired anchors for `paired_svd`, fewer of them than ranks, states
                that are no numbers, or anchors of the test split.
        """
        _check(activations, estimator, rank, token, apart_from)
        harmful, harmless = _by_class(activations, token)
        if estimator == "paired_svd":
            basis = paired_svd(*_aligned_by_pair(activations, token), rank)
        elif estimator == "pca":
            basis = pca(harmful, harmless, rank)
        else:
            basis = {"mean_diff": mean_diff, "lda": lda, "logistic": logistic}[estimator](harmful, harmless)
        anchors = hashlib.sha256("".join(sorted(activations.prompt_hash.values)).encode()).hexdigest()[:16]
        return cls._described(orient(basis, harmful, harmless), estimator, harmful, harmless, token, anchors)

    @classmethod
    def _described(
        cls, basis: Tensor, estimator: str, harmful: Tensor, harmless: Tensor, token: str, anchors: str
    ) -> "SafetyDirection":
        means = [states.double().mean(0) for states in (harmful, harmless)]
        states = torch.cat([harmful, harmless]).double()
        spread = states - states.mean(0)
        explained = coordinates(spread, basis).square().sum(0) / spread.square().sum((0, 2))[:, None]
        own = [coordinates(mean, basis).float() for mean in means]
        centre = ((means[0] + means[1]) / 2).float()
        return cls(basis.float(), estimator, *own, centre, explained.float(), token, anchors)

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def midpoint(self, layer: int) -> float:
        """Half way between the class means along the first row: a border for the gate `threshold`."""
        return ((self.harmful[layer, 0] + self.harmless[layer, 0]) / 2).item()

    def _repr_html_(self) -> str:
        from interp import cards

        return cards.of_direction(self)


def fit_gate(activations: xr.Dataset, layer: int, token: str = "last") -> ProbeGate:
    """A logistic regression (L2, C = 1, standardised) on the anchors' states of a layer, as a gate.

    Raises:
        ValueError: see `SafetyDirection.fit`.
    """
    _check(activations, "logistic", 1, token, ())
    harmful, harmless = (states[:, layer].double().numpy() for states in _by_class(activations, token))
    scaler = StandardScaler().fit(np.concatenate([harmful, harmless]))
    labels = np.arange(len(harmful) + len(harmless)) < len(harmful)
    probe = LogisticRegression(max_iter=1000).fit(scaler.transform(np.concatenate([harmful, harmless])), labels)
    weight = probe.coef_[0] / scaler.scale_
    return ProbeGate(torch.from_numpy(weight).float(), float(probe.intercept_[0] - weight @ scaler.mean_))


def alignment(
    one: Float[Tensor, "layer rank d_model"], other: Float[Tensor, "layer rank d_model"]
) -> Float[Tensor, " layer"]:
    """How near two subspaces are: the mean cosine of their principal angles, 1 for the same.

    Of rank 1 it has the sign of the cosine: directions are oriented.
    """
    if one.shape[1] == other.shape[1] == 1:
        return einsum(one.double(), other.double(), "layer r d_model, layer r d_model -> layer").float()
    overlap = einsum(one.double(), other.double(), "layer r d_model, layer s d_model -> layer r s")
    return torch.linalg.svdvals(overlap).mean(-1).float()


def stability(
    activations: xr.Dataset,
    estimator: str = "paired_svd",
    rank: int = 1,
    token: str = "last",
    n_draws: int = 20,
    seed: int = 0,
) -> Float[Tensor, " layer"]:
    """Mean `alignment` of refits on bootstrap draws with the fit on all anchors; pairs are drawn whole."""
    whole = SafetyDirection.fit(activations, estimator, rank, token).basis
    rng, found = np.random.default_rng(seed), []
    while len(found) < n_draws:
        drawn = _draw(activations, rng)
        if drawn.harmful.values.all() or not drawn.harmful.values.any():
            continue
        found.append(alignment(SafetyDirection.fit(drawn, estimator, rank, token).basis, whole))
    return torch.stack(found).mean(0)


def _draw(activations: xr.Dataset, rng: np.random.Generator) -> xr.Dataset:
    """As many groups as there are, with replacement: a pair, or a single prompt. Each draw of a pair is a pair."""
    pairs = activations.pair.values
    groups = [np.flatnonzero(pairs == pair) for pair in dict.fromkeys(pairs) if pair]
    groups += [np.array([i]) for i in np.flatnonzero(pairs == "")]
    chosen = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
    drawn = activations.isel(prompt=np.concatenate(chosen))
    names = [f"{pairs[rows[0]]} {i}" if pairs[rows[0]] else "" for i, rows in enumerate(chosen) for _ in rows]
    return drawn.assign_coords(pair=("prompt", np.array(names, dtype=object)))


def _check(activations: xr.Dataset, estimator: str, rank: int, token: str, apart_from: Collection[str]) -> None:
    """Raises:
    AnchorError, ValueError: see `SafetyDirection.fit`.
    """
    if estimator not in ESTIMATORS or rank < 1 or (rank > 1 and estimator in SINGLE):
        raise ValueError(
            f"estimator {estimator!r} of rank {rank}; expected one of {', '.join(ESTIMATORS)}, and rank 1 for "
            f"{', '.join(SINGLE)}"
        )
    if token not in activations.token.values.tolist():
        raise ValueError(f"token {token!r} was not traced; these were: {', '.join(map(str, activations.token.values))}")
    seen = sorted(set(activations.text.values) & set(apart_from))
    if seen:
        raise AnchorError(
            f"{len(seen)} anchors are in the test split: {', '.join(map(repr, seen[:NAMED]))}"
            f"{', ...' if len(seen) > NAMED else ''}; a direction fitted on what it is tested on proves nothing: leave "
            "them out"
        )
    # What only this token needs, NaN where a prompt has no picture for instance.
    bad = np.argwhere(~np.isfinite(activations.resid_post.sel(token=token).values).all(-1))
    if len(bad):
        prompt, layer = bad[0]
        raise AnchorError(
            f"the state of prompt {prompt} ({activations.text.values[prompt]!r}) at layer "
            f"{activations.layer.values[layer]} is not finite; {len(bad)} such states"
        )


def _states(activations: xr.Dataset, chosen: np.ndarray, token: str) -> Float[Tensor, "prompt layer d_model"]:
    return torch.from_numpy(activations.resid_post.sel(token=token).values[chosen])


def _by_class(activations: xr.Dataset, token: str) -> tuple[Tensor, Tensor]:
    is_harmful = activations.harmful.values
    if is_harmful.all() or not is_harmful.any():
        raise AnchorError(
            f"a direction needs anchors of both classes; got {is_harmful.sum()} harmful, {(~is_harmful).sum()} harmless"
        )
    return _states(activations, is_harmful, token), _states(activations, ~is_harmful, token)


def _aligned_by_pair(activations: xr.Dataset, token: str) -> tuple[Tensor, Tensor]:
    """(harmful, harmless), row by row the partners of one pair."""
    pairs, is_harmful = activations.pair.values, activations.harmful.values
    rows = [np.flatnonzero(is_harmful == label) for label in (True, False)]
    names = [pairs[chosen] for chosen in rows]
    if sorted(names[0]) != sorted(names[1]) or len(set(names[0])) != len(names[0]) or "" in names[0]:
        raise AnchorError(
            "paired_svd needs exactly one harmful and one harmless anchor in each pair. "
            "Give pairs, or use estimator 'mean_diff'."
        )
    return tuple(
        _states(activations, chosen[np.argsort(name)], token) for chosen, name in zip(rows, names, strict=True)
    )
