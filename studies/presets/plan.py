"""Estimates of what a run of a preset takes: data, memory, prompts and tokens; its time, once a model is there."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from interp import LLM, VLM, Prompt
from interp.whole_files import hash_of
from studies.generation.generate import Generation, answers
from studies.presets.preset import DataSpec, ModelShape, Preset

REQUEST_TOKENS = 60
"""Tokens of a request with its chat template, for estimates before a tokenizer is there."""
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
MLP_COPIES, WIDTH_COPIES = 3, 8
"""States of a block that are in memory at once, of the width of its MLP and of the model's own."""
LIBRARIES = 100_000_000
"""Bytes that libraries take while a model answers: their workspaces, and what they load late."""
TIMED_TOKENS = 5
"""Tokens of the longer of two timed answers: the difference is what a token takes."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated bytes of a batch of answers, on the device that runs the model."""

    weights: int
    cache: int
    """Keys and values."""
    states: int
    """The largest of what passes hold besides: states of a block, or logits."""

    @property
    def peak(self) -> int:
        return self.weights + self.cache + self.states + LIBRARIES


def memory_of(shape: ModelShape, dtype: str, batch_size: int, prompt_tokens: int, new_tokens: int) -> MemoryEstimate:
    """Estimate the memory of a batch of answers.

    Args:
        shape: sizes of the model.
        dtype: precision of its weights.
        batch_size: prompts in a batch.
        prompt_tokens: tokens of the longest prompt, its picture included.
        new_tokens: tokens of the longest answer.
    """
    size = BYTES[dtype]
    cache = 2 * shape.layers * shape.kv_width * size * batch_size * (prompt_tokens + new_tokens)
    block = (WIDTH_COPIES * shape.width + MLP_COPIES * shape.mlp_width) * size * batch_size * prompt_tokens
    logits = batch_size * shape.vocabulary * (size + 4)
    return MemoryEstimate(shape.parameters * size, cache, max(block, logits))


def shape_of(model: VLM | LLM, picture_tokens: int = 0) -> ModelShape:
    """Return the shape of a model that is loaded."""
    text = model.model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    d_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        layers=model.n_layers,
        width=model.d_model,
        kv_width=heads * d_head,
        mlp_width=getattr(text, "intermediate_size", 4 * model.d_model),
        vocabulary=text.vocab_size,
        picture_tokens=picture_tokens,
    )


@dataclass(frozen=True)
class AvailableData:
    """Which data sets of a preset are in a folder."""

    available: tuple[str, ...]
    missing: tuple[DataSpec, ...]
    changed: tuple[DataSpec, ...]
    """Sets whose files are not those that the published numbers were measured on."""

    @classmethod
    def look_for(cls, preset: Preset, folder: Path, is_whole: Callable[[DataSpec], bool]) -> "AvailableData":
        """Look for the data of a preset in a folder.

        Args:
            preset: names the files.
            folder: the folder.
            is_whole: says whether a set that is there can be used, its pictures included.
        """
        there = [data for data in preset.data if (folder / data.file).exists() and is_whole(data)]
        changed = [data for data in there if data.sha256 and hash_of((folder / data.file).read_bytes()) != data.sha256]
        missing = [data for data in preset.data if data not in there]
        return cls(tuple(data.name for data in there), tuple(missing), tuple(changed))


@dataclass(frozen=True)
class RunPlan:
    """A run before it starts: its size, its memory, and what is missing for it."""

    preset: Preset
    model: str
    data: AvailableData
    n_answers: int
    n_done: int
    generation: Generation
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Why data sets that are there can't be used, by their names."""

    @property
    def memory(self) -> MemoryEstimate:
        """The estimate for the preset's own model."""
        shape, generation = self.preset.model.shape, self.generation
        tokens = REQUEST_TOKENS + shape.picture_tokens
        return memory_of(shape, self.preset.model.dtype, generation.batch_size, tokens, generation.max_new_tokens)

    def lines(self) -> list[str]:
        """Return the plan in words."""
        preset, model, memory = self.preset, self.preset.model, self.memory
        note = f" ({model.revision_note})" if model.revision_note else ""
        own = f"{model.name}, revision {model.revision}{note}, {model.dtype}, {model.licence}"
        lines = [f"{preset.title} [{preset.name}, {preset.sha256}]"]
        lines.append(f"model: {own}" if self.model == model.name else f"model: {self.model}, in place of {own}")
        if model.needs_code and self.model == model.name:
            lines.append("this checkpoint runs Python code of its own: read it, then give --trust-remote-code")
        lines.append(
            f"{'memory' if self.model == model.name else 'memory of the own model'}: about {_size(memory.peak)} for "
            f"batches of {self.generation.batch_size}: weights {_size(memory.weights)}, keys and values "
            f"{_size(memory.cache)}, states {_size(memory.states)}"
        )
        pictures = f" and {model.shape.picture_tokens} of a picture" if model.shape.picture_tokens else ""
        lines.append(
            f"answers: {self.n_answers}, {self.n_done} of them done; at most "
            f"{self.generation.max_new_tokens} tokens each, to some {REQUEST_TOKENS} tokens of text{pictures}"
        )
        for data in self.data.missing:
            why = self.unreadable.get(data.name)
            lines.append(f"can't be read: {why}" if why else f"missing: {data.file}: {data.get}")
        lines += [
            f"note: {data.file} is not the file that the published numbers were measured on"
            for data in self.data.changed
        ]
        there = set(self.data.available)
        tested = [target for target in preset.targets if set(preset.needs(target)) <= there]
        lines.append(f"targets: {len(tested)} of {len(preset.targets)} can be tested with the data that is there")
        lines += [f"  {target.id}: {target.value:g} ({target.source}) [{target.read_in}]" for target in tested]
        left_out = [target.id for target in preset.targets if target not in tested]
        return [*lines, *(f"  left out, since its data is missing: {name}" for name in left_out)]


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes > 1e8 else f"{n_bytes / 1e6:.0f} MB"


def seconds_for(vlm: VLM | LLM, groups: Sequence[Sequence[Prompt]], generation: Generation) -> float:
    """Estimate the seconds that answers take at most, from a batch of each group with two short answers.

    Args:
        vlm: the model.
        groups: prompts of a kind each, such as those with pictures and those without.
        generation: size of the batches and length of the answers, which many answers end before.
    """
    total = 0.0
    for prompts in groups:
        seconds = []
        # The first one warms up.
        for n_tokens in (1, 1, TIMED_TOKENS):
            began = time.perf_counter()
            answers(vlm, prompts[: generation.batch_size], Generation(n_tokens, generation.batch_size))
            seconds.append(time.perf_counter() - began)
        _, first, longer = seconds
        per_token = max(0.0, longer - first) / (TIMED_TOKENS - 1)
        n_batches = len(prompts) / min(len(prompts), generation.batch_size)
        total += n_batches * (first + per_token * (generation.max_new_tokens - 1))
    return total
