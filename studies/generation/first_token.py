"""First-token metrics: how close the model is to refusing, and how far a guard moves it."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from interp import LLM, VLM, ForcedScore, GuardScore, Prompt, collate, logprobs_after
from interp.batches import batches, in_halves
from studies.generation.generate import Generation
from studies.generation.openings import RefusalOpenings


@torch.no_grad()
def first_token_logprobs(
    vlm: VLM | LLM, prompts: Sequence[Prompt], generation: Generation, forced: Sequence[int] = ()
) -> Float[Tensor, "prompt d_vocab"]:
    """Compute the log-probabilities of the first answer token, in the order of the prompts.

    Args:
        vlm: the model.
        prompts: any mixture of modalities.
        generation: its batch size counts.
        forced: tokens that the answer begins with; then the log-probabilities are those of the token after them.
    """
    logprobs: dict[int, Tensor] = {}

    def score(indices: list[int]) -> Float[Tensor, "row d_vocab"]:
        return logprobs_after(vlm, collate(vlm, [prompts[i] for i in indices]), forced).cpu()

    for indices, rows in in_halves(batches(prompts, generation.batch_size), score):
        logprobs.update(zip(indices, rows, strict=True))
    return torch.stack([logprobs[i] for i in range(len(prompts))])


def refusal_scores(
    logprobs: Float[Tensor, "*prompt d_vocab"],
    openings: RefusalOpenings,
    after: Mapping[int, Float[Tensor, "*prompt d_vocab"]] | None = None,
) -> Float[Tensor, "*prompt"]:
    """Compute the `refusal_score`: log-odds of the refusal openings against everything else, in nats.

    After Arditi et al. (arXiv:2406.11717), section 2.3, whose openings are single tokens. The probability of a
    two-token opening is that of its first token times that of its second one after it.

    Args:
        logprobs: log-probabilities of the first answer token.
        openings: what counts as a refusal.
        after: log-probabilities of the second token, by the first token of each two-token opening.

    Raises:
        ValueError: there is a two-token opening, and nothing on what follows its first token.
    """
    missing = [token for token in openings.seconds if token not in (after or {})]
    if missing:
        raise ValueError(f"two-token openings begin with {missing}; expected the second token's log-probabilities too")
    inside = [logprobs[..., list(openings.single)]]
    inside += [logprobs[..., first, None] + after[first][..., seconds] for first, seconds in openings.seconds.items()]
    refusal = torch.cat(inside, dim=-1).logsumexp(-1)
    # Everything else is 1 - p, unless that loses digits: then its parts are summed, which is slow for many words.
    others = torch.log1p(-refusal.exp().clamp(max=0.5))
    if (is_likely := refusal > LIKELY).any():
        behind = {first: values[is_likely] for first, values in (after or {}).items()}
        others[is_likely] = _mass_of_others(logprobs[is_likely], openings, behind)
    return refusal - others


LIKELY = math.log(0.5)
"""Log-probability of a refusal above which that of everything else is summed part by part."""


def _mass_of_others(
    logprobs: Float[Tensor, "prompt d_vocab"],
    openings: RefusalOpenings,
    after: Mapping[int, Float[Tensor, "prompt d_vocab"]],
) -> Float[Tensor, " prompt"]:
    """Compute the log-probability of all beginnings that are not refusal openings; see `refusal_scores`."""
    parts = [_without(logprobs, [*openings.single, *openings.seconds])]
    parts += [logprobs[:, first] + _without(after[first], seconds) for first, seconds in openings.seconds.items()]
    return torch.stack(parts).logsumexp(0)


def _without(logprobs: Float[Tensor, "prompt d_vocab"], tokens: Sequence[int]) -> Float[Tensor, " prompt"]:
    """Compute the log-probability of all tokens but these."""
    others = logprobs.clone()
    others[:, list(tokens)] = -torch.inf
    return others.logsumexp(-1)


def kl_divergence(
    unguarded: Float[Tensor, "*#prompt d_vocab"], guarded: Float[Tensor, "*prompt d_vocab"]
) -> Float[Tensor, "*prompt"]:
    """Compute KL(unguarded || guarded) at the first answer token, in nats."""
    return (unguarded - guarded).mul_(unguarded.exp()).sum(-1)


def first_token_refusal(
    vlm: VLM | LLM,
    prompts: Sequence[Prompt],
    generation: Generation,
    openings: RefusalOpenings,
    logprobs: Float[Tensor, "prompt d_vocab"] | None = None,
) -> tuple[Float[Tensor, "prompt d_vocab"], Float[Tensor, " prompt"]]:
    """Compute the log-probabilities of the first answer token, and the refusal scores.

    Args:
        vlm: the model.
        prompts: any mixture of modalities.
        generation: its batch size counts.
        openings: what counts as a refusal; two-token openings take one more pass for each of their first tokens.
        logprobs: those of the first answer token, if they are known already.
    """
    if logprobs is None:
        logprobs = first_token_logprobs(vlm, prompts, generation)
    after = {token: first_token_logprobs(vlm, prompts, generation, (token,)) for token in openings.seconds}
    return logprobs, refusal_scores(logprobs, openings, after)


def opening_score(openings: RefusalOpenings) -> ForcedScore:
    """Return the `refusal_score` as `interp.run_guards` and `interp.patch` take it.

    Only two-token openings cost passes: one for each of their first tokens.
    """
    return ForcedScore(tuple(openings.seconds), partial(_score, openings))


def _score(openings: RefusalOpenings, logprobs: Tensor, after: Mapping[int, Tensor]) -> Tensor:
    return refusal_scores(logprobs, openings, after)


def first_token_scores(openings: RefusalOpenings) -> dict[str, GuardScore]:
    """Return the scores for `interp.run_guards`: `refusal_score`, and `kl` from the unguarded model."""
    return {
        "refusal_score": opening_score(openings),
        "kl": lambda logprobs, unguarded: kl_divergence(unguarded[:, None], logprobs),
    }
