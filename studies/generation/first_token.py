"""First-token metrics: how close the model is to refusing, and how far a guard moves it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import LLM, VLM, GuardScore, Prompt, collate
from interp.batches import batches
from studies.generation.generate import Generation


@torch.no_grad()
def first_token_logprobs(
    vlm: VLM | LLM, prompts: Sequence[Prompt], generation: Generation
) -> Float[Tensor, "prompt d_vocab"]:
    """Compute the log-probabilities of the first answer token, in the order of the prompts."""
    logprobs: dict[int, Tensor] = {}
    for indices in batches(prompts, generation.batch_size):
        batch = collate(vlm, [prompts[i] for i in indices])
        logits = vlm.model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
        logprobs.update(zip(indices, logits.float().log_softmax(-1).cpu(), strict=True))
    return torch.stack([logprobs[i] for i in range(len(prompts))])


def refusal_scores(
    logprobs: Float[Tensor, "*prompt d_vocab"], tokens: Int[Tensor, " token"]
) -> Float[Tensor, "*prompt"]:
    """Compute the `refusal_score`: log-odds of the refusal openings against all other first tokens, in nats.

    After Arditi et al. (arXiv:2406.11717), section 2.3.
    """
    is_other = torch.ones(logprobs.shape[-1], dtype=torch.bool)
    is_other[tokens] = False
    return logprobs[..., tokens].logsumexp(-1) - logprobs[..., is_other].logsumexp(-1)


def kl_divergence(
    unguarded: Float[Tensor, "*#prompt d_vocab"], guarded: Float[Tensor, "*prompt d_vocab"]
) -> Float[Tensor, "*prompt"]:
    """Compute KL(unguarded || guarded) at the first answer token, in nats."""
    return (unguarded.exp() * (unguarded - guarded)).sum(-1)


def first_token_scores(tokens: Int[Tensor, " token"]) -> dict[str, GuardScore]:
    """Return the scores for `interp.run_guards`: `refusal_score`, and `kl` from the unguarded model."""
    return {
        "refusal_score": lambda logprobs, unguarded: refusal_scores(logprobs, tokens),
        "kl": lambda logprobs, unguarded: kl_divergence(unguarded[:, None], logprobs),
    }
