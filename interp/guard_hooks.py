"""A guard at work: hooks that follow the passes through a model, read references, and change states."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interp.bare import is_bare, marked_as_guarded
from interp.errors import ModelError
from interp.families import sublayers
from interp.guarded_prompts import GuardedPrompts, HookedGuard
from interp.inputs import Prompt, collate
from interp.pass_ledger import PassLedger
from interp.position_tracker import PositionTracker
from interp.projection import coordinates, delta_norm
from interp.prompt_text import check_prompts_end
from interp.residual_stream import residual_stream
from interp.stage_times import stage
from interp.vlm import LLM, VLM


@contextmanager
def attached(
    guard: HookedGuard,
    vlm: VLM | LLM,
    references: Sequence[str] | Float[Tensor, "batch layer d_model"] | None,
    prompt_lengths: Sequence[int] | Int[Tensor, " batch"] | None = None,
    explanation: list[dict] | None = None,
) -> Iterator[None]:
    """Put a guard's hooks on a model, inside the block. See `Guard.on`.

    Args:
        guard: the guard.
        vlm: the model.
        references: texts or states, one for each row of the next batch; None if the guard reads the prompts.
        prompt_lengths: tokens of each row's prompt, where passes don't end with it.
        explanation: collects a row for each change, for `explain`.

    Raises:
        ValueError: the direction or the references do not fit the model, or references have to be passed.
        ModelError: the model is compiled; or, at the end of a pass or of the block, the guard was off somewhere.
    """
    _check_fits(guard, vlm, references)
    states = references
    if references is not None and not isinstance(references, Tensor):
        states = guard.read(vlm, references)
    if states is not None and states.shape[1:] != (vlm.n_layers, vlm.d_model):
        raise ValueError(
            f"states of references of shape {tuple(states.shape)}; expected (rows, {vlm.n_layers}, "
            f"{vlm.d_model}), as guard.read gives"
        )
    lengths = None if prompt_lengths is None else [int(length) for length in prompt_lengths]
    work = GuardHooks(guard, vlm, states, lengths, explanation)
    # Called even if a pass fails: nothing of it may be left for the next one.
    handles = [
        vlm.model.register_forward_pre_hook(work.begin_pass, with_kwargs=True),
        vlm.model.register_forward_hook(work.end_pass, always_call=True),
    ]
    try:
        for layer in guard.layers:
            handles += work.register(layer)
        with marked_as_guarded(vlm.model):
            yield
        work.end(handles)
    finally:
        for handle in handles:
            handle.remove()


def _check_fits(guard: HookedGuard, vlm: VLM | LLM, references: object) -> None:
    """Check that a guard can be put on a model.

    Raises:
        ValueError, ModelError: see `attached`.
    """
    basis = guard.direction.basis
    if (len(basis), basis.shape[-1]) != (vlm.n_layers, vlm.d_model):
        raise ValueError(
            f"the direction has {len(basis)} layers of width {basis.shape[-1]}, {vlm.name!r} has {vlm.n_layers} "
            f"of width {vlm.d_model}; fit a direction on this model"
        )
    if any(module._compiled_call_impl is not None for module in vlm.model.modules()):
        raise ModelError(f"{vlm.name!r} is compiled, so its hooks would not run; guard the uncompiled model")
    if references is None and guard.needs_reference and not guard.reads_prompts:
        raise ValueError(
            f"the guard's reference is {guard.reference!r} with source {guard.source!r}, which it can't read from a "
            "prompt; make the texts first, and pass them or their states: guard.on(vlm, references=[...])"
        )


@torch.no_grad()
def explain(
    guard: HookedGuard, vlm: VLM | LLM, prompt: Prompt, references: Sequence[str] | Tensor | None = None
) -> pd.DataFrame:
    """Run one prompt and return what the guard does at its last token.

    Args:
        guard: the guard.
        vlm, prompt, references: see `Guard.explain`.

    Returns:
        One row per guarded layer; see `Guard.explain` for the columns.

    Raises:
        ValueError: the guard changes all writes, so a layer has no single state.
    """
    if guard.all_writes:
        raise ValueError("a guard of all writes can't be explained layer by layer; expected all_writes=False")
    explanation: list[dict] = []
    with attached(guard, vlm, references, explanation=explanation):
        vlm.model(**collate(vlm, [prompt]), use_cache=False)
    return pd.DataFrame(explanation)


class GuardHooks:
    """The hooks of one guard on one model, and what they remember from pass to pass.

    They stay outside of what `torch.compile` traces, which would keep them after the block.
    """

    def __init__(
        self,
        guard: HookedGuard,
        vlm: VLM | LLM,
        states: Float[Tensor, "batch layer d_model"] | None,
        prompt_lengths: Sequence[int] | None,
        explanation: list[dict] | None,
    ):
        self._guard, self._vlm = guard, vlm
        self._tracker = PositionTracker(guard.positions, vlm.placeholder_positions, prompt_lengths)
        parts = ("input", "attention", "MLP") if guard.all_writes else (None,)
        self._ledger = PassLedger(vlm.name, {_place(layer, part) for layer in guard.layers for part in parts})
        self._prompts = GuardedPrompts(guard, vlm, states)
        self._explanation = explanation
        self._n_logits: int | None = None
        """Positions for which the current pass computes logits; None for all."""

    @torch.compiler.disable
    def begin_pass(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Locate positions, and read references and gates for a new prompt: a forward pre-hook of the whole model.

        Raises:
            ValueError: the pass has no tokens, or its rows don't match the references.
            ModelError: the positions of this pass can't be located, or the text of a prompt can't be recovered.
        """
        if module is not self._vlm.model:
            raise ModelError(
                f"a copy of {self._vlm.name!r} runs with the guard of the original (DataParallel makes one for each "
                "device), and only the original can be followed; run it on one device"
            )
        if is_bare(module):
            return
        self._ledger.begin()
        self._n_logits = kwargs.get("logits_to_keep") if isinstance(kwargs.get("logits_to_keep"), int) else None
        ids = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs.get("inputs_embeds") if ids is None else ids
        if tokens is None:
            raise ValueError("a guarded model needs input_ids to locate its tokens; got none")
        if not self._tracker.begin_pass(tokens, kwargs):
            # Generation keeps the references and gates of its prompt.
            return
        if self._tracker.prompt_lengths is None:
            check_prompts_end(self._vlm, tokens, kwargs.get("attention_mask"))
        self._prompts.begin(self._tracker, args, kwargs)

    @torch.compiler.disable
    def end_pass(self, module: nn.Module, args: tuple, output: object) -> None:
        """Forget what holds for this pass alone, and check that every guarded layer ran: a forward hook of the model.

        Raises:
            ModelError: a guarded layer did not run.
        """
        # A pass of another thread was refused when it began, and nothing of it is in the books.
        if is_bare(module) or self._ledger.is_foreign:
            return
        self._tracker.end_pass(output)
        self._ledger.end(output is not None)

    def end(self, handles: Sequence[RemovableHandle]) -> None:
        """Check, at the end of the block, that the guard was never off.

        Raises:
            ModelError: it was, or may have been.
        """
        self._ledger.close(handles)
        self._tracker.check_complete()

    def register(self, layer: int) -> list[RemovableHandle]:
        """Hook a layer where its state is final, usually the block's output; for all writes, where it is written.

        With DeepStack the state is final at the input of the next block: visual features that are added at image
        positions in between would undo part of the change.
        """
        blocks = self._vlm.blocks

        def change_output(
            module: nn.Module, args: tuple, output: Tensor | tuple, part: str | None = None
        ) -> Tensor | tuple:
            if isinstance(output, tuple):
                return self._change(layer, output[0], part), *output[1:]
            return self._change(layer, output, part)

        def change_input(module: nn.Module, args: tuple, kwargs: dict, part: str | None = None) -> tuple[tuple, dict]:
            if args:
                return (self._change(layer, args[0], part), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": self._change(layer, kwargs["hidden_states"], part)}

        if self._guard.all_writes:
            residual_stream(self._vlm).check_parts(self._vlm.name, [layer])
            writes = [
                module.register_forward_hook(partial(change_output, part=part), prepend=True)
                for part, module in zip(("attention", "MLP"), sublayers(blocks[layer]), strict=True)
            ]
            at_input = partial(change_input, part="input")
            block_input = blocks[layer].register_forward_pre_hook(at_input, with_kwargs=True, prepend=True)
            return [block_input, *writes]
        if layer in residual_stream(self._vlm).added_after and layer + 1 < len(blocks):
            return [blocks[layer + 1].register_forward_pre_hook(change_input, with_kwargs=True, prepend=True)]
        # In front of other hooks: the guard that was put on last acts first, and all hooks see the change, including
        # those with which transformers fills `hidden_states`.
        return [blocks[layer].register_forward_hook(change_output, prepend=True)]

    @torch.compiler.disable
    def _change(self, layer: int, resid: Float[Tensor, "..."], part: str | None = None) -> Float[Tensor, "..."]:
        if is_bare(self._vlm.model):
            self._prompts.capture(layer, resid)
            return resid
        self._ledger.record(_place(layer, part))
        mask = self._mask_of(resid)
        reference, is_open, unguarded = self._prompts.at(layer)
        with stage("change"):
            changed = self._guard.change(resid, layer, reference, mask, is_open, unguarded)
        if self._explanation is not None:
            self._explain(layer, resid[:1, -1].float(), changed[:1, -1].float(), reference, is_open)
        return changed

    def _mask_of(self, resid: Tensor) -> Bool[Tensor, "batch pos"]:
        """Return which of a block's states change; some families give their last blocks only the last positions.

        Raises:
            ModelError: the states are not those of the pass's tokens.
        """
        mask = self._tracker.mask
        if resid.dim() != 3:
            raise ModelError(
                f"the blocks of {self._vlm.name!r} pass on states of shape {tuple(resid.shape)}; expected (batch, pos, "
                "d_model)"
            )
        n, n_kept = mask.shape[1], resid.shape[1]
        if n_kept == n or n_kept == self._n_logits:
            return mask[:, n - n_kept :]
        raise ModelError(
            f"a block of {self._vlm.name!r} passes on {n_kept} of the {n} positions of a pass, and which ones is "
            "unknown; guard layers before it"
        )

    def _explain(
        self, layer: int, before: Tensor, after: Tensor, reference: Tensor | None, is_open: Tensor | None
    ) -> None:
        """Append a row about the last token of the first prompt."""
        basis = self._guard.basis(layer).to(before.device)

        def first_coordinate(states: Tensor) -> float:
            return coordinates(states.to(before.device).float(), basis)[0, 0].item()

        self._explanation.append(
            {
                "layer": layer,
                "coordinate": first_coordinate(before),
                "reference_coordinate": float("nan") if reference is None else first_coordinate(reference[:1]),
                "gate": True if is_open is None else bool(is_open[0]),
                "after": first_coordinate(after),
                "delta_norm": delta_norm(after, before).item(),
            }
        )


def _place(layer: int, part: str | None) -> Hashable:
    """Return the name of a place that changes: a layer, or one of its parts."""
    return layer if part is None else f"{layer} ({part})"
