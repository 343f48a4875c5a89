"""Activation patching from text runs into picture runs: at which layer and token the safety signal is lost.

The causal counterpart of a probe (Vig et al. 2020; Meng et al., arXiv:2202.05262): the states of the text run, put in
place of those of the picture run, and what the model then says.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.batches import in_batches
from interp.inputs import Prompt, collate
from interp.labels import labels
from interp.token_positions import instruction_positions
from interp.tracing.forward import resid_post
from interp.vlm import VLM

ROLES = ("request", "instruction", "template", "last", "all")
"""Tokens after the picture: of the request but its last; its last; after it but the last; the last; all of these.

What stands before the picture is the same in both runs, and has nothing to give."""

PatchScore = Callable[[Float[Tensor, "batch d_vocab"]], Float[Tensor, " batch"]]


@dataclass(frozen=True)
class _Alignment:
    """Tokens that a picture prompt shares with its donor, by position in each left-padded row."""

    here: Int[Tensor, "batch shared"]
    donor: Int[Tensor, "batch shared"]
    roles: Mapping[str, Bool[Tensor, "batch shared"]]
    """Which of them play the role. Rows that share fewer tokens have places here that play none."""

    @classmethod
    def of(cls, vlm: VLM, prompts: Sequence[Prompt], batch: Mapping[str, Tensor], donors: Mapping[str, Tensor]):
        """Prompt and donor are the same from some token after the picture on: matched from the end."""
        ends = instruction_positions(vlm, prompts, batch["input_ids"].cpu()).tolist()
        pairs = zip(_tokens(batch), _tokens(donors), strict=True)
        n_shared = torch.tensor([_n_shared(reversed(ours), reversed(theirs)) for ours, theirs in pairs])
        back = torch.arange(-int(n_shared.max()), 0).expand(len(prompts), -1)
        here, donor = (back + inputs["input_ids"].shape[1] for inputs in (batch, donors))
        is_shared, to_end = back >= -n_shared[:, None], here - torch.tensor(ends)[:, None]
        roles = {
            "request": is_shared & (to_end < 0),
            "instruction": is_shared & (to_end == 0),
            "template": is_shared & (to_end > 0) & (back < -1),
            "last": is_shared & (back == -1),
            "all": is_shared,
        }
        return cls(here, donor, roles)


def _tokens(batch: Mapping[str, Tensor]) -> list[list[int]]:
    """Of each row, without its padding."""
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


def _n_shared(ours: Iterable[int], theirs: Iterable[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))


def patch(
    vlm: VLM,
    prompts: Sequence[Prompt],
    score: PatchScore,
    donors: Sequence[Prompt] | None = None,
    layers: Sequence[int] | None = None,
    roles: Sequence[str] = ROLES,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda n_prompts: None,
) -> xr.Dataset:
    """Puts the states of a text run into a picture run, one layer and one token role at a time.

    Tokens are matched from the end of the prompt, so the donor may be any prompt that ends alike: a typographic prompt
    and its request as text share the template's end.

    Args:
        vlm: left as it is.
        prompts: with pictures; what is patched into.
        score: from the next token's log-probabilities to a number, e.g. the log-odds of refusal openings.
        donors: one for each prompt; by default the same prompt without its pictures.
        layers: whose `resid_post` is patched; by default every one.
        roles: of `ROLES`.
        batch_size: prompts in one forward pass; each batch takes `len(layers) * len(roles)` passes.
        advance: called with the number of prompts done after each batch.

    Returns:
        `patched` (`prompt layer role`; NaN where prompt and donor share no such token), `unpatched` and `donor`
        (`prompt`), all in units of the score, which `recovered` averages; `n_tokens` (`prompt role`), how many were
        patched: words that merge into other tokens behind a picture are not shared.

    Raises:
        ValueError: a prompt without picture, no such role or layer, or not one donor for each prompt.
    """
    layers = list(range(vlm.n_layers)) if layers is None else list(layers)
    donors = [replace(prompt, pictures=()) for prompt in prompts] if donors is None else list(donors)
    _check(vlm, prompts, donors, layers, roles)

    def run(rows: list[int]) -> dict[str, np.ndarray]:
        return _patch(vlm, [prompts[i] for i in rows], [donors[i] for i in rows], score, layers, roles)

    found = in_batches(prompts, batch_size, run, advance)
    dims = {"patched": ("prompt", "layer", "role"), "n_tokens": ("prompt", "role")}
    return xr.Dataset(
        {name: (dims.get(name, ("prompt",)), values) for name, values in found.items()},
        coords={"layer": layers, "role": list(roles)} | labels(prompts),
    )


def _check(vlm: VLM, prompts: Sequence[Prompt], donors: Sequence, layers: Sequence[int], roles: Sequence[str]) -> None:
    """Raises:
    ValueError: see `patch`.
    """
    bare = sum(not prompt.pictures for prompt in prompts)
    if bare:
        raise ValueError(f"{bare} of {len(prompts)} prompts have no picture; expected runs with pictures to patch into")
    if len(donors) != len(prompts):
        raise ValueError(f"{len(donors)} donors for {len(prompts)} prompts; expected one each")
    strange = [role for role in roles if role not in ROLES]
    if strange:
        raise ValueError(f"role {strange[0]!r} does not exist; expected some of {', '.join(ROLES)}")
    if not all(0 <= layer < vlm.n_layers for layer in layers):
        raise ValueError(f"layers {layers}; expected each from 0 to {vlm.n_layers - 1}")


@torch.no_grad()
def _patch(
    vlm: VLM, prompts: list[Prompt], donors: list[Prompt], score: PatchScore, layers: list[int], roles: Sequence[str]
) -> dict[str, np.ndarray]:
    batch, given = collate(vlm, prompts), collate(vlm, donors)
    shared = _Alignment.of(vlm, prompts, batch, given)
    states = resid_post(vlm, given, shared.donor)
    says = lambda inputs: score(_next_token(vlm, inputs)).double().numpy()  # noqa: E731
    patched = np.full((len(prompts), len(layers), len(roles)), np.nan)
    for i, layer in enumerate(layers):
        for j, role in enumerate(roles):
            plays = shared.roles[role]
            if not plays.any():
                continue
            with _replaced(vlm.blocks[layer], shared.here, plays, states[:, layer]):
                patched[:, i, j] = np.where(plays.any(1), says(batch), np.nan)
    n_tokens = torch.stack([shared.roles[role].sum(1) for role in roles], dim=1).numpy()
    return {"patched": patched, "unpatched": says(batch), "donor": says(given), "n_tokens": n_tokens}


def _next_token(vlm: VLM, batch: Mapping[str, Tensor]) -> Float[Tensor, "batch d_vocab"]:
    return vlm.model(**batch, use_cache=False).logits[:, -1].float().log_softmax(-1).cpu()


@contextmanager
def _replaced(
    block: nn.Module,
    places: Int[Tensor, "batch shared"],
    chosen: Bool[Tensor, "batch shared"],
    states: Float[Tensor, "batch shared d_model"],
) -> Iterator[None]:
    """Puts the chosen states at their places in what the block puts out."""
    rows, columns = chosen.nonzero(as_tuple=True)
    spots, values = places[rows, columns], states[rows, columns]

    def put(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        resid = (output[0] if isinstance(output, tuple) else output).clone()
        resid[rows.to(resid.device), spots.to(resid.device)] = values.to(resid)
        return (resid, *output[1:]) if isinstance(output, tuple) else resid

    hook = block.register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


def recovered(patching: xr.Dataset) -> xr.DataArray:
    """Share of what the picture changed that the patch brings back: 0 the picture run, 1 the text run.

    A ratio of means, so that prompts which the picture hardly moves do not weigh most.

    Args:
        patching: of `patch`, of one modality and class.

    Returns:
        Dimensions `layer role`; NaN where no prompt has such a token.
    """
    known = patching.patched.notnull()
    moved = (patching.patched - patching.unpatched).sum("prompt")
    lost = (patching.donor - patching.unpatched).where(known).sum("prompt")
    return (moved / lost).where(known.any("prompt"))
