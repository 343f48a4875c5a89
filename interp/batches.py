"""In which order prompts are run, and which of them together. Fixed before the first pass."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interp.inputs import Prompt


def batches(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Rows of each batch: the same number of pictures in all of its prompts, similar lengths together."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].text) + len(prompts[i].system), i))
    counts = sorted({len(prompt.pictures) for prompt in prompts})
    alike = [[i for i in order if len(prompts[i].pictures) == n] for n in counts]
    return [rows[start : start + size] for rows in alike for start in range(0, len(rows), size)]


def in_batches(
    prompts: Sequence[Prompt],
    batch_size: int,
    run: Callable[[list[int]], Mapping[str, np.ndarray]],
    advance: Callable[[int], None] = lambda n_prompts: None,
) -> dict[str, np.ndarray]:
    """Runs prompts in `batches`; the results come in the order of the prompts.

    Args:
        prompts: any mixture of modalities.
        batch_size: prompts in one call of `run`.
        run: from the rows of a batch to arrays, each with one row a prompt.
        advance: called with the number of prompts done after each batch.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("no prompts; expected at least one")
    plan, found = batches(prompts, batch_size), []
    for rows in plan:
        found.append(run(rows))
        advance(len(rows))
    back = np.argsort(np.concatenate(plan))
    return {name: np.concatenate([batch[name] for batch in found])[back] for name in found[0]}


@dataclass(frozen=True)
class BatchPlan:
    """Prompts about the same picture stand together, then those with pictures of their own, then text alone."""

    order: tuple[int, ...]
    """Rows of the prompts, in the order in which they are run."""
    keys: tuple[str, ...]
    """Of each prompt: the same for all that begin alike; empty where nothing is shared."""
    batch_size: int

    @classmethod
    def of(cls, prompts: Sequence[Prompt], beginnings: Sequence[str], batch_size: int) -> "BatchPlan":
        """Within what stands together, similar lengths come together.

        Args:
            prompts: to be run.
            beginnings: names what stands before each request; empty where that is not worth sharing.
            batch_size: prompts between two marks in a store, and at most in one pass.
        """
        count = Counter(beginnings)
        keys = tuple(key if key and count[key] > 1 else "" for key in beginnings)
        lengths = [len(prompt.text) + len(prompt.system) for prompt in prompts]
        rank = [(not keys[i], keys[i], -len(prompts[i].pictures), lengths[i], i) for i in range(len(prompts))]
        return cls(tuple(sorted(range(len(prompts)), key=rank.__getitem__)), keys, min(batch_size, len(prompts)))

    @property
    def n_batches(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def part(self, batch: int) -> slice:
        """The batch's place in the order."""
        start = batch * self.batch_size
        return slice(start, min(start + self.batch_size, len(self.order)))

    def rows(self, batch: int) -> tuple[int, ...]:
        """The batch's prompts."""
        return self.order[self.part(batch)]

    def batch(self, batch: int, prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[str]]:
        """The batch's prompts, and the keys of what they share."""
        rows = self.rows(batch)
        return [prompts[i] for i in rows], [self.keys[i] for i in rows]
