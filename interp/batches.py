"""Batches: in which order prompts are run, and which of them together. Fixed before the first pass."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from interp.errors import if_it_fits
from interp.identity import prompt_record
from interp.inputs import Prompt

__all__ = [
    "Advance",
    "batches",
    "in_halves",
]

T = TypeVar("T")

Advance = Callable[[int], None]
"""Reports progress: called with the number of prompts (or runs) finished since the last call."""


def batches(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Return the rows of each batch: the same number of pictures within a batch, similar lengths together."""
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].n_characters, i))
    counts = sorted({len(prompt.pictures) for prompt in prompts})
    groups = [[i for i in order if len(prompts[i].pictures) == n] for n in counts]
    return [rows[start : start + size] for rows in groups for start in range(0, len(rows), size)]


def in_batches(
    prompts: Sequence[Prompt],
    batch_size: int,
    run: Callable[[list[int]], Mapping[str, np.ndarray]],
    advance: Advance = lambda n_prompts: None,
) -> dict[str, np.ndarray]:
    """Run prompts in `batches`, and return the results in the order of the prompts.

    Args:
        prompts: any mixture of modalities.
        batch_size: prompts in one call of `run`.
        run: takes the rows of a batch; returns arrays with one row per prompt. If memory runs out, it is given halves.
        advance: called with the number of prompts finished after each batch.

    Returns:
        The arrays of `run`, with one row per prompt.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("no prompts; expected at least one")
    plan, parts = batches(prompts, batch_size), []
    for rows, part in in_halves(plan, run):
        parts.append(part)
        advance(len(rows))
    prompt_order = np.argsort(np.concatenate(plan))
    return {name: np.concatenate([part[name] for part in parts])[prompt_order] for name in parts[0]}


def in_halves(plan: Sequence[list[int]], run: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """Run batch after batch; where memory runs out, go on with batches half as large.

    Yields:
        The rows of each batch that was run, in the order of the plan, and what `run` has returned for it.

    Raises:
        ModelError: one row alone does not fit.
    """
    size = max(map(len, plan), default=1)
    left = [list(rows) for rows in reversed(plan)]
    while left:
        rows = left.pop()
        if len(rows) > size:
            left += [rows[start : start + size] for start in range(0, len(rows), size)][::-1]
            continue
        result = if_it_fits(partial(run, rows), len(rows))
        if result is None:
            size = len(rows) // 2
            left.append(rows)
        else:
            yield rows, result


@dataclass(frozen=True)
class BatchPlan:
    """The order of a trace: prompts about the same picture, then prompts with pictures of their own, then text only."""

    order: tuple[int, ...]
    """Rows of the prompts, in the order in which they are run."""
    keys: tuple[str, ...]
    """One key per prompt: equal for prompts that share their beginning, empty where nothing is shared."""
    batch_size: int

    @classmethod
    def of(cls, prompts: Sequence[Prompt], beginnings: Sequence[str], batch_size: int) -> "BatchPlan":
        """Plan the batches; within each group, prompts of similar length come together.

        Args:
            prompts: all prompts of a trace.
            beginnings: a name for what comes before each request; empty where that is not worth sharing.
            batch_size: prompts between two marks in a store, and at most in one pass.
        """
        count = Counter(beginnings)
        keys = tuple(key if key and count[key] > 1 else "" for key in beginnings)
        lengths = [prompt.n_characters for prompt in prompts]
        rank = [(not keys[i], keys[i], -len(prompts[i].pictures), lengths[i], i) for i in range(len(prompts))]
        return cls(tuple(sorted(range(len(prompts)), key=rank.__getitem__)), keys, min(batch_size, len(prompts)))

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return -(-len(self.order) // self.batch_size)

    def part(self, batch: int) -> slice:
        """Return the batch's place in the order."""
        start = batch * self.batch_size
        return slice(start, min(start + self.batch_size, len(self.order)))

    def rows(self, batch: int) -> tuple[int, ...]:
        """Return the rows of the batch's prompts."""
        return self.order[self.part(batch)]

    def batch(self, batch: int, prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[str]]:
        """Return the batch's prompts and their keys."""
        rows = self.rows(batch)
        return [prompts[i] for i in rows], [self.keys[i] for i in rows]


def prompt_batches(prompts: Sequence[Prompt], batch_size: int) -> Iterator[tuple[list[int], str]]:
    """Yield the rows of each batch, and the key of the prefix that its prompts share (empty if they share none).

    Prompts without a shared prefix have the same number of pictures within a batch.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("no prompts; expected at least one")
    hashes: dict = {}
    plan = BatchPlan.of(prompts, [prompt_record(prompt, hashes)["beginning"] for prompt in prompts], batch_size)
    kinds = [(key, len(prompt.pictures)) for key, prompt in zip(plan.keys, prompts, strict=True)]
    rows: list[int] = []
    for i in plan.order:
        if rows and (len(rows) == batch_size or kinds[i] != kinds[rows[0]]):
            yield rows, plan.keys[rows[0]]
            rows = []
        rows.append(i)
    yield rows, plan.keys[rows[0]]
