"""Splits queries into anchors, validation and test; pairs and copies are never divided."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from interp import Query
from studies.datasets.copies import kept_together
from studies.datasets.rows import QueryFileError

SHARES = {"anchors": 0.5, "validation": 0.25, "test": 0.25}
SMALLEST = 5
"""Smallest number of queries of each class, and of groups, in each split: the number of folds of the probes."""


def is_paired(queries: Sequence[Query]) -> bool:
    """Return whether every query has exactly one partner of the other class."""
    pairs = defaultdict(list)
    for query in queries:
        pairs[query.pair].append(query.harmful)
    return None not in pairs and all(sorted(labels) == [False, True] for labels in pairs.values())


def split_queries(queries: Sequence[Query], seed: int = 0) -> dict[str, tuple[Query, ...]]:
    """Split queries into half anchors, a quarter validation and a quarter test.

    Pairs stay together, and so do exact and near copies, also across pairs; splits are stratified by class and
    category.

    Raises:
        QueryFileError: a class is empty, or too small to be divided.
    """
    groups, texts = defaultdict(list), [query.text for query in queries]
    for query, group in zip(queries, kept_together([query.pair for query in queries], texts), strict=True):
        groups[group].append(query)
    strata = defaultdict(list)
    for group in sorted(groups.values(), key=lambda group: min(query.group for query in group)):
        strata[(group[0].category, any(query.harmful for query in group))].append(group)
    rng, order = np.random.default_rng(seed), []
    for stratum in strata.values():
        # A place in [0, 1) for each group: cutting the line anywhere divides every stratum in the same proportion.
        places = (rng.permutation(len(stratum)) + rng.random()) / len(stratum)
        order += zip(places, stratum, strict=True)
    order.sort(key=lambda item: item[0])
    bounds = np.cumsum([round(share * len(order)) for share in SHARES.values()][:-1])
    parts = (order[: bounds[0]], order[bounds[0] : bounds[1]], order[bounds[1] :])
    splits = {split: tuple(q for _, group in part for q in group) for split, part in zip(SHARES, parts, strict=True)}
    _check_sizes(queries, splits, dict(zip(SHARES, map(len, parts), strict=True)))
    return splits


def _check_sizes(queries: Sequence[Query], splits: dict[str, tuple[Query, ...]], group_counts: dict[str, int]) -> None:
    for split, n_groups in group_counts.items():
        if 0 < n_groups < SMALLEST:
            raise QueryFileError(
                f"{n_groups} pairs or single queries for the split {split!r}; a study needs at least {SMALLEST}, and "
                "never divides a pair, or copies of a text"
            )
    for label, name in ((True, "harmful"), (False, "harmless")):
        n = sum(query.harmful == label for query in queries)
        for split, part in splits.items():
            n_here = sum(query.harmful == label for query in part)
            if n_here < SMALLEST:
                raise QueryFileError(
                    f"{n} {name} queries, {n_here} of them for the split {split!r}; a study needs at least {SMALLEST} "
                    f"in each split, which {5 * SMALLEST} or more of each class will give"
                )
