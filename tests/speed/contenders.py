"""Alternatives to `trace` that a user could write: from prompts to `resid_post` of every layer at token `last`."""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp import VLM, Lens, Prompt, collate, trace
from interp.lens import structural_copy

BATCH_SIZE = 16
"""Batch size of every contender that runs batches."""

States = Float[Tensor, "prompt layer d_model"]
Contender = Callable[[Sequence[Prompt]], States]


def _in_batches(vlm: VLM, run: Callable[[Mapping[str, Tensor]], Float[Tensor, "batch layer d_model"]]) -> Contender:
    def contender(prompts: Sequence[Prompt]) -> States:
        starts = range(0, len(prompts), BATCH_SIZE)
        with torch.no_grad():
            return torch.cat([run(collate(vlm, prompts[start : start + BATCH_SIZE])) for start in starts])

    return contender


def _of_hidden_states(hidden_states: Sequence[Tensor], last: Tensor) -> Float[Tensor, "batch layer d_model"]:
    """Join the states of Hugging Face with the last block's, from a hook: theirs has passed the final norm."""
    return torch.stack([*(state[:, -1].float().cpu() for state in hidden_states[1:-1]), last], dim=1)


def plain(vlm: VLM, **kwargs) -> Contender:
    """Return the forward pass with `output_hidden_states=True` and other keyword arguments."""

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        with hooked(vlm.blocks[-1:]) as last:
            states = vlm.model(**batch, output_hidden_states=True, **kwargs).hidden_states
        return _of_hidden_states(states, last[0])

    return _in_batches(vlm, run)


CAREFUL = {"use_cache": False, "logits_to_keep": 1}


def _hidden(output: Tensor | tuple) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def hooked(blocks: nn.ModuleList) -> Iterator[list[Tensor]]:
    """Collect the outputs of blocks at the last token."""
    seen = []
    hooks = [
        block.register_forward_hook(lambda module, args, output: seen.append(_hidden(output)[:, -1].float().cpu()))
        for block in blocks
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def raw_hooks(vlm: VLM) -> Contender:
    """Return a pass with PyTorch's own forward hooks on every block."""

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        with hooked(vlm.blocks) as seen:
            vlm.model(**batch, **CAREFUL)
        return torch.stack(seen, dim=1)

    return _in_batches(vlm, run)


def transformer_lens(vlm: VLM) -> Contender:
    """Return `run_with_cache` with a filter on the names; its attention is eager."""
    return _in_batches(vlm, Lens(vlm).resid_post)


def eager(vlm: VLM) -> VLM:
    """Return the same weights with the attention of TransformerLens."""
    model = structural_copy(vlm.model)
    model.set_attn_implementation("eager")
    return VLM(model, vlm.processor, vlm.name)


class OneByOne:
    """The design of VLM-Lens: one prompt at a time, hooks, and a commit to SQLite for each tensor."""

    def __init__(self, vlm: VLM):
        self.vlm, self.on_disk = vlm, 0.0
        """Seconds that the last call spent in SQLite."""

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt]) -> States:
        self.on_disk, states = 0.0, []
        with TemporaryDirectory() as folder, sqlite3.connect(Path(folder) / "tensors.db") as disk:
            disk.execute("CREATE TABLE tensors (name TEXT, layer INTEGER, tensor BLOB)")
            for prompt in prompts:
                with hooked(self.vlm.blocks) as seen:
                    self.vlm.model(**collate(self.vlm, [prompt]))
                states.append(torch.cat(seen))
                began = time.perf_counter()
                for layer, state in enumerate(seen):
                    row = (prompt.text, layer, state.numpy().tobytes())
                    disk.execute("INSERT INTO tensors VALUES (?, ?, ?)", row)
                    disk.commit()
                self.on_disk += time.perf_counter() - began
        return torch.stack(states)


def ours(vlm: VLM, **kwargs) -> Contender:
    """Return `interp.trace` with other keyword arguments."""
    return lambda prompts: torch.from_numpy(trace(vlm, prompts, **kwargs).resid_post.values[:, :, 0])
