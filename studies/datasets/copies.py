"""Copies within a file: texts that repeat others exactly or nearly, and have to stay in one split with them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from interp import Query
from studies.datasets.leakage import NEAR, content_words, near_pairs, normal

N_NAMED = 5
"""At most this many groups of copies are printed."""


def originals(texts: Sequence[str]) -> list[str]:
    """Return for each text the first one of its copies, exact or near, in the same order.

    Copies of copies count: texts that are connected by a chain of them have the same original.
    """
    return list(_originals(tuple(texts)))


# A file is compared with itself to divide it, to count its copies, and for the folds of each split.
@lru_cache(maxsize=8)
def _originals(texts: tuple[str, ...]) -> tuple[str, ...]:
    normals = [normal(text) for text in texts]
    words = {text: content_words(text) for text in dict.fromkeys(normals)}
    # Texts with the same content words are compared as one, so that thousands of repetitions are no more work.
    distinct = list(dict.fromkeys(filter(None, words.values())))
    place = {own: i for i, own in enumerate(distinct)}
    # Texts without content words are copies of each other only word for word.
    nodes = [place.get(words[text], f"exact {text}") for text in normals]
    root = _roots(len(distinct), near_pairs(distinct))
    first: dict[object, str] = {}
    keys = [root[node] if isinstance(node, int) else node for node in nodes]
    return tuple(first.setdefault(key, text) for key, text in zip(keys, texts, strict=True))


def _roots(n: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return for each of n nodes the same node of all that are connected by pairs."""
    parents = list(range(n))

    def find(node: int) -> int:
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for first, second in pairs:
        parents[find(first)] = find(second)
    return [find(node) for node in range(n)]


def kept_together(pairs: Sequence[str | None], texts: Sequence[str]) -> np.ndarray:
    """Return the group of each query, which no split or fold may divide: its pair, its copies, and theirs."""
    # Imported here: the probes' libraries take more memory than the data files that are read without them.
    from probes import as_groups

    return as_groups(pairs, originals(texts))


@dataclass(frozen=True)
class Copies:
    """Queries that repeat one of another pair; they stay in one split with it."""

    groups: tuple[tuple[str, ...], ...]
    """Texts of each group of copies in the order of the file, repetitions included."""
    n_exact: int
    """Queries that repeat an earlier one up to case, punctuation and spaces."""
    n_near: int
    """Queries that repeat an earlier one nearly."""
    n_queries: int

    @classmethod
    def among(cls, queries: Sequence[Query]) -> "Copies":
        """Find the copies among queries; partners that are nearly the same stay together anyway, and do not count."""
        groups, exact, near = defaultdict(list), 0, 0
        for query, original in zip(queries, originals([query.text for query in queries]), strict=True):
            groups[original].append(query)
        groups = [group for group in groups.values() if len({query.pair or i for i, query in enumerate(group)}) > 1]
        for group in groups:
            n_kinds = len({normal(query.text) for query in group})
            exact, near = exact + len(group) - n_kinds, near + n_kinds - 1
        texts = tuple(tuple(query.text for query in group) for group in groups)
        return cls(texts, exact, near, len(queries))

    def __str__(self) -> str:
        n = self.n_exact + self.n_near
        start = f"{n} of {self.n_queries} queries repeat another one"
        if not n:
            return start
        return (
            f"{start}: {self.n_exact} word for word, {self.n_near} with Jaccard >= {NEAR} on content words; each stays "
            f"in one split with what it repeats ({len(self.groups)} groups): {self.named()}"
        )

    def named(self) -> str:
        """Name the largest groups by their first text."""
        largest = sorted(self.groups, key=len, reverse=True)
        names = [f"{group[0]!r} ({len(group)} queries)" for group in largest[:N_NAMED]]
        more = len(largest) - N_NAMED
        return ", ".join(names) + (f" and {more} more" if more > 0 else "")

    def record(self) -> dict[str, object]:
        """Return the summary and all groups, for the provenance."""
        return {"summary": str(self), "groups": [list(Counter(group)) for group in self.groups]}
