"""References, gates and unguarded states of the prompts that a guarded model is answering."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.bare import bare
from interp.directions import SafetyDirection
from interp.errors import ModelError
from interp.inputs import text_batch
from interp.position_tracker import PositionTracker, n_copies
from interp.prompt_text import prompt_texts
from interp.stage_times import stage
from interp.vlm import LLM, VLM


@runtime_checkable
class HookedGuard(Protocol):
    """The part of a guard that the hooks use; `interp.guard.Guard` documents it."""

    direction: SafetyDirection
    layers: tuple[int, ...]
    gate: str
    positions: str
    reference: str
    source: str
    frozen_shift: bool
    all_writes: bool
    needs_reference: bool
    reads_prompts: bool
    change: Callable[..., Float[Tensor, "batch pos d_model"]]

    def basis(self, layer: int) -> Float[Tensor, "rank d_model"]: ...

    def read(self, model: VLM | LLM, references: Sequence[str]) -> Float[Tensor, "batch layer d_model"]: ...

    def opens_at(
        self, layer: int, references: Mapping[int, Float[Tensor, "batch d_model"]]
    ) -> Bool[Tensor, " batch"]: ...


class KnownAtLayer(NamedTuple):
    """Knowledge of a guard about its prompts at one layer; None where it needs none."""

    reference: Float[Tensor, "batch d_model"] | None
    is_open: Bool[Tensor, " batch"] | None
    """The gate of each row."""
    unguarded: Float[Tensor, "batch d_model"] | None
    """Last states of the unguarded run, for a frozen shift."""


class GuardedPrompts:
    """References and gates of one batch of prompts after the other, read from the model or passed by the caller."""

    def __init__(self, guard: HookedGuard, vlm: VLM | LLM, states: Float[Tensor, "batch layer d_model"] | None):
        self._guard, self._vlm = guard, vlm
        self._reads_prompts = states is None and guard.needs_reference
        self._passed = {} if states is None else {layer: states[:, layer] for layer in guard.layers}
        """States of the references that were passed, by layer."""
        self._first_prompts: dict[str, Tensor] = {}
        """The prompts that references and lengths which were passed are for, by aspect, once they have run."""
        self._references: dict[int, Tensor] = {}
        """States of the references for the rows of the current batch, by layer."""
        self._open: dict[int, Tensor] = {}
        self._unguarded: dict[int, Tensor] = {}
        self._captured: dict[int, Tensor] | None = None
        """States by layer, collected only during a bare pass that is run for them."""
        self._captured_at: Tensor | None = None
        """Place in each row at which these states are read, counted from the end."""

    def begin(self, tracker: PositionTracker, args: tuple, kwargs: Mapping) -> None:
        """Read the references and gates of the prompts that a pass begins.

        Args:
            tracker: has located the prompts.
            args: arguments of the pass.
            kwargs: those by name.

        Raises:
            ValueError: the rows don't match the references that were passed.
            ModelError: these are for other prompts, or the text of a prompt can't be recovered.
        """
        ids = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs["inputs_embeds"] if ids is None else ids
        self._check_same_prompts(tracker, tokens, kwargs)
        if self._guard.frozen_shift:
            self._unguarded = self._read_unguarded(tracker, args, kwargs)
        if self._reads_prompts:
            self._references = self._read_prompts(tracker, ids)
        elif self._passed:
            self._references = {layer: _repeated(states, tokens) for layer, states in self._passed.items()}
        if self._references and self._guard.gate != "always":
            with stage("gate"):
                self._open = {layer: self._guard.opens_at(layer, self._references) for layer in self._guard.layers}

    def at(self, layer: int) -> KnownAtLayer:
        """Return what is known at a guarded layer."""
        return KnownAtLayer(self._references.get(layer), self._open.get(layer), self._unguarded.get(layer))

    def capture(self, layer: int, resid: Float[Tensor, "..."]) -> None:
        """Keep the states of a bare pass, if it is one that was started here."""
        # Bare passes of other guards come by, too.
        if self._captured is not None:
            rows = torch.arange(len(resid), device=resid.device)
            self._captured[layer] = resid[rows, self._captured_at.to(resid.device)]

    def _check_same_prompts(self, tracker: PositionTracker, tokens: Tensor, kwargs: Mapping) -> None:
        """Check that references and lengths which were passed are not used for other prompts than the first ones.

        Raises:
            ModelError: they would be.
        """
        given = [tracker.prompt_lengths, *self._passed.values()]
        n_given = [len(each) for each in given if each is not None]
        if not n_given:
            return
        # Beams repeat prompts and their pictures.
        times, is_prompt = max(1, n_copies(tokens, n_given[0])), tracker.prompt_mask
        prompts = {"tokens": tokens[::times][is_prompt[::times]], "lengths": is_prompt[::times].sum(1)}
        prompts |= {name: each[::times] for name, each in _pictures(kwargs).items()}
        is_first, first = not self._first_prompts, self._first_prompts
        is_same = all(torch.equal(first[name], part) for name, part in prompts.items() if name in first)
        if not is_first and not (is_same and tracker.has_whole_prompts):
            raise ModelError(
                "another batch of prompts in the same block: the references and lengths that were passed are for the "
                "first one; open a block for each batch: with guard.on(vlm, references)"
            )
        # Copies, since a caller may use the same tensors for the next prompts.
        self._first_prompts = {name: part.clone() for name, part in prompts.items()} | first

    def _read_unguarded(
        self, tracker: PositionTracker, args: tuple, kwargs: Mapping
    ) -> dict[int, Float[Tensor, "batch d_model"]]:
        """Run prompts once more, without any guard and without touching the cache of the real pass.

        Raises:
            ModelError: the pass does not hold whole prompts.
        """
        if not tracker.has_whole_prompts:
            raise ModelError("the first pass does not hold whole prompts, which a frozen shift is measured on")
        # The last token of a row may be an answer's, or padding.
        whole = {name: value for name, value in kwargs.items() if name not in ("past_key_values", "use_cache")}
        places = tracker.ends - tracker.prompt_mask.shape[1]
        return self._capture(lambda: self._vlm.model(*args, **whole, use_cache=False), places)

    def _read_prompts(
        self, tracker: PositionTracker, ids: Int[Tensor, "batch pos"] | None
    ) -> dict[int, Float[Tensor, "batch d_model"]]:
        """Run the prompts without their pictures: the model's own text-only run.

        Raises:
            ModelError: the pass does not hold whole prompts, or their text can't be recovered.
        """
        if ids is None or not tracker.has_whole_prompts:
            raise ModelError("the first pass does not hold whole prompts; pass their references to guard.on")
        batch = text_batch(self._vlm, prompt_texts(self._vlm, ids, tracker.prompt_mask))
        # The batch is padded on the left.
        return self._capture(lambda: self._vlm.model(**batch, use_cache=False), torch.full((len(ids),), -1))

    @torch.no_grad()
    def _capture(
        self, run: Callable[[], object], places: Int[Tensor, " batch"]
    ) -> dict[int, Float[Tensor, "batch d_model"]]:
        """Run a bare pass and return a state of each row by guarded layer, which the hooks collect on the way.

        Args:
            run: runs the pass.
            places: where to read each row, counted from the end of the pass.

        Raises:
            ModelError: a guarded layer does not run.
        """
        self._captured, self._captured_at, captured = {}, places, {}
        try:
            with bare(self._vlm.model), stage("reference"):
                run()
        finally:
            self._captured, captured = None, self._captured
        silent = [layer for layer in self._guard.layers if layer not in captured]
        if silent:
            raise ModelError(
                f"layers {silent} of {self._vlm.name!r} don't run without a picture; pass references explicitly: "
                "guard.on(vlm, references=[...])"
            )
        return captured


def _pictures(kwargs: Mapping) -> dict[str, Tensor]:
    """Return the pictures of a pass; `generate` encodes them before it."""
    encoded = getattr((kwargs.get("mm_encoder_outputs") or {}).get("image"), "pooler_output", None)
    if isinstance(encoded, (list, tuple)):
        encoded = nn.utils.rnn.pad_sequence(list(encoded), batch_first=True)
    found = {"pixels": kwargs.get("pixel_values"), "features": encoded}
    return {name: pictures for name, pictures in found.items() if isinstance(pictures, Tensor)}


def _repeated(states: Float[Tensor, "reference d_model"], tokens: Tensor) -> Float[Tensor, "batch d_model"]:
    """Return references for the rows of a batch, in which `generate` may have repeated each prompt.

    Raises:
        ValueError: the number of references is neither that of the rows nor that of the repeated prompts.
    """
    if not (times := n_copies(tokens, len(states))):
        raise ValueError(f"{len(states)} references for a batch of {len(tokens)} rows; expected one per row")
    return states.repeat_interleave(times, dim=0) if times > 1 else states
