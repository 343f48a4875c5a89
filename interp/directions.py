"""The safety steering direction (SSD): fitting it on anchors, and comparing directions."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from interp import display
from interp.estimators import ESTIMATORS, AnchorError
from interp.projection import ProbeGate, coordinates

NEARLY = 2e-2
"""Largest difference from orthonormal rows, as rounding to 16 bits makes it."""
MAX_NAMED = 5
"""Number of anchors that an error lists by name."""


def orient(
    basis: Float[Tensor, "layer rank d_model"],
    harmful: Float[Tensor, "harmful layer d_model"],
    harmless: Float[Tensor, "harmless layer d_model"],
) -> Float[Tensor, "layer rank d_model"]:
    """Flip rows so that harmful lies on the positive side of each: the sign of a singular vector is arbitrary."""
    gap = harmful.double().mean(0) - harmless.double().mean(0)
    side = einsum(gap, basis, "layer d_model, layer rank d_model -> layer rank").sign()
    return basis * torch.where(side == 0, 1.0, side)[..., None]


def random_basis(basis: Float[Tensor, "layer rank d_model"], seed: int) -> Float[Tensor, "layer rank d_model"]:
    """Return a random orthonormal basis of the same shape: a control that shows what any direction would do."""
    noise = torch.randn(basis.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = torch.linalg.qr(rearrange(noise, "layer rank d_model -> layer d_model rank")).Q
    return rearrange(rows, "layer d_model rank -> layer rank d_model").to(basis.dtype)


@dataclass(frozen=True, eq=False)
class SafetyDirection:
    """Per layer, the subspace in which the language model separates harmful from harmless requests."""

    basis: Float[Tensor, "layer rank d_model"]
    """Orthonormal rows; the first points from harmless to harmful."""
    estimator: str
    harmful: Float[Tensor, "layer rank"] | None = None
    """Mean coordinates of the harmful anchors (mu+); None if the direction was not fitted."""
    harmless: Float[Tensor, "layer rank"] | None = None
    """Mean coordinates of the harmless anchors (mu-)."""
    centre: Float[Tensor, "layer d_model"] | None = None
    """h_ref: the midpoint of the class means, from which the `adaptive` rules measure; directions with a `readout` have
    the state in which that reads 0."""
    explained: Float[Tensor, "layer rank"] | None = None
    """Share of the anchors' variance that lies along each row."""
    token: str = "last"
    """Token position at which the anchors were read."""
    anchors: str = ""
    """Hash of the anchors' prompts."""
    readout: Float[Tensor, "layer rank d_model"] | None = None
    """W of the rules `linear` and `drift`: rows that read something in a state relative to `centre`."""

    @classmethod
    def fit(
        cls,
        activations: xr.Dataset,
        estimator: str = "paired_svd",
        rank: int = 1,
        token: str = "last",
        apart_from: Collection[str] = (),
    ) -> "SafetyDirection":
        """Fit a direction on traced anchors, text only.

        Args:
            activations: `interp.trace` of the anchors.
            estimator: one of `ESTIMATORS`.
            rank: number of rows of the basis; `mean_diff`, `lda` and `logistic` allow 1 only.
            token: `last` (nearer refusal), or `instruction` (nearer harmfulness).
            apart_from: texts of the test split, none of which may be an anchor.

        Raises:
            ValueError: the estimator or token does not exist, or the estimator does not support this rank.
            AnchorError: a class has no anchors, anchors are unpaired for `paired_svd`, there are fewer of them than
                the rank, states are not finite, or anchors are in the test split.
        """
        _check(activations, estimator, rank, token, apart_from)
        harmful, harmless = _by_class(activations, token)
        method = ESTIMATORS[estimator]
        classes = _aligned_by_pair(activations, token) if method.needs_pairs else (harmful, harmless)
        basis = orient(method(*classes, rank), harmful, harmless)
        statistics = _statistics(basis, harmful, harmless)
        return cls(basis.float(), estimator, **statistics, token=token, anchors=_hash_of(activations))

    @classmethod
    def from_basis(
        cls,
        activations: xr.Dataset,
        basis: Float[Tensor, "layer rank d_model"] | Float[Tensor, "rank d_model"],
        estimator: str = "loaded",
        token: str = "last",
    ) -> "SafetyDirection":
        """Return a direction along vectors that were found elsewhere, such as a refusal cone, described on anchors.

        Args:
            activations: `interp.trace` of the anchors, text only: they decide the signs and give the class means.
            basis: vectors of any length, which are made orthonormal from the first on; without layers, the same at all.
            estimator: where they come from, for tables and cards.
            token: token position at which the anchors are read.

        Raises:
            ValueError: the vectors are not those of this model, or depend on each other.
            AnchorError: see `fit`.
        """
        n_layers, d_model = (activations.sizes[name] for name in ("layer", "d_model"))
        own = basis.double().expand(n_layers, -1, -1) if basis.dim() == 2 else basis.double()
        if own.dim() != 3 or (own.shape[0], own.shape[2]) != (n_layers, d_model):
            raise ValueError(
                f"a basis of shape {tuple(basis.shape)}; expected (rank, {d_model}), or ({n_layers}, rank, {d_model}) "
                "with vectors for each layer"
            )
        if not own.isfinite().all() or (torch.linalg.matrix_rank(own) < own.shape[1]).any():
            raise ValueError(f"the {own.shape[1]} vectors of a basis depend on each other, or are not finite")
        _check(activations, "mean_diff", 1, token, ())
        harmful, harmless = _by_class(activations, token)
        rows = rearrange(torch.linalg.qr(own.mT).Q, "layer d_model rank -> layer rank d_model")
        oriented = orient(rows, harmful, harmless)
        statistics = _statistics(oriented, harmful, harmless)
        return cls(oriented.float(), estimator, **statistics, token=token, anchors=_hash_of(activations))

    def check_usable(self, layer: int) -> None:
        """Check that states can be projected at a layer.

        Raises:
            ValueError: rows of the basis are neither orthonormal nor zero, or numbers are not finite.
        """
        basis = self.basis[layer].double()
        described = [tensor[layer] for name, tensor in self.tensors.items() if name != "basis"]
        if not all(bool(numbers.isfinite().all()) for numbers in (basis, *described)):
            raise ValueError(
                f"the direction has no numbers at layer {layer}, which happens where all anchors have the same state; "
                "use another layer"
            )
        gram, is_row = basis @ basis.T, basis.any(-1)
        if not is_row.any():
            raise ValueError(f"the direction is zero at layer {layer}, so it would change nothing; use another layer")
        if not torch.allclose(gram, torch.diag(is_row.double()), atol=NEARLY):
            raise ValueError(
                f"the rows of the direction at layer {layer} are not orthonormal (lengths "
                f"{[round(length, 3) for length in gram.diag().sqrt().tolist()]}); divide them by their lengths"
            )

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Fields that are tensors, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, target: torch.device | torch.dtype | str) -> "SafetyDirection":
        """Return the direction with every tensor on another device, or in another dtype."""
        return replace(self, **{name: tensor.to(target) for name, tensor in self.tensors.items()})

    def midpoint(self, layer: int) -> float:
        """Return the midpoint of the class means on the first row: a border for the gate `threshold`."""
        return ((self.harmful[layer, 0] + self.harmless[layer, 0]) / 2).item()

    _repr_html_ = display.html


