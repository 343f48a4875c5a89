"""Guards as tokens behind a shared prompt: the cache they continue, their attention masks and their positions.

Every guard gets a copy of the prompt's last token. All copies are run in one pass, next to each other in the same row
of the batch; the mask lets each attend to the prompt and to its own earlier tokens, but not to those of other guards.
So the keys and values of a prompt are computed and stored once, however many guards there are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache

from interp import families
from interp.guard import Guard
from interp.inputs import Prompt, collate
from interp.pass_ledger import guard_was_off
from interp.sampling import likeliest
from interp.tracing.prefix import CutPrompts, Prefix, preallocated_cache
from interp.unguarded_token import UnguardedToken
from interp.vlm import LLM, VLM


@dataclass
class PrefilledPrompts:
    """A batch of prompts that has been run up to, but not including, the last token of each."""

    vlm: VLM | LLM
    cache: Cache
    is_token: Bool[Tensor, "batch pos"]
    """True for the positions of the cache that hold a prompt token, False for padding."""
    end: Int[Tensor, " batch"]
    """Index of each prompt's last token, counted in positions of the cache."""
    positions: Int[Tensor, "*kind batch 1"]
    """Position id of each prompt's last token, as the family counts."""
    last: Int[Tensor, "batch 1"]
    """Last token of each prompt."""
    _unguarded: UnguardedToken | None = None
    """The last token without a guard, once `run_unguarded` has run it."""
    _forced: Mapping[int, UnguardedToken] = field(default_factory=dict)
    """Tokens after it without a guard, by their id."""

    @classmethod
    def from_prompts(cls, vlm: VLM | LLM, prompts: Sequence[Prompt], n_room: int) -> "PrefilledPrompts":
        """Run whole prompts, which share nothing.

        Args:
            vlm: left unchanged.
            prompts: a batch that `collate` accepts.
            n_room: tokens that the cache has room for after the prompts.
        """
        batch = collate(vlm, prompts)
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        cut = {name: value[:, :-1] if value.shape[:2] == ids.shape else value for name, value in batch.items()}
        # Without a config: caches of sliding windows would drop the beginning of a long prompt.
        filled, n = DynamicCache(), ids.shape[1] - 1
        with _recorded_position_ids(vlm) as recorded:
            vlm.model(**cut, use_cache=True, past_key_values=filled, logits_to_keep=1)
        end = torch.full((len(ids),), n, device=ids.device)
        cache = preallocated_cache(filled, len(ids), n_room)
        return cls(vlm, cache, mask[:, :-1], end, _next_positions(recorded[0], end, n), ids[:, -1:])

    @classmethod
    def from_suffixes(cls, vlm: VLM | LLM, prefix: Prefix, cut: CutPrompts, n_room: int) -> "PrefilledPrompts":
        """Run the suffixes of prompts whose shared prefix has been run.

        Args:
            vlm: the model that the prefix was run on.
            prefix: what all prompts begin with.
            cut: the prompts; every suffix has at least two tokens.
            n_room: tokens that the cache has room for after the prompts.
        """
        lengths = torch.tensor([len(suffix) - 1 for suffix in cut.suffixes])
        longest, n_prefix = int(lengths.max()), cut.n_prefix
        device = cut.prefix["input_ids"].device
        ids = torch.stack([pad(suffix[:-1], (0, longest + 1 - len(suffix))) for suffix in cut.suffixes]).to(device)
        cache = prefix.copies(len(lengths), longest + n_room)
        prefix.restore_positions()
        with _recorded_position_ids(vlm) as recorded:
            vlm.model(input_ids=ids, use_cache=True, past_key_values=cache, logits_to_keep=1)
        _move_end(cache, longest)
        # Suffixes are padded on the right: prefix | suffix | padding | tokens of the guards.
        is_suffix = torch.arange(longest) < lengths[:, None]
        is_token = torch.cat([torch.ones(len(lengths), n_prefix, dtype=torch.bool), is_suffix], dim=1).to(device)
        lengths = lengths.to(device)
        last = torch.stack([suffix[-1:] for suffix in cut.suffixes]).to(device)
        positions = _next_positions(recorded[0], lengths, n_prefix + longest)
        return cls(vlm, cache, is_token, n_prefix + lengths, positions, last)

    def run_unguarded(self, forced: Sequence[int]) -> None:
        """Run the last token of each prompt without a guard, and every forced token after it.

        Args:
            forced: tokens that `after` will be asked for.
        """
        self._unguarded = self._recorded(self.last, step=0)
        _move_end(self.cache, 1)
        self._forced = {token: self._recorded(torch.full_like(self.last, token), step=1) for token in forced}
        _move_end(self.cache, -1)

    def _recorded(self, tokens: Int[Tensor, "batch 1"], step: int) -> UnguardedToken:
        """Return the unguarded run of a token."""
        run, run_other = (partial(self._run, ids, step) for ids in (tokens, (tokens + 1) % len(self.vlm.tokenizer)))
        recorded = UnguardedToken.record(self.vlm, self.cache, run)
        can_play = recorded.plays_back(self.vlm, self.cache, run, run_other)
        return recorded if can_play else replace(recorded, outputs=())

    @property
    def unguarded_logits(self) -> Float[Tensor, "batch d_vocab"]:
        """Logits of each prompt's first answer token without a guard."""
        return self._unguarded.logits[:, 0]

    def answer(
        self,
        guards: Sequence[Guard | None],
        references: Sequence[Tensor | None],
        n_steps: int,
        choose: Callable[[Float[Tensor, "batch guard d_vocab"], int], Int[Tensor, "batch guard"]] = likeliest,
    ) -> Iterator[tuple[Float[Tensor, "batch guard d_vocab"], Int[Tensor, "batch guard"]]]:
        """Yield the logits of each next token and the chosen one, until every answer has ended.

        The cache holds the bare prompts again afterwards, so further guards can continue them.

        Args:
            guards: each acts on its own answer.
            references: states of the prompts' references, one entry per guard.
            n_steps: most tokens of an answer.
            choose: returns the next tokens from their logits and the step, by default the likeliest ones.
        """
        tokens = self.last.expand(-1, len(guards))
        has_ended, ends, pad_id = torch.zeros_like(tokens, dtype=torch.bool), end_tokens(self.vlm), pad_token(self.vlm)
        n_prompt = self.cache.get_seq_length()
        try:
            for step in range(n_steps):
                logits = self._step(tokens, guards, references, step, self._unguarded if step == 0 else None)
                tokens = choose(logits, step).masked_fill(has_ended, pad_id)
                has_ended |= torch.isin(tokens, ends.to(tokens.device))
                yield logits, tokens
                if has_ended.all():
                    return
        finally:
            _move_end(self.cache, n_prompt - self.cache.get_seq_length())

    def after(
        self, token: int, guards: Sequence[Guard | None], references: Sequence[Tensor | None]
    ) -> Float[Tensor, "batch guard d_vocab"]:
        """Compute the second token's logits if the first one were `token`.

        To be called between the first and the second step of `answer`, whose tokens it leaves alone.
        """
        tokens = torch.full_like(self.last, token).expand(-1, len(guards))
        logits = self._step(tokens, guards, references, 1, self._forced[token])
        _move_end(self.cache, -len(guards))
        return logits

    def _step(
        self,
        tokens: Int[Tensor, "batch guard"],
        guards: Sequence[Guard | None],
        references: Sequence,
        step: int,
        unguarded: UnguardedToken | None,
    ) -> Float[Tensor, "batch guard d_vocab"]:
        """Run one token per guard.

        Args:
            tokens: the tokens.
            guards, references: see `answer`.
            step: place of the token in the answer; 0 is the prompt's last token.
            unguarded: the same token without a guard, if every guard has the same one.
        """
        n_shared = self._n_shared_blocks(guards, step) if unguarded and unguarded.outputs else 0
        played = unguarded.played_back(self.vlm, self.cache, len(guards), n_shared - 1) if n_shared else nullcontext()
        with played, _guards_applied(self.vlm, guards, references, step):
            logits = self._run(tokens, step)
        _move_end(self.cache, len(guards))
        return logits

    def _n_shared_blocks(self, guards: Sequence[Guard | None], step: int) -> int:
        """Return how many blocks compute the same for all guards: those up to the first change at any step so far."""
        n_layers = self.vlm.n_layers
        return min(1 + first_change(guard, n_layers, step) for guard in guards)

    def _run(self, tokens: Int[Tensor, "batch token"], step: int) -> Float[Tensor, "batch token d_vocab"]:
        """Run tokens that follow the prompts, one answer each; the cache does not keep them yet."""
        n = tokens.shape[1]
        # All guards are at the same position of their own answer.
        return self.vlm.model(
            input_ids=tokens,
            attention_mask=self._mask(n, step),
            position_ids=self.positions.expand(*self.positions.shape[:-1], n) + step,
            past_key_values=self.cache,
            use_cache=True,
        ).logits

    def _mask(self, n_guards: int, step: int) -> Tensor | dict[str, Tensor]:
        """Return the additive attention mask of one step; by kind of layer where a model has several."""
        # Rows are guards. Columns are the cache: prompt tokens, then one token per guard for each step so far.
        n_prompts, n = self.is_token.shape
        device = self.is_token.device
        # Among the guards' tokens a row sees its own alone: an identity matrix per step.
        own = torch.eye(n_guards, dtype=torch.bool, device=device).repeat(1, step + 1)
        prompt = self.is_token[:, None].expand(-1, n_guards, -1)
        is_visible = torch.cat([prompt, own.expand(n_prompts, -1, -1)], dim=-1)[:, None]
        text = self.vlm.model.config.get_text_config()
        kinds, window = set(getattr(text, "layer_types", None) or ()), getattr(text, "sliding_window", None)
        if kinds == {"full_attention"} or window is None:
            return self._additive(is_visible)
        # Sliding windows go by the place in an answer, not in the cache, where the guards lie next to each other.
        steps = torch.arange(step + 1, device=device).repeat_interleave(n_guards)
        keys = torch.cat([torch.arange(n, device=device).expand(n_prompts, -1), self.end[:, None] + steps], dim=1)
        is_near = (self.end[:, None] + step - keys < window)[:, None, None]
        if not kinds:
            # Configs without a list of kinds: every layer slides.
            return self._additive(is_visible & is_near)
        masks = {"full_attention": is_visible, "sliding_attention": is_visible & is_near}
        return {kind: self._additive(masks[kind]) for kind in kinds}

    def _additive(self, is_visible: Bool[Tensor, "batch 1 guard key"]) -> Tensor:
        dtype = self.vlm.model.dtype
        zeros = torch.zeros(is_visible.shape, dtype=dtype, device=is_visible.device)
        return zeros.masked_fill(~is_visible, torch.finfo(dtype).min)


