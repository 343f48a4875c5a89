"""Many guards on the same prompts, for one prefill of each prompt.

A guard that acts only on the last prompt token and on generated tokens leaves everything before them unchanged, as long
as no token looks ahead. So each prompt is run once up to its last token, and that token once per guard: all guards
share the keys and values of the prompt (`interp.guard_attention`), and prompts about the same picture share what comes
before their requests. Guards and models for which this does not hold are run one guard at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import inf
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessorList

from interp.batches import Advance, prompt_batches
from interp.errors import if_it_fits
from interp.evaluation_mode import evaluation_mode
from interp.families import largest
from interp.forced import ForcedScore, forced_tokens, log_probabilities, logits_after, logprobs_after, rows_at_a_time
from interp.guard import Guard
from interp.guard_attention import PrefilledPrompts, first_change, pad_token
from interp.inputs import Prompt, collate, collate_same_pictures
from interp.prefill_sharing import why_not_together
from interp.sampling import DrawnTokens, Sampling, next_tokens
from interp.tracing.forward import PassSpec
from interp.tracing.prefix import CutPrompts, LastPrefix, Prefix, cache_room, shares_prefixes
from interp.vlm import LLM, VLM

LOGIT_BYTES = 256e6
"""Memory for the logits of all guards in one pass."""
ROWS_ON_CPU = 192
"""Prompts times guards in one pass on a CPU, which gains nothing from more: fewer guards leave out more blocks."""
MAX_GENERATING = 32
"""Guards in one pass that generate: each of their tokens takes up a position in every later pass."""

GuardScore = (
    Callable[[Float[Tensor, "prompt guard d_vocab"], Float[Tensor, "prompt d_vocab"]], Float[Tensor, "prompt guard"]]
    | ForcedScore
)
"""A number per prompt and guard, from the first answer token's log-probabilities under each guard and unguarded; or,
as a `ForcedScore`, from those of the first token and of the second one, both under each guard."""
References = Float[Tensor, "prompt layer d_model"] | Sequence[Float[Tensor, "prompt layer d_model"] | None] | None
"""Reference states of the prompts: the same for all guards, or one entry per guard."""

T = TypeVar("T")
Runs = TypeVar("Runs")
"""Results of a function that runs a batch of guards."""


class GuardBatchError(ValueError):
    """These guards can't share a prefill on this model; run them with `together=False`."""


@dataclass(frozen=True)
class GuardRuns:
    """First-token scores and answers of each prompt under each guard."""

    scores: Mapping[str, Float[Tensor, "guard prompt"]]
    """Scores of the first answer token, by name."""
    tokens: Int[Tensor, "guard prompt new"]
    """Greedy or drawn answers, padded after their end."""
    not_batched: Mapping[int, str]
    """Reasons why guards could not share a prefill, by the index of the guard."""


