"""In which order prompts are run, and which of them together. Fixed before the first pass."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from interp.inputs import Prompt


@dataclass(frozen=True)
class Plan:
    """Prompts about the same picture stand together, then those with pictures of their own, then text alone."""

    order: tuple[int, ...]
    """Rows of the prompts, in the order in which they are run."""
    keys: tuple[str, ...]
    """Of each prompt: the same for all that begin alike; empty where nothing is shared."""
    batch_size: int

    @classmethod
    def of(cls, prompts: Sequence[Prompt], beginnings: Sequence[str], batch_size: int) -> "Plan":
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
