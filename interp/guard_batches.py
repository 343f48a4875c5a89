"""Many guards for one prefill: each rides behind the prompt as a token of its own, and attends to no other rider.

A guard that acts on the last prompt token and on what is generated leaves everything before unchanged, where no token
looks ahead. So the prompt is run once up to its last token, and that token once for each guard, side by side in the
same row: each attends to the prompt and to itself. What it generates is appended in the same way. Nothing of the cache
is copied for a guard; prompts about the same picture share what stands before their requests too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache

from interp import families
from interp.activations import prompt_record
from interp.bare import is_guarded
from interp.batches import BatchPlan
from interp.guard import Guard
from interp.inputs import Prompt, collate, collate_alike
from interp.tracing.forward import PassSpec
from interp.tracing.prefix import CutPrompts, LastPrefix, Prefix, cache_room, preallocated_cache, shares_prefixes
from interp.vlm import VLM

MASKED = ("eager", "sdpa")
"""Attention that takes any mask."""
STEERING = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": None,
}
"""Of a generation config, and what leaves greedy answers as they are: the likeliest token each time."""
RIDING = ("last_prefill", "generated", "last")
"""Positions whose change leaves the prompt before its last token as it was."""
LOGIT_BYTES = 256e6
"""Of the log-probabilities of the riders of one pass."""
MOST_SPEAKING = 32
"""Riders in one pass that generate: what each has said takes a place in every later pass of the others."""

LogProbs = Float[Tensor, "prompt guard d_vocab"]
Score = Callable[[LogProbs, Float[Tensor, "prompt d_vocab"]], Float[Tensor, "prompt guard"]]
"""From log-probabilities of the first answer token, under each guard and unguarded, to a number."""
References = Float[Tensor, "prompt layer d_model"] | Sequence[Float[Tensor, "prompt layer d_model"] | None] | None
"""The same for every guard, or one for each."""


class GuardBatchError(ValueError):
    """These guards, or this model, can't ride together; says why. One at a time they still can."""


@dataclass(frozen=True)
class GuardRuns:
    """What each guard did to each prompt."""

    scores: Mapping[str, Float[Tensor, "guard prompt"]]
    """Of the first answer token."""
    tokens: Int[Tensor, "guard prompt new"]
    """Greedy answers, padded behind their end."""
    alone: Mapping[int, str]
    """Guards that had to be run one at a time, and why."""


def why_not(vlm: VLM, guard: Guard | None, max_new_tokens: int = 1) -> str | None:
    """What keeps a guard from riding on this model; None where nothing does."""
    if guard and guard.positions not in RIDING:
        return f"positions {guard.positions} change the prompt before its last token"
    if guard and guard.frozen_shift:
        return "a frozen shift is measured in a pass of its own"
    if guard and guard.all_writes:
        return "all writes are not changed at one place of a layer"
    if is_guarded(vlm.model):
        return f"a guard is on {vlm.name!r} already"
    if not vlm.family.is_causal:
        return f"the prompts of {vlm.name!r} look ahead"
    if not vlm.family.pictures_in_sequence:
        return f"the pictures of {vlm.name!r} take no place in the sequence"
    text = vlm.model.config.get_text_config()
    strange = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if strange:
        return f"{vlm.name!r} has layers of {', '.join(strange)}"
    if text._attn_implementation not in MASKED:
        return f"{vlm.name!r} attends by {text._attn_implementation}, which takes no mask of riders"
    odd = _not_greedy(vlm) if max_new_tokens > 1 else []
    if odd:
        return f"the generation config of {vlm.name!r} sets {', '.join(odd)}"
    # Tried, once for each model: no family's name proves it.
    return None if shares_prefixes(vlm) else f"the prompts of {vlm.name!r} can't be cut"


def _not_greedy(vlm: VLM) -> list[str]:
    """Settings by which greedy answers are not simply the likeliest token each time."""
    config = vlm.model.generation_config
    return [name for name, plain in STEERING.items() if getattr(config, name, None) not in (None, plain)]


