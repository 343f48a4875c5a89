"""How far guards move a model, token by token: the KL along the unguarded answer, for many guards on one prefill."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batches import Advance, prompt_batches
from interp.evaluation_mode import evaluation_mode
from interp.forced import forced_beginning, log_probabilities, rows_at_a_time
from interp.guard import Guard
from interp.guard_attention import PrefilledPrompts, end_tokens, first_change, pad_token
from interp.guard_batches import (
    LOGIT_BYTES,
    GuardBatch,
    References,
    in_smaller_passes,
    prefilled_batches,
    states_per_guard,
)
from interp.inputs import Inputs, Prompt, collate
from interp.prefill_sharing import why_not_together
from interp.vlm import LLM, VLM

__all__ = ["answer_kl"]


@torch.no_grad()
def answer_kl(
    vlm: VLM | LLM,
    prompts: Sequence[Prompt],
    guards: Sequence[Guard],
    references: References = None,
    n_tokens: int = 8,
    batch_size: int = 16,
    advance: Advance = lambda n_runs: None,
) -> Float[Tensor, "guard prompt token"]:
    """Return KL(unguarded || guarded) in nats at each of the first tokens of every prompt's unguarded greedy answer.

    Every guard is fed the unguarded answer, so that all of them are compared on the same texts. Guards that can share a
    prefill do, as in `run_guards`.

    Args:
        vlm: left unchanged.
        prompts: any mixture of modalities.
        guards: what is compared with the unguarded model.
        references: see `run_guards`.
        n_tokens: most tokens of an answer that count.
        batch_size: prompts in one pass.
        advance: called with the number of prompts times guards finished since the last call.

    Returns:
        NaN behind the end of an answer; the token that ends it counts.

    Raises:
        ValueError: no prompts, or a guard needs references and has none.
    """
    states = states_per_guard(guards, references)
    batch = GuardBatch(vlm, prompts, guards, states, {}, n_tokens, batch_size, advance, [None] * len(guards))
    kl = torch.full((len(guards), len(prompts), n_tokens), torch.nan)
    is_alone = [why_not_together(vlm, guard, n_tokens) is not None for guard in guards]
    with evaluation_mode(vlm.model):
        for run, chosen in ((_together, False), (_separately, True)):
            if indices := [i for i, alone in enumerate(is_alone) if alone == chosen]:
                kl[indices] = in_smaller_passes(batch.subset(indices), run)
    return kl


def _together(batch: GuardBatch) -> Float[Tensor, "guard prompt token"]:
    """Run all guards on one prefill of each prompt."""
    kl = torch.full((len(batch.guards), len(batch.prompts), batch.max_new_tokens), torch.nan)
    # Guards that first change the same layer run together, as in `run_guards`.
    order = sorted(range(len(batch.guards)), key=lambda i: first_change(batch.guards[i], batch.vlm.n_layers))
    for rows, prefilled in prefilled_batches(batch):
        prefilled.run_unguarded(())
        plain, answers = _unguarded(prefilled, batch.max_new_tokens)
        counts, n_per_pass = _counts(batch.vlm, answers), batch.n_per_pass(len(rows))
        for start in range(0, len(order), n_per_pass):
            part = order[start : start + n_per_pass]
            states = [None if batch.references[i] is None else batch.references[i][rows] for i in part]
            fed = partial(_fed, answers.unsqueeze(-1).expand(-1, -1, len(part)))
            steps = prefilled.answer([batch.guards[i] for i in part], states, answers.shape[1], fed)
            for step, (logits, _) in enumerate(steps):
                values = _kl(plain[step], logits).masked_fill(~counts[:, step, None], torch.nan)
                kl[torch.tensor(part)[:, None], torch.tensor(rows), step] = values.T.cpu()
            batch.advance(len(rows) * len(part))
    return kl


def _fed(answers: Int[Tensor, "batch step guard"], logits: Tensor, step: int) -> Int[Tensor, "batch guard"]:
    """Return the unguarded answers' tokens, whatever is likelier under a guard."""
    return answers[:, step]


def _unguarded(
    prefilled: PrefilledPrompts, n_tokens: int
) -> tuple[list[Float[Tensor, "batch d_vocab"]], Int[Tensor, "batch step"]]:
    """Return the log-probabilities at each token of the unguarded answers, and the answers."""
    logprobs, tokens = [], []
    for logits, likeliest in prefilled.answer([None], [None], n_tokens):
        logprobs.append(log_probabilities(logits[:, 0]))
        tokens.append(likeliest[:, 0])
    return logprobs, torch.stack(tokens, dim=1)


def _separately(batch: GuardBatch) -> Float[Tensor, "guard prompt token"]:
    """Run one guard at a time, with a prefill of every prompt for each."""
    kl = torch.full((len(batch.guards), len(batch.prompts), batch.max_new_tokens), torch.nan)
    for rows, _ in prompt_batches(batch.prompts, batch.batch_size):
        inputs = collate(batch.vlm, [batch.prompts[i] for i in rows])
        generate = partial(_generated, batch.vlm, inputs, batch.max_new_tokens)
        # First the unguarded answer, then the same tokens under each guard.
        plain, answers = generate()
        counts = _counts(batch.vlm, answers)
        for i, (guard, states) in enumerate(zip(batch.guards, batch.references, strict=True)):
            with guard.on(batch.vlm, None if states is None else states[rows]):
                guarded, _ = generate(answers)
            for step, (before, after) in enumerate(zip(plain, guarded, strict=True)):
                values = _kl(log_probabilities(before), after[:, None])[:, 0]
                kl[i, rows, step] = values.masked_fill(~counts[:, step], torch.nan).cpu()
            batch.advance(len(rows))
    return kl


def _generated(
    vlm: VLM | LLM, inputs: Inputs, n_tokens: int, forced: Int[Tensor, "batch step"] | None = None
) -> tuple[Sequence[Float[Tensor, "batch d_vocab"]], Int[Tensor, "batch step"]]:
    """Return the logits at each token of greedy or forced answers, and the answers."""
    output = vlm.model.generate(
        **inputs,
        max_new_tokens=n_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad_token(vlm),
        logits_processor=forced_beginning(() if forced is None else forced),
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.logits, output.sequences[:, -len(output.logits) :]


def _counts(vlm: VLM | LLM, answers: Int[Tensor, "batch step"]) -> Tensor:
    """Mark the tokens up to the end of each answer, `batch step`."""
    is_end = torch.isin(answers, end_tokens(vlm).to(answers.device))
    return (is_end.cumsum(1) - is_end.long()) == 0


def _kl(
    unguarded: Float[Tensor, "batch d_vocab"], logits: Float[Tensor, "batch guard d_vocab"]
) -> Float[Tensor, "batch guard"]:
    """Return KL(unguarded || guarded) in float32, some guards at a time."""
    n_columns = max(1, rows_at_a_time(logits, LOGIT_BYTES) // len(logits))
    weights = unguarded.exp()[:, None]
    parts = [
        ((unguarded[:, None] - log_probabilities(part)) * weights).sum(-1) for part in logits.split(n_columns, dim=1)
    ]
    return torch.cat(parts, dim=1)
