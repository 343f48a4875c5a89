"""Activation patching from text runs into picture runs, to locate where the safety signal is lost.

The causal counterpart of a probe (Vig et al. 2020; Meng et al., arXiv:2202.05262): states of the text run replace those
of the picture run at one layer and token, and the effect on the model's output is measured.
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
from interp.errors import ModelError
from interp.evaluation_mode import evaluation_mode
from interp.forced import ForcedScore, logprobs_after
from interp.inputs import Prompt, collate
from interp.labels import labels
from interp.pass_ledger import CAUSES
from interp.token_positions import instruction_positions
from interp.tracing.forward import resid_post
from interp.vlm import VLM

ROLES = ("request", "instruction", "template", "last", "all")
"""Roles of the tokens after the picture: the request without its last token; its last token; the template after it,
without the last token; the last token; all of these. Tokens before the picture are the same in both runs."""

PatchScore = Callable[[Float[Tensor, "batch d_vocab"]], Float[Tensor, " batch"]] | ForcedScore
"""Function from the next token's log-probabilities to a number per prompt; a `ForcedScore` sees the second token's
too."""


@dataclass(frozen=True)
class _Alignment:
    """Tokens that picture prompts share with their donors, by position in each left-padded row."""

    here: Int[Tensor, "batch shared"]
    donor: Int[Tensor, "batch shared"]
    roles: Mapping[str, Bool[Tensor, "batch shared"]]
    """Mask of the tokens in each role. Rows that share fewer tokens than others have no role in the surplus columns."""

    @classmethod
    def of(cls, vlm: VLM, prompts: Sequence[Prompt], batch: Mapping[str, Tensor], donors: Mapping[str, Tensor]):
        """Match each prompt with its donor from the end, up to the first token that differs."""
        ends = instruction_positions(vlm, prompts, batch["input_ids"].cpu()).tolist()
        pairs = zip(_tokens(batch), _tokens(donors), strict=True)
        n_shared = torch.tensor([_n_shared(reversed(ours), reversed(theirs)) for ours, theirs in pairs])
        back = torch.arange(-int(n_shared.max()), 0).expand(len(prompts), -1)
        # Columns count from the end of the prompt. `here` and `donor` are the positions of the same tokens in two
        # batches of different length.
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
    """Return the token ids of each row without padding."""
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
    """Patch states of a text run into a picture run, one layer and one token role at a time.

    Tokens are matched from the end of the prompt, so the donor may be any prompt with the same ending: a typographic
    prompt and its request as text share the end of the template.

    Args:
        vlm: the model, which is not changed.
        prompts: prompts with pictures, which are patched into.
        score: function from the next token's log-probabilities to a number, e.g. the log-odds of refusal openings; a
            `ForcedScore` takes one more pass per forced token.
        donors: one donor per prompt; by default the same prompt without its pictures.
        layers: layers whose `resid_post` is patched; by default all.
        roles: some of `ROLES`.
        batch_size: prompts in one forward pass; each batch takes `len(layers) * len(roles)` passes.
        advance: called after each batch with the number of prompts done.

    Returns:
        `patched` (`prompt layer role`; NaN where prompt and donor share no such token), `unpatched` and `donor`
        (`prompt`), all in units of the score, which `recovered` averages; `n_tokens` (`prompt role`), the number of
        patched tokens. A word that is tokenised differently after a picture is not shared.

    Raises:
        ValueError: a prompt without picture, an unknown role or layer, or not exactly one donor per prompt.
    """
    layers = list(range(vlm.n_layers)) if layers is None else list(layers)
    donors = [replace(prompt, pictures=()) for prompt in prompts] if donors is None else list(donors)
    _check(vlm, prompts, donors, layers, roles)

    def run(rows: list[int]) -> dict[str, np.ndarray]:
        return _patch(vlm, [prompts[i] for i in rows], [donors[i] for i in rows], score, layers, roles)

    with evaluation_mode(vlm.model):
        scores = in_batches(prompts, batch_size, run, advance)
    dims = {"patched": ("prompt", "layer", "role"), "n_tokens": ("prompt", "role")}
    return xr.Dataset(
        {name: (dims.get(name, ("prompt",)), values) for name, values in scores.items()},
        coords={"layer": layers, "role": list(roles)} | labels(prompts),
    )


def _check(vlm: VLM, prompts: Sequence[Prompt], donors: Sequence, layers: Sequence[int], roles: Sequence[str]) -> None:
    """Check the input before anything runs.

    Raises:
        ValueError: see `patch`.
    """
    n_without = sum(not prompt.pictures for prompt in prompts)
    if n_without:
        raise ValueError(
            f"{n_without} of {len(prompts)} prompts have no picture; expected prompts with pictures to patch into"
        )
    if len(donors) != len(prompts):
        raise ValueError(f"{len(donors)} donors for {len(prompts)} prompts; expected one each")
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise ValueError(f"role {unknown[0]!r} does not exist; expected some of {', '.join(ROLES)}")
    if not all(0 <= layer < vlm.n_layers for layer in layers):
        raise ValueError(f"layers {layers}; expected each from 0 to {vlm.n_layers - 1}")


@torch.no_grad()
def _patch(
    vlm: VLM, prompts: list[Prompt], donors: list[Prompt], score: PatchScore, layers: list[int], roles: Sequence[str]
) -> dict[str, np.ndarray]:
    batch, donor_batch = collate(vlm, prompts), collate(vlm, donors)
    shared = _Alignment.of(vlm, prompts, batch, donor_batch)
    states = resid_post(vlm, donor_batch, shared.donor)

    def score_of(inputs: Mapping[str, Tensor]) -> Float[np.ndarray, " batch"]:
        return _score(vlm, inputs, score).double().numpy()

    patched = np.full((len(prompts), len(layers), len(roles)), np.nan)
    for i, layer in enumerate(layers):
        for j, role in enumerate(roles):
            is_role = shared.roles[role]
            if not is_role.any():
                continue
            with replaced(vlm.blocks[layer], shared.here, is_role, states[:, layer]):
                patched[:, i, j] = np.where(is_role.any(1), score_of(batch), np.nan)
    n_tokens = torch.stack([shared.roles[role].sum(1) for role in roles], dim=1).numpy()
    return {"patched": patched, "unpatched": score_of(batch), "donor": score_of(donor_batch), "n_tokens": n_tokens}


def _score(vlm: VLM, batch: Mapping[str, Tensor], score: PatchScore) -> Float[Tensor, " batch"]:
    logprobs = vlm.model(**batch, use_cache=False).logits[:, -1].float().log_softmax(-1).cpu()
    if not isinstance(score, ForcedScore):
        return score(logprobs)
    return score(logprobs, {token: logprobs_after(vlm, batch, (token,)).cpu() for token in score.tokens})


@contextmanager
def replaced(
    block: nn.Module,
    positions: Int[Tensor, "batch shared"],
    is_replaced: Bool[Tensor, "batch shared"],
    states: Float[Tensor, "batch shared d_model"],
) -> Iterator[None]:
    """Replace some states in the block's output while the context is open.

    Args:
        block: a decoder block.
        positions: positions in each row of the batch.
        is_replaced: which of them are replaced.
        states: what they are replaced by.

    Raises:
        ModelError: the block did not run through its hooks.
    """
    rows, columns = is_replaced.nonzero(as_tuple=True)
    targets, values = positions[rows, columns], states[rows, columns]
    n_pos, n_replaced = int(positions.max()) + 1, 0

    def replace_states(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        nonlocal n_replaced
        resid = output[0] if isinstance(output, tuple) else output
        if resid.shape[1] < n_pos:
            # An answer's token, which continues the cache of a prompt that was patched.
            return output
        resid, n_replaced = resid.clone(), n_replaced + 1
        resid[rows.to(resid.device), targets.to(resid.device)] = values.to(resid)
        return (resid, *output[1:]) if isinstance(output, tuple) else resid

    hook = block.register_forward_hook(replace_states)
    try:
        yield
        if not n_replaced:
            raise ModelError(f"states of a block were not replaced, because it did not run: {CAUSES}")
    finally:
        hook.remove()


def recovered(patching: xr.Dataset) -> xr.DataArray:
    """Return the share of the picture's effect that the patch undoes: 0 is the picture run, 1 the text run.

    It is a ratio of means, so that prompts which the picture hardly affects don't dominate.

    Args:
        patching: result of `patch` for prompts of one modality and class.

    Returns:
        Shares, dimensions `layer role`; NaN where no prompt has such a token.
    """
    is_patched = patching.patched.notnull()
    moved = (patching.patched - patching.unpatched).sum("prompt")
    lost = (patching.donor - patching.unpatched).where(is_patched).sum("prompt")
    return (moved / lost).where(is_patched.any("prompt"))
