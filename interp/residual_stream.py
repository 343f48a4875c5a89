"""Places at which a model adds to its residual stream, found by running it once.

Names of modules don't tell: some families scale what attention and MLP put out, some add features between blocks, some
have layers without attention. So a short prompt is run, what goes into and comes out of each block and its parts is
compared, and only what adds up is offered.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from interp import families
from interp.bare import bare
from interp.errors import ModelError
from interp.evaluation_mode import evaluation_mode
from interp.inputs import Inputs, collate, text_prompt
from interp.offloading import is_on_server
from interp.pass_ledger import CAUSES
from interp.typography import noise_picture
from interp.vlm import LLM, VLM

N_ROUNDINGS = 4
"""Roundings in which a sum may differ from what comes out of a block."""
TEXT = "Tell me, please, what the capital of that country is called today."
PARTS = {"attn_out": 0, "mlp_out": 1}
"""Sites of the parts of a block, with their places among `families.sublayers`."""


@dataclass(frozen=True)
class ResidualStream:
    """Findings on one model."""

    without_sum: Mapping[int, str]
    """Layers whose parts don't add up to what the block adds, or that lack one, with the reason."""
    added_after: frozenset[int]
    """Layers after which something is added before the next block runs, as DeepStack does (arXiv:2406.04334)."""

    @property
    def left_out(self) -> str:
        """Words for the layers at which attention and MLP can't be read, and why; empty if there are none."""
        layers_of: dict[str, list[int]] = {}
        for layer, reason in sorted(self.without_sum.items()):
            layers_of.setdefault(reason, []).append(layer)
        return ", ".join(f"at layers {layers} ({reason})" for reason, layers in layers_of.items())

    def check_parts(self, name: str, layers: Sequence[int]) -> None:
        """Check that attention and MLP can be read at some layers as what they add to the stream.

        Args:
            name: name of the model, for messages.
            layers: the layers.

        Raises:
            ModelError: there are layers at which they can't; the message says why, and which are left.
        """
        wrong = [layer for layer in layers if layer in self.without_sum]
        if not wrong:
            return
        left = [layer for layer in layers if layer not in self.without_sum]
        advice = f"; at layers {left} they can be read" if left else ""
        reasons = "; ".join(dict.fromkeys(self.without_sum[layer] for layer in wrong))
        raise ModelError(f"attn_out and mlp_out of {name!r} can't be read at layers {wrong}: {reasons}{advice}")


_FOUND: WeakKeyDictionary[nn.Module, ResidualStream] = WeakKeyDictionary()


def residual_stream(model: VLM | LLM) -> ResidualStream:
    """Return where a model adds to its residual stream; it is run once.

    Raises:
        ModelError: the states of its blocks have not the shape (batch, pos, d_model).
    """
    if model.model not in _FOUND:
        _FOUND[model.model] = _find(model)
    return _FOUND[model.model]


def _find(model: VLM | LLM) -> ResidualStream:
    if (isinstance(model, VLM) and model.processor is None) or is_on_server(model.model):
        return _untried(model)
    without_sum, added_after, has_run = {}, set(), set()
    for batch in _trial_batches(model):
        passed = _watch(model, batch)
        layers = sorted(passed)
        has_run.update(layers)
        for layer in layers:
            if reason := _why_no_sum(model, layer, passed[layer]):
                without_sum.setdefault(layer, reason)
        for layer, following in zip(layers, layers[1:], strict=False):
            # Exactly: without an addition, the next block gets the very numbers.
            before = passed[following].before
            if not torch.equal(passed[layer].after.to(before.device), before):
                added_after.add(layer)
    if not has_run:
        raise ModelError(f"no block of {model.name!r} runs through its hooks: {CAUSES}")
    without_sum |= {layer: "it did not run in a trial" for layer in range(model.n_layers) if layer not in has_run}
    return ResidualStream(without_sum, frozenset(added_after))


def _untried(model: VLM | LLM) -> ResidualStream:
    """Return what structure and config say, where no processor makes inputs, or the weights are on a server."""
    reasons = {layer: _why_uncertain(block) for layer, block in enumerate(model.blocks)}
    without_sum = {layer: reason for layer, reason in reasons.items() if reason}
    return ResidualStream(without_sum, families.deepstack_layers(model.model.config))