def first_change(guard: Guard | None, n_layers: int, step: int = 0) -> int:
    """Return the first layer whose output a guard changes at a step or before it; the last one if it changes none."""
    acts = guard is not None and any(_acts_at(guard.positions, earlier) for earlier in range(step + 1))
    return min(guard.layers) if acts else n_layers - 1


def pad_token(vlm: VLM | LLM) -> int:
    """Return the id that fills answers after their end."""
    pad_id = vlm.tokenizer.pad_token_id
    return 0 if pad_id is None else pad_id


def end_tokens(vlm: VLM | LLM) -> Int[Tensor, " token"]:
    ends = vlm.model.generation_config.eos_token_id
    return torch.tensor([ends] if isinstance(ends, int) else list(ends or []), dtype=torch.long)


def _move_end(cache: Cache, n: int) -> None:
    """Keep `n` more of the tokens that the cache was last given; a negative `n` drops tokens."""
    for layer in cache.layers:
        layer.n_kept += n


def _next_positions(
    recorded: Int[Tensor, "*kind row pos"] | None, lengths: Int[Tensor, " batch"], n: int
) -> Int[Tensor, "*kind batch 1"]:
    """Return the position id after the last token of each row: text follows text, so it is the next number.

    Args:
        recorded: position ids that the language model was given; None where it counts by itself.
        lengths: tokens of each row in that pass.
        n: positions that the cache holds, the padding behind shorter rows included.
    """
    if recorded is None:
        return (n - (lengths.max() - lengths))[:, None]
    recorded = recorded.expand(*recorded.shape[:-2], len(lengths), -1)
    last = (lengths - 1)[:, None].expand(*recorded.shape[:-1], 1)
    return recorded.gather(-1, last) + 1