def _hash_of(anchors: xr.Dataset) -> str:
    return hashlib.sha256("".join(sorted(anchors.prompt_hash.values)).encode()).hexdigest()[:16]


def _statistics(
    basis: Float[Tensor, "layer rank d_model"],
    harmful: Float[Tensor, "harmful layer d_model"],
    harmless: Float[Tensor, "harmless layer d_model"],
) -> dict[str, Tensor]:
    """Return the fields of `SafetyDirection` that describe the anchors along a basis."""
    means = [states.double().mean(0) for states in (harmful, harmless)]
    states = torch.cat([harmful, harmless]).double()
    deviations = states - states.mean(0)
    explained = coordinates(deviations, basis).square().sum(0) / deviations.square().sum((0, 2))[:, None]
    return {
        "harmful": coordinates(means[0], basis).float(),
        "harmless": coordinates(means[1], basis).float(),
        "centre": ((means[0] + means[1]) / 2).float(),
        "explained": explained.float(),
    }


def fit_gate(activations: xr.Dataset, layer: int, token: str = "last") -> ProbeGate:
    """Fit a logistic regression (L2, C = 1, standardised) on the anchors' states at a layer, as a gate.

    Raises:
        ValueError: see `SafetyDirection.fit`.
    """
    _check(activations, "logistic", 1, token, ())
    harmful, harmless = (states[:, layer].double().numpy() for states in _by_class(activations, token))
    states = np.concatenate([harmful, harmless])
    scaler = StandardScaler().fit(states)
    labels = np.arange(len(states)) < len(harmful)
    probe = LogisticRegression(max_iter=1000).fit(scaler.transform(states), labels)
    # w . (h - mean) / scale + b, with the standardisation moved into weight and bias.
    weight = probe.coef_[0] / scaler.scale_
    return ProbeGate(torch.from_numpy(weight).float(), float(probe.intercept_[0] - weight @ scaler.mean_))