def _why_uncertain(block: nn.Module) -> str:
    """Return why the parts of a block may not add up to what it adds; "" if nothing says so."""
    try:
        families.sublayers(block)
    except ModelError as error:
        return str(error)
    scales = [name for name, _ in (*block.named_parameters(recurse=False), *block.named_buffers(recurse=False))]
    if getattr(block, "residual_multiplier", 1.0) != 1.0:
        scales.append("residual_multiplier")
    return f"its {' and '.join(scales)} may scale what its parts put out, and it can't be tried here" if scales else ""


def _trial_batches(model: VLM | LLM) -> Iterator[Inputs]:
    """Yield a short prompt without a picture, and one with; those that the model can be given."""
    prompt = text_prompt(TEXT)
    try:
        yield collate(model, [prompt])
    except ValueError:
        # Some families take no prompt without a picture.
        pass
    if isinstance(model, VLM):
        yield collate(model, [replace(prompt, pictures=(noise_picture(model.picture_size, 0),))])


@dataclass
class _Passed:
    """States that went through one block."""

    before: Tensor | None = None
    after: Tensor | None = None
    parts: tuple[Tensor | None, Tensor | None] = (None, None)


def _watch(model: VLM | LLM, batch: Inputs) -> dict[int, _Passed]:
    """Run a batch, and return what went through each block that ran."""
    passed: dict[int, _Passed] = {}
    with ExitStack() as stack, torch.no_grad(), bare(model.model), evaluation_mode(model.model):
        for layer, block in enumerate(model.blocks):

            def enter(module, args, kwargs, layer=layer):
                state = args[0] if args else kwargs["hidden_states"]
                passed[layer] = _Passed(before=_checked(model, state))

            def leave(module, args, output, layer=layer):
                passed[layer].after = _checked(model, first_tensor(output))

            handles = [block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)]
            try:
                parts = families.sublayers(block)
            except ModelError:
                parts = ()
            for i, part in enumerate(parts):

                def keep(module, args, output, layer=layer, i=i):
                    if layer not in passed:
                        # Its block was called past its hooks.
                        return
                    own = list(passed[layer].parts)
                    own[i] = as_states(first_tensor(output), passed[layer].before).detach().clone()
                    passed[layer].parts = tuple(own)

                handles.append(part.register_forward_hook(keep))
            for handle in handles:
                stack.callback(handle.remove)
        model.model(**batch, use_cache=False)
    return passed


def _checked(model: VLM | LLM, state: Tensor) -> Tensor:
    if state.dim() != 3:
        raise ModelError(
            f"the blocks of {model.name!r} pass on states of shape {tuple(state.shape)}; expected (batch, pos, "
            "d_model), one state per token: this family keeps several, and none of them is the residual stream"
        )
    # Some families go on to write into it.
    return state.detach().clone()


def first_tensor(output: Tensor | tuple) -> Tensor:
    """Return a module's states: its output, or the first of several."""
    return output[0] if isinstance(output, tuple) else output


def as_states(output: Tensor, like: Tensor) -> Tensor:
    """Return the output of a part in the shape of the states; mixtures of experts may return it flat."""
    return output.view(like.shape) if output.dim() == 2 and output.numel() == like.numel() else output


def _why_no_sum(model: VLM | LLM, layer: int, passed: _Passed) -> str:
    """Return why the parts of a block don't add up to what it adds; "" if they do."""
    if None in passed.parts:
        try:
            families.sublayers(model.blocks[layer])
        except ModelError as error:
            return str(error)
        return "attention or MLP did not run"
    attention, mlp = passed.parts
    if attention.shape != passed.before.shape or mlp.shape != passed.before.shape:
        return f"its parts put out the shapes {tuple(attention.shape)} and {tuple(mlp.shape)}"
    if not _adds_up((passed.before, attention, mlp), passed.after):
        return "they are scaled, or something else is added, before the block passes the stream on"
    return ""


def _adds_up(parts: Sequence[Tensor], total: Tensor) -> bool:
    """Return whether parts sum to a total but for rounding, number by number: huge ones must not hide the others."""
    parts = [part.to(total.device).float() for part in parts]
    rounding = N_ROUNDINGS * torch.finfo(total.dtype).eps * sum(part.abs() for part in parts)
    return bool(((sum(parts) - total.float()).abs() <= rounding).all())