@contextmanager
def _recorded_position_ids(vlm: VLM | LLM) -> Iterator[list[Tensor | None]]:
    """Record the position ids that the language model is given: families count pictures in their own ways."""
    recorded: list[Tensor | None] = []

    def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
        recorded.append(kwargs.get("position_ids"))

    hook = families.language_model(vlm.model).register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield recorded
    finally:
        hook.remove()


@contextmanager
def _guards_applied(
    vlm: VLM | LLM, guards: Sequence[Guard | None], references: Sequence[Tensor | None], step: int
) -> Iterator[None]:
    """Apply each guard to its own token, column `i` of the pass to guard `i`.

    Raises:
        ModelError: a guarded layer did not run.
    """
    silent: set[int] = set()
    active = [i for i, guard in enumerate(guards) if guard and _acts_at(guard.positions, step)]

    def hook_of(layer: int) -> Callable:
        chosen = [i for i in active if layer in guards[i].layers]

        def change(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
            silent.discard(layer)
            resid = (output[0] if isinstance(output, tuple) else output).clone()
            for i in chosen:
                resid[:, i : i + 1] = _change(guards[i], resid[:, i : i + 1], layer, references[i])
            return (resid, *output[1:]) if isinstance(output, tuple) else resid

        return change

    layers = sorted({layer for i in active for layer in guards[i].layers})
    silent.update(layers)
    hooks = [vlm.blocks[layer].register_forward_hook(hook_of(layer)) for layer in layers]
    try:
        yield
        if silent:
            raise guard_was_off(vlm.name, silent)
    finally:
        for hook in hooks:
            hook.remove()


def _change(guard: Guard, resid: Float[Tensor, "batch 1 d_model"], layer: int, states: Tensor | None) -> Tensor:
    everywhere = torch.ones(resid.shape[:2], dtype=torch.bool)
    if not guard.needs_reference:
        return guard.change(resid, layer, None, everywhere)
    is_open = None if guard.gate == "always" else guard.opens(states, layer)
    return guard.change(resid, layer, states[:, layer], everywhere, is_open)


def _acts_at(positions: str, step: int) -> bool:
    """Return whether a guard with these positions acts at a step: step 0 is the prompt's last token."""
    return positions == "last" or (positions == "last_prefill") == (step == 0)