def run_guards(
    vlm: VLM,
    prompts: Sequence[Prompt],
    guards: Sequence[Guard | None],
    references: References = None,
    scores: Mapping[str, Score] | None = None,
    max_new_tokens: int = 1,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda n_runs: None,
) -> GuardRuns:
    """Scores and greedy answers of every prompt under every guard: riding together where they can, else one at a time.

    Args:
        vlm: left as it is.
        prompts: of any modality.
        guards: each with its own layers, rule, gate, positions and strength; None for no guard.
        references: from `Guard.read`, of each prompt; needed where a guard needs them.
        scores: by name.
        max_new_tokens: longest answer; the first token costs nothing beside the scores.
        batch_size: prompts in one pass.
        advance: called with the number of prompts times guards done since the last call.

    Raises:
        ValueError: no prompts, or a guard needs references, and there are none.
    """
    given = _per_guard(guards, references)
    alone = {i: reason for i, guard in enumerate(guards) if (reason := why_not(vlm, guard, max_new_tokens))}
    parts = {ride: [i for i in range(len(guards)) if i not in alone], one_at_a_time: list(alone)}
    found, tokens = _unfilled(vlm, guards, prompts, scores, max_new_tokens)
    for run, chosen in parts.items():
        if chosen:
            told = [given[i] for i in chosen]
            part = run(vlm, prompts, [guards[i] for i in chosen], told, scores, max_new_tokens, batch_size, advance)
            tokens[chosen] = part.tokens
            for name, values in part.scores.items():
                found[name][chosen] = values
    return GuardRuns(found, tokens, alone)


@torch.no_grad()
def ride(
    vlm: VLM,
    prompts: Sequence[Prompt],
    guards: Sequence[Guard | None],
    references: References = None,
    scores: Mapping[str, Score] | None = None,
    max_new_tokens: int = 1,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda n_runs: None,
) -> GuardRuns:
    """`run_guards`, of guards that can ride together, for one prefill of each prompt.

    Raises:
        RowsError: the guards can't ride together on this model.
        ValueError: see `run_guards`.
    """
    reasons = [reason for guard in [None, *guards] if (reason := why_not(vlm, guard, max_new_tokens))]
    if reasons:
        raise GuardBatchError(f"{reasons[0]}; run the guards one at a time")
    # Scores compare with the unguarded model, which rides in front.
    riders, given = [None, *guards], [None, *_per_guard(guards, references)]
    found, tokens = _unfilled(vlm, riders, prompts, scores, max_new_tokens)
    at_once = lambda n_prompts: min(len(riders), _at_once(vlm, n_prompts, max_new_tokens))  # noqa: E731
    for rows, boarded in _boarded(vlm, prompts, batch_size, lambda n: at_once(n) * max_new_tokens):
        n_at_once, unguarded = at_once(len(rows)), None
        for start in range(0, len(riders), n_at_once):
            some = slice(start, min(start + n_at_once, len(riders)))
            read = [None if states is None else states[rows] for states in given[some]]
            for step, (logprobs, said) in enumerate(boarded.answer(riders[some], read, max_new_tokens)):
                tokens[some, rows, step] = said.T.cpu()
                if step == 0:
                    unguarded = logprobs[:, 0] if unguarded is None else unguarded
                    for name, score in (scores or {}).items():
                        found[name][some, rows] = score(logprobs, unguarded).T.float().cpu()
            advance(len(rows) * (some.stop - max(some.start, 1)))
    return GuardRuns({name: values[1:] for name, values in found.items()}, tokens[1:], {})


@torch.no_grad()
def one_at_a_time(
    vlm: VLM,
    prompts: Sequence[Prompt],
    guards: Sequence[Guard | None],
    references: References = None,
    scores: Mapping[str, Score] | None = None,
    max_new_tokens: int = 1,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda n_runs: None,
) -> GuardRuns:
    """`run_guards` as a loop: a prefill of every prompt for each guard. Any guard, any model."""
    given = _per_guard(guards, references)
    found, tokens = _unfilled(vlm, guards, prompts, scores, max_new_tokens)
    kwargs = {
        "do_sample": False,
        "num_beams": 1,
        "output_logits": True,
        "return_dict_in_generate": True,
        "pad_token_id": _pad(vlm),
    }
    for rows, _ in _keyed(prompts, batch_size):
        batch, unguarded = collate(vlm, [prompts[i] for i in rows]), None
        if scores:
            unguarded = vlm.model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
        for i, (guard, states) in enumerate(zip(guards, given, strict=True)):
            with guard.on(vlm, None if states is None else states[rows]) if guard else nullcontext():
                made = vlm.model.generate(**batch, **kwargs, max_new_tokens=max_new_tokens)
            new = made.sequences[:, -len(made.logits) :].cpu()
            tokens[i, rows, : new.shape[1]] = new
            for name, score in (scores or {}).items():
                logprobs = made.logits[0].float().log_softmax(-1)
                found[name][i, rows] = score(logprobs[:, None], unguarded)[:, 0].float().cpu()
            advance(len(rows))
    return GuardRuns(found, tokens, {})


