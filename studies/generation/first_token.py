"""First-token metrics: how close the model is to refusing, and how far a guard moves it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batches import batches
from interp.guard_batches import Score
from interp.inputs import Prompt, collate
from interp.vlm import LLM, VLM
from studies.generation.generate import Generation


@torch.no_grad()
def first_token_logprobs(vlm: VLM | LLM, prompts: Sequence[Prompt], how: Generation) -> Float[Tensor, "prompt d_vocab"]:
    """Log-probabilities of the first answer token, in the order of the prompts."""
    logprobs: dict[int, Tensor] = {}
    for rows in batches(prompts, how.batch_size):
        batch = collate(vlm, [prompts[i] for i in rows])
        logits = vlm.model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
        logprobs.update(zip(rows, logits.float().log_softmax(-1).cpu(), strict=True))
    return torch.stack([logprobs[i] for i in range(len(prompts))])


def refusal_scores(
    logprobs: Float[Tensor, "*prompt d_vocab"], tokens: Int[Tensor, " token"]
) -> Float[Tensor, "*prompt"]:
    """`refusal_score`: log-odds of the refusal openings against the rest at the first answer token, in nats.

    After Arditi et al. (arXiv:2406.11717), section 2.3.
    """
    rest = torch.ones(logprobs.shape[-1], dtype=torch.bool)
    rest[tokens] = False
    return logprobs[..., tokens].logsumexp(-1) - logprobs[..., rest].logsumexp(-1)


def kl_divergence(
    unguarded: Float[Tensor, "*#prompt d_vocab"], guarded: Float[Tensor, "*prompt d_vocab"]
) -> Float[Tensor, "*prompt"]:
    """KL(unguarded || guarded) at the first answer token, in nats."""
    return (unguarded.exp() * (unguarded - guarded)).sum(-1)


def first_token_scores(tokens: Int[Tensor, " token"]) -> dict[str, Score]:
    """What `interp.run_rows` is asked for: `refusal_score`, and `kl` from the unguarded model."""
    return {
        "refusal_score": lambda logprobs, unguarded: refusal_scores(logprobs, tokens),
        "kl": lambda logprobs, unguarded: kl_divergence(unguarded[:, None], logprobs),
    }