def alignment(
    first: Float[Tensor, "layer rank d_model"], second: Float[Tensor, "layer rank d_model"]
) -> Float[Tensor, " layer"]:
    """Return the mean cosine of the principal angles between two subspaces per layer; 1 if they are the same.

    For rank 1 it has the sign of the cosine, since directions are oriented.
    """
    if first.shape[1] == second.shape[1] == 1:
        return einsum(first.double(), second.double(), "layer r d_model, layer r d_model -> layer").float()
    overlap = einsum(first.double(), second.double(), "layer r d_model, layer s d_model -> layer r s")
    return torch.linalg.svdvals(overlap).mean(-1).float()


def stability(
    activations: xr.Dataset,
    estimator: str = "paired_svd",
    rank: int = 1,
    token: str = "last",
    n_draws: int = 20,
    seed: int = 0,
) -> Float[Tensor, " layer"]:
    """Return the mean `alignment` of fits on bootstrap draws with the fit on all anchors.

    Args:
        activations: see `SafetyDirection.fit`, like `estimator`, `rank` and `token`.
        estimator: one of `ESTIMATORS`.
        rank: number of rows of the basis.
        token: token position at which the anchors are read.
        n_draws: number of bootstrap draws; pairs are drawn whole.
        seed: seed of the draws.
    """
    whole = SafetyDirection.fit(activations, estimator, rank, token).basis
    rng, alignments = np.random.default_rng(seed), []
    while len(alignments) < n_draws:
        drawn = _draw(activations, rng)
        # Of a few unpaired anchors, a draw may hold one class only.
        if drawn.harmful.values.all() or not drawn.harmful.values.any():
            continue
        alignments.append(alignment(SafetyDirection.fit(drawn, estimator, rank, token).basis, whole))
    return torch.stack(alignments).mean(0)


def _draw(activations: xr.Dataset, rng: np.random.Generator) -> xr.Dataset:
    """Draw groups with replacement, as many as there are; a group is a pair or a single prompt."""
    pairs = activations.pair.values
    groups = [np.flatnonzero(pairs == pair) for pair in dict.fromkeys(pairs) if pair]
    groups += [np.array([i]) for i in np.flatnonzero(pairs == "")]
    chosen = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
    drawn = activations.isel(prompt=np.concatenate(chosen))
    # A pair that is drawn twice becomes two pairs.
    names = [f"{pairs[rows[0]]} {i}" if pairs[rows[0]] else "" for i, rows in enumerate(chosen) for _ in rows]
    return drawn.assign_coords(pair=("prompt", np.array(names, dtype=object)))


def _check(activations: xr.Dataset, estimator: str, rank: int, token: str, apart_from: Collection[str]) -> None:
    """Check the arguments of `SafetyDirection.fit`.

    Raises:
        AnchorError, ValueError: see `SafetyDirection.fit`.
    """
    single = [name for name, method in ESTIMATORS.items() if not method.any_rank]
    if estimator not in ESTIMATORS or rank < 1 or (rank > 1 and estimator in single):
        raise ValueError(
            f"estimator {estimator!r} of rank {rank}; expected one of {', '.join(ESTIMATORS)}, and rank 1 for "
            f"{', '.join(single)}"
        )
    if token not in activations.token.values.tolist():
        raise ValueError(f"token {token!r} was not traced; these were: {', '.join(map(str, activations.token.values))}")
    leaked = sorted(set(activations.text.values) & set(apart_from))
    if leaked:
        raise AnchorError(
            f"{len(leaked)} anchors are in the test split: {', '.join(map(repr, leaked[:MAX_NAMED]))}"
            f"{', ...' if len(leaked) > MAX_NAMED else ''}; a direction that is tested on its own anchors proves "
            "nothing: remove them from one of the two"
        )
    # Only this token matters: another may be NaN, for instance where a prompt has no picture.
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
    """Return the states of harmful and of harmless anchors."""
    is_harmful = activations.harmful.values
    if is_harmful.all() or not is_harmful.any():
        raise AnchorError(
            f"a direction needs anchors of both classes; got {is_harmful.sum()} harmful, {(~is_harmful).sum()} harmless"
        )
    return _states(activations, is_harmful, token), _states(activations, ~is_harmful, token)


def _aligned_by_pair(activations: xr.Dataset, token: str) -> tuple[Tensor, Tensor]:
    """Return the states of harmful and of harmless anchors, row by row the partners of one pair."""
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