def _unfilled(
    vlm: VLM, guards: Sequence, prompts: Sequence, scores: Mapping[str, Score] | None, n_new: int
) -> tuple[dict[str, Float[Tensor, "guard prompt"]], Int[Tensor, "guard prompt new"]]:
    """Where scores and tokens go."""
    found = {name: torch.full((len(guards), len(prompts)), torch.nan) for name in scores or {}}
    return found, torch.full((len(guards), len(prompts), n_new), _pad(vlm))


def _per_guard(guards: Sequence[Guard | None], references: References) -> list[Tensor | None]:
    """Raises:
    ValueError: a guard needs references, and there are none.
    """
    given = [references] * len(guards) if references is None or isinstance(references, Tensor) else list(references)
    if len(given) != len(guards):
        raise ValueError(f"references for {len(given)} guards of {len(guards)}; expected one for all, or one for each")
    if any(guard and guard.needs_reference and states is None for guard, states in zip(guards, given, strict=True)):
        raise ValueError("a guard among them needs references, and none were given; read them with guard.read(...)")
    return given


def _pad(vlm: VLM) -> int:
    pad_id = vlm.tokenizer.pad_token_id
    return 0 if pad_id is None else pad_id


def _at_once(vlm: VLM, n_prompts: int, n_steps: int) -> int:
    """Riders in one pass: as many as there is room for their log-probabilities, and for their keys and values."""
    text = vlm.model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    d_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    place = 2 * vlm.n_layers * heads * d_head * vlm.model.dtype.itemsize
    fit = min(LOGIT_BYTES / (4 * text.vocab_size), cache_room(vlm.device) / (place * n_steps)) / n_prompts
    return max(2, int(min(fit, MOST_SPEAKING) if n_steps > 1 else fit))