@dataclass(frozen=True)
class GuardBatch:
    """The checked arguments of `run_guards`."""

    vlm: VLM | LLM
    prompts: Sequence[Prompt]
    guards: Sequence[Guard | None]
    references: Sequence[Tensor | None]
    """One entry per guard."""
    scores: Mapping[str, GuardScore]
    max_new_tokens: int
    batch_size: int
    advance: Advance
    samplings: Sequence[Sampling | None]
    """One entry per guard."""

    def subset(self, indices: Sequence[int]) -> "GuardBatch":
        """Return the same batch with these guards only."""
        per_guard = ("guards", "references", "samplings")
        return replace(self, **{name: [getattr(self, name)[i] for i in indices] for name in per_guard})

    def empty_runs(self) -> GuardRuns:
        """Return runs without scores (NaN) and answers (padding), to be filled in."""
        shape = (len(self.guards), len(self.prompts))
        scores = {name: torch.full(shape, torch.nan) for name in self.scores}
        return GuardRuns(scores, torch.full((*shape, self.max_new_tokens), pad_token(self.vlm)), {})

    @property
    def forced(self) -> tuple[int, ...]:
        """First tokens after which the scores look at the second one."""
        return forced_tokens(self.scores.values())

    @property
    def n_steps(self) -> int:
        """Tokens of each guard that the cache holds after a prompt."""
        return max(self.max_new_tokens, 2 if self.forced else 1)

    def scored(self, logits: Tensor, unguarded: Tensor, after: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Compute all scores, `prompt guard`.

        Args:
            logits: the first token's, `prompt guard d_vocab`.
            unguarded: the first token's log-probabilities without a guard, `prompt d_vocab`.
            after: the second token's logits after each forced one, `prompt guard d_vocab`.
        """
        n_prompts, n_guards, _ = logits.shape
        n_rows = rows_at_a_time(logits, LOGIT_BYTES)
        n_columns = max(1, n_rows // n_prompts)
        runs = {name: torch.empty(n_prompts, n_guards) for name in self.scores}
        for top, left in product(range(0, n_prompts, n_rows), range(0, n_guards, n_columns)):
            cells = slice(top, top + n_rows), slice(left, left + n_columns)
            behind = {token: values[cells] for token, values in after.items()}
            for name, values in self._scored(logits[cells], unguarded[cells[0]], behind).items():
                runs[name][cells] = values
        return runs

    def _scored(self, logits: Tensor, unguarded: Tensor, after: Mapping[int, Tensor]) -> dict[str, Tensor]:
        logprobs, after = log_probabilities(logits), {token: log_probabilities(part) for token, part in after.items()}
        return {
            name: score(logprobs, after if isinstance(score, ForcedScore) else unguarded).float().cpu()
            for name, score in self.scores.items()
        }

    def n_per_pass(self, n_prompts: int) -> int:
        """Return how many guards one pass takes: as many as fit the memory for log-probabilities and for the cache."""
        text = self.vlm.model.config.get_text_config()
        heads = largest(text, "num_key_value_heads", text.num_attention_heads)
        own_width = largest(text, "head_dim", text.hidden_size // text.num_attention_heads)
        d_head = max(own_width, largest(text, "global_head_dim", own_width))
        bytes_per_token = 2 * self.vlm.n_layers * heads * d_head * self.vlm.model.dtype.itemsize
        by_cache = cache_room(self.vlm.device) / (bytes_per_token * self.n_steps)
        n_distributions = 1 + len(self.forced)
        by_logits = LOGIT_BYTES / (self.vlm.model.dtype.itemsize * text.vocab_size * n_distributions)
        by_device = ROWS_ON_CPU if self.vlm.device.type == "cpu" else inf
        fit = min(by_logits, by_cache, by_device) / n_prompts
        return min(len(self.guards), max(2, int(min(fit, MAX_GENERATING) if self.max_new_tokens > 1 else fit)))

    def n_room(self, n_prompts: int) -> int:
        """Return how many tokens of guards a cache must hold after each prompt."""
        return self.n_per_pass(n_prompts) * self.n_steps


@torch.no_grad()
def run_guards(
    vlm: VLM | LLM,
    prompts: Sequence[Prompt],
    guards: Sequence[Guard | None],
    references: References = None,
    scores: Mapping[str, GuardScore] | None = None,
    max_new_tokens: int = 1,
    batch_size: int = 16,
    advance: Advance = lambda n_runs: None,
    together: bool | None = None,
    sampling: Sampling | Sequence[Sampling | None] | None = None,
) -> GuardRuns:
    """Score and answer every prompt under every guard.

    Args:
        vlm: left unchanged; in training mode, it is run in evaluation mode.
        prompts: any mixture of modalities.
        guards: each with its own layers, rule, gate, positions and strength; None for no guard.
        references: states from `Guard.read`, one row per prompt; required if a guard needs references.
        scores: functions of the first answer token's log-probabilities, by name; a `ForcedScore` sees the second
            token's too, for one more pass per forced token.
        max_new_tokens: length of the longest answer; one token costs nothing on top of the scores.
        batch_size: prompts in one pass.
        advance: called with the number of prompts times guards finished since the last call.
        together: True runs all guards on one prefill per prompt, False one guard at a time; by default (None) guards
            share a prefill where they can, and `GuardRuns.not_batched` names the others.
        sampling: how answers are drawn: the same for all guards, or one entry per guard; by default greedy. Several
            draws are the same guard several times, with other seeds. Scores are those of the model either way.

    Raises:
        GuardBatchError: `together=True`, and a guard or the model does not allow it.
        ValueError: no prompts, or a guard needs references and has none.
    """
    if together:
        # Scores compare with the unguarded model, which is always part of the batch.
        refused = (why_not_together(vlm, guard, max_new_tokens) for guard in (None, *guards))
        if reason := next(filter(None, refused), None):
            raise GuardBatchError(f"{reason}; run the guards one at a time: together=False")
    # A missing reference is reported before anything runs on the model.
    states = states_per_guard(guards, references)
    samplings = one_per_guard("sampling", sampling, Sampling, len(guards))
    batch = GuardBatch(vlm, prompts, guards, states, scores or {}, max_new_tokens, batch_size, advance, samplings)
    with evaluation_mode(vlm.model):
        if together is not None:
            return in_smaller_passes(batch, _run_together if together else _run_separately)
        reasons = {i: why for i, guard in enumerate(guards) if (why := why_not_together(vlm, guard, max_new_tokens))}
        return in_smaller_passes(batch, partial(_run_mixed, not_batched=reasons))


def in_smaller_passes(batch: GuardBatch, run: Callable[[GuardBatch], Runs]) -> Runs:
    """Run a batch in passes of its size, or of half of that, and so on, where memory runs out.

    Raises:
        ModelError: one prompt alone does not fit.
    """
    n_done = 0

    def advance(n_runs: int) -> None:
        nonlocal n_done
        n_done += n_runs
        batch.advance(n_runs)

    size = min(batch.batch_size, len(batch.prompts))
    while True:
        runs = if_it_fits(partial(run, replace(batch, advance=advance, batch_size=size)), size, batch.vlm.name)
        if runs is not None:
            return runs
        batch.advance(-n_done)
        n_done, size = 0, size // 2


def _run_mixed(batch: GuardBatch, not_batched: Mapping[int, str]) -> GuardRuns:
    """Run all guards together but those that are named, which are run one at a time."""
    runs = replace(batch.empty_runs(), not_batched=not_batched)
    batched = [i for i in range(len(batch.guards)) if i not in not_batched]
    for run, indices in ((_run_together, batched), (_run_separately, list(not_batched))):
        if indices:
            part = run(batch.subset(indices))
            runs.tokens[indices] = part.tokens
            for name, values in part.scores.items():
                runs.scores[name][indices] = values
    return runs


def _run_together(batch: GuardBatch) -> GuardRuns:
    """Run all guards on one prefill of each prompt."""
    runs, n_layers = batch.empty_runs(), batch.vlm.n_layers
    if not batch.guards:
        return runs
    # Guards that first change the same layer run together: the blocks before it are not run again.
    order = sorted(range(len(batch.guards)), key=lambda i: first_change(batch.guards[i], n_layers))
    for rows, prefilled in prefilled_batches(batch):
        prefilled.run_unguarded(batch.forced)
        unguarded, n_per_pass = log_probabilities(prefilled.unguarded_logits), batch.n_per_pass(len(rows))
        for start in range(0, len(order), n_per_pass):
            part = order[start : start + n_per_pass]
            guards = [batch.guards[i] for i in part]
            states = [None if batch.references[i] is None else batch.references[i][rows] for i in part]
            cells = torch.tensor(part)[:, None], torch.tensor(rows)
            choose = partial(next_tokens, [batch.samplings[i] for i in part], rows)
            for step, (logits, tokens) in enumerate(prefilled.answer(guards, states, batch.max_new_tokens, choose)):
                runs.tokens[(*cells, step)] = tokens.T.cpu()
                if step == 0 and batch.scores:
                    after = {token: prefilled.after(token, guards, states) for token in batch.forced}
                    for name, values in batch.scored(logits, unguarded, after).items():
                        runs.scores[name][cells] = values.T
            batch.advance(len(rows) * len(part))
    return runs


def _run_separately(batch: GuardBatch) -> GuardRuns:
    """Run one guard at a time, with a prefill of every prompt for each; works for any guard and any model."""
    vlm, runs = batch.vlm, batch.empty_runs()
    kwargs = {"do_sample": False, "num_beams": 1, "output_logits": True, "return_dict_in_generate": True}
    kwargs |= {"pad_token_id": pad_token(vlm), "max_new_tokens": batch.max_new_tokens}
    for rows, _ in prompt_batches(batch.prompts, batch.batch_size):
        inputs, unguarded = collate(vlm, [batch.prompts[i] for i in rows]), None
        if batch.scores:
            unguarded = logprobs_after(vlm, inputs, ())
        n_prompt = inputs["input_ids"].shape[1]
        for i, (guard, states) in enumerate(zip(batch.guards, batch.references, strict=True)):
            sampling = batch.samplings[i]
            draws = LogitsProcessorList([DrawnTokens(sampling, rows, n_prompt)] if sampling else [])
            with guard.on(vlm, None if states is None else states[rows]) if guard else nullcontext():
                output = vlm.model.generate(**inputs, **kwargs, logits_processor=draws)
                after = {token: logits_after(vlm, inputs, (token,))[:, None] for token in batch.forced}
            new = output.sequences[:, -len(output.logits) :].cpu()
            runs.tokens[i, rows, : new.shape[1]] = new
            if batch.scores:
                for name, values in batch.scored(output.logits[0][:, None], unguarded, after).items():
                    runs.scores[name][i, rows] = values[:, 0]
            batch.advance(len(rows))
    return runs


def states_per_guard(guards: Sequence[Guard | None], references: References) -> list[Tensor | None]:
    """Return one entry of reference states per guard.

    Raises:
        ValueError: a guard needs references and has none.
    """
    states = one_per_guard("references", references, Tensor, len(guards))
    if any(guard and guard.needs_reference and state is None for guard, state in zip(guards, states, strict=True)):
        raise ValueError("a guard needs references, and none were given; read them with guard.read(...)")
    return states


def one_per_guard(name: str, values: T | Sequence[T | None] | None, kind: type[T], n_guards: int) -> list[T | None]:
    """Return one entry per guard of what may be given once for all.

    Args:
        name: what the entries are, for the message.
        values: one entry for all guards, or one for each.
        kind: class of an entry.
        n_guards: number of guards.

    Raises:
        ValueError: another number of entries.
    """
    entries = [values] * n_guards if values is None or isinstance(values, kind) else list(values)
    if len(entries) != n_guards:
        raise ValueError(f"{name} for {len(entries)} guards of {n_guards}; expected one for all, or one for each")
    return entries


def prefilled_batches(batch: GuardBatch) -> Iterator[tuple[list[int], PrefilledPrompts]]:
    """Yield batches of prompts that have been run up to their last tokens, with the rows of the prompts."""
    vlm, last_prefix = batch.vlm, None
    for rows, key in prompt_batches(batch.prompts, batch.batch_size):
        prompts = [batch.prompts[i] for i in rows]
        cut = CutPrompts.of(vlm, *collate_same_pictures(vlm, prompts)) if key and shares_prefixes(vlm) else None
        # A suffix of one token leaves nothing to run before the guards' own tokens.
        if cut is None or min(map(len, cut.suffixes)) < 2:
            yield rows, PrefilledPrompts.from_prompts(vlm, prompts, batch.n_room(len(rows)))
            continue
        if last_prefix is None or not last_prefix.serves(key, cut):
            # Freed before the next one is made.
            last_prefix = None
            last_prefix = _run_prefix(vlm, key, cut)
        size = last_prefix.prefix.max_rows(len(rows))
        for start in range(0, len(rows), size):
            part = replace(cut, suffixes=cut.suffixes[start : start + size])
            n_room = batch.n_room(len(part.suffixes))
            yield rows[start : start + size], PrefilledPrompts.from_suffixes(vlm, last_prefix.prefix, part, n_room)


def _run_prefix(vlm: VLM | LLM, key: str, cut: CutPrompts) -> LastPrefix:
    nothing = PassSpec(("resid_post",), (vlm.n_layers - 1,), torch.zeros(1, 0, dtype=torch.long))
    return LastPrefix(key, cut.prefix["input_ids"], Prefix.run(vlm, cut, nothing))