def _keyed(prompts: Sequence[Prompt], batch_size: int) -> Iterator[tuple[list[int], str]]:
    """Rows of each batch, which begin alike (then there is a key) or have at least as many pictures.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("no prompts; expected at least one")
    seen: dict = {}
    plan = BatchPlan.of(prompts, [prompt_record(prompt, seen)["beginning"] for prompt in prompts], batch_size)
    some: list[int] = []
    kind = lambda i: (plan.keys[i], len(prompts[i].pictures))  # noqa: E731
    for i in (*plan.order, None):
        if some and (i is None or len(some) == batch_size or kind(i) != kind(some[0])):
            yield some, plan.keys[some[0]]
            some = []
        if i is not None:
            some.append(i)


def _boarded(
    vlm: VLM, prompts: Sequence[Prompt], batch_size: int, n_room: Callable[[int], int]
) -> Iterator[tuple[list[int], "_Boarded"]]:
    """Batches of prompts that have been run up to their last tokens.

    Args:
        n_room: places that riders take, by the number of prompts.
    """
    kept: LastPrefix | None = None
    for rows, key in _keyed(prompts, batch_size):
        some = [prompts[i] for i in rows]
        shared = CutPrompts.of(vlm, *collate_alike(vlm, some)) if key and shares_prefixes(vlm) else None
        if shared is None or min(map(len, shared.suffixes)) < 2:
            yield rows, _Boarded.whole(vlm, some, n_room(len(rows)))
            continue
        if kept is None or not kept.serves(key, shared):
            kept = None
            nothing = PassSpec(("resid_post",), (vlm.n_layers - 1,), torch.zeros(1, 0, dtype=torch.long))
            kept = LastPrefix(key, shared.prefix["input_ids"], Prefix.run(vlm, shared, nothing))
        size = kept.prefix.most_rows(len(rows))
        for start in range(0, len(rows), size):
            part = replace(shared, suffixes=shared.suffixes[start : start + size])
            room = n_room(len(part.suffixes))
            yield rows[start : start + size], _Boarded.behind(vlm, kept.prefix, part, room)


@dataclass
class _Boarded:
    """A batch of prompts that has been run up to its last tokens."""

    vlm: VLM
    cache: Cache
    is_token: Bool[Tensor, "batch pos"]
    """Places in the cache that hold a token of the prompt."""
    end: Int[Tensor, " batch"]
    """The place that the last token would have."""
    positions: Int[Tensor, "*kind batch 1"]
    """Its position, as the family counts."""
    last: Int[Tensor, "batch 1"]

    @classmethod
    def whole(cls, vlm: VLM, prompts: Sequence[Prompt], n_room: int) -> "_Boarded":
        """Each prompt with all of its own."""
        batch = collate(vlm, prompts)
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        cut = {name: value[:, :-1] if value.shape[:2] == ids.shape else value for name, value in batch.items()}
        # Without a config: caches of sliding windows would throw the beginning of a long prompt away.
        filled, n = DynamicCache(), ids.shape[1] - 1
        with _position_ids(vlm) as seen:
            vlm.model(**cut, use_cache=True, past_key_values=filled, logits_to_keep=1)
        end = torch.full((len(ids),), n, device=ids.device)
        cache = preallocated_cache(filled, len(ids), n_room)
        return cls(vlm, cache, mask[:, :-1], end, _next(seen[0], end, n), ids[:, -1:])

    @classmethod
    def behind(cls, vlm: VLM, prefix: Prefix, shared: CutPrompts, n_room: int) -> "_Boarded":
        """Suffixes of a prefix that has been run."""
        lengths = torch.tensor([len(suffix) - 1 for suffix in shared.suffixes])
        longest, n_prefix = int(lengths.max()), shared.n_prefix
        device = shared.prefix["input_ids"].device
        ids = torch.stack([pad(suffix[:-1], (0, longest + 1 - len(suffix))) for suffix in shared.suffixes]).to(device)
        cache = prefix.copies(len(lengths), longest + n_room)
        prefix.set_positions()
        with _position_ids(vlm) as seen:
            vlm.model(input_ids=ids, use_cache=True, past_key_values=cache, logits_to_keep=1)
        _keep(cache, longest)
        is_own = torch.arange(longest) < lengths[:, None]
        is_token = torch.cat([torch.ones(len(lengths), n_prefix, dtype=torch.bool), is_own], dim=1).to(device)
        lengths = lengths.to(device)
        last = torch.stack([suffix[-1:] for suffix in shared.suffixes]).to(device)
        return cls(vlm, cache, is_token, n_prefix + lengths, _next(seen[0], lengths, n_prefix + longest), last)

    def answer(
        self, guards: Sequence[Guard | None], references: Sequence[Tensor | None], n_steps: int
    ) -> Iterator[tuple[Float[Tensor, "batch guard d_vocab"], Int[Tensor, "batch guard"]]]:
        """Log-probabilities of each next token, and which is said; stops where every answer has ended."""
        said = self.last.expand(-1, len(guards))
        ended, ends, pad_id = torch.zeros_like(said, dtype=torch.bool), _end_tokens(self.vlm), _pad(self.vlm)
        n_kept = self.cache.get_seq_length()
        try:
            for step in range(n_steps):
                logprobs = self._step(said, guards, references, step).float().log_softmax(-1)
                said = logprobs.argmax(-1).masked_fill(ended, pad_id)
                ended |= torch.isin(said, ends.to(said.device))
                yield logprobs, said
                if ended.all():
                    return
        finally:
            # The next riders find the prompt as it was.
            _keep(self.cache, n_kept - self.cache.get_seq_length())

    def _step(
        self, said: Int[Tensor, "batch guard"], guards: Sequence[Guard | None], references: Sequence, step: int
    ) -> Float[Tensor, "batch guard d_vocab"]:
        places = self.positions.expand(*self.positions.shape[:-1], len(guards)) + step
        with _changed(self.vlm, guards, references, step):
            logits = self.vlm.model(
                input_ids=said,
                attention_mask=self._mask(len(guards), step),
                position_ids=places,
                past_key_values=self.cache,
                use_cache=True,
            ).logits
        _keep(self.cache, len(guards))
        return logits

    def _mask(self, n_guards: int, step: int) -> Tensor | dict[str, Tensor]:
        """Each rider sees the prompt, what it said itself, and nothing of the others."""
        n_prompts, n = self.is_token.shape
        device = self.is_token.device
        own = torch.eye(n_guards, dtype=torch.bool, device=device).repeat(1, step + 1)
        prompt = self.is_token[:, None].expand(-1, n_guards, -1)
        sees = torch.cat([prompt, own.expand(n_prompts, -1, -1)], dim=-1)[:, None]
        text = self.vlm.model.config.get_text_config()
        kinds, window = set(getattr(text, "layer_types", None) or ()), getattr(text, "sliding_window", None)
        if kinds == {"full_attention"} or window is None:
            return self._additive(sees)
        steps = torch.arange(step + 1, device=device).repeat_interleave(n_guards)
        keys = torch.cat([torch.arange(n, device=device).expand(n_prompts, -1), self.end[:, None] + steps], dim=1)
        near = (self.end[:, None] + step - keys < window)[:, None, None]
        if not kinds:
            # Families that know one kind of layer alone: all of them slide.
            return self._additive(sees & near)
        masks = {"full_attention": sees, "sliding_attention": sees & near}
        return {kind: self._additive(masks[kind]) for kind in kinds}

    def _additive(self, sees: Bool[Tensor, "batch 1 guard key"]) -> Tensor:
        dtype = self.vlm.model.dtype
        return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)


def _keep(cache: Cache, n: int) -> None:
    for layer in cache.layers:
        layer.n_kept += n


def _next(seen: Tensor | None, lengths: Int[Tensor, " batch"], n: int) -> Int[Tensor, "*kind batch 1"]:
    """The position behind the last token of each row: text follows text, so it is the next one.

    Args:
        seen: positions that the language model was given; none where it counts by itself.
        lengths: of the rows that it was given.
        n: places in the cache, of which the padding behind a row takes some.
    """
    if seen is None:
        return (n - (lengths.max() - lengths))[:, None]
    seen = seen.expand(*seen.shape[:-2], len(lengths), -1)
    last = (lengths - 1)[:, None].expand(*seen.shape[:-1], 1)
    return seen.gather(-1, last) + 1


@contextmanager
def _changed(
    vlm: VLM, guards: Sequence[Guard | None], references: Sequence[Tensor | None], step: int
) -> Iterator[None]:
    """Every guard on its own token."""
    acting = [i for i, guard in enumerate(guards) if guard and _acts(guard.positions, step)]
    layers = sorted({layer for i in acting for layer in guards[i].layers})

    def hook(layer: int):
        mine = [i for i in acting if layer in guards[i].layers]

        def change(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
            resid = (output[0] if isinstance(output, tuple) else output).clone()
            for i in mine:
                resid[:, i : i + 1] = _of_rider(guards[i], resid[:, i : i + 1], layer, references[i])
            return (resid, *output[1:]) if isinstance(output, tuple) else resid

        return change

    hooks = [vlm.blocks[layer].register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def _of_rider(guard: Guard, resid: Float[Tensor, "batch 1 d_model"], layer: int, states: Tensor | None) -> Tensor:
    everywhere = torch.ones(resid.shape[:2], dtype=torch.bool)
    if not guard.needs_reference:
        return guard.change(resid, layer, None, everywhere)
    is_open = None if guard.gate == "always" else guard.opens(states, layer)
    return guard.change(resid, layer, states[:, layer], everywhere, is_open)


def _acts(positions: str, step: int) -> bool:
    return positions == "last" or (positions == "last_prefill") == (step == 0)


def _end_tokens(vlm: VLM) -> Int[Tensor, " token"]:
    ends = vlm.model.generation_config.eos_token_id
    return torch.tensor([ends] if isinstance(ends, int) else list(ends or []), dtype=torch.long)


@contextmanager
def _position_ids(vlm: VLM) -> Iterator[list[Tensor | None]]:
    """Those that the language model is given in a pass: families count pictures in their own way."""
    seen: list[Tensor | None] = []

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(kwargs.get("position_ids"))

    hook = families.language_model(vlm.model).register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()
