"""Requests in natural English: 300 pairs of a harmful request and a harmless one with the same verb and form.

Every content word occurs in both classes, so that harm is in the combination of words. There are requests only: nothing
says how anything harmful is done.
"""

import csv
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path

from interp import Query

FILE = Path(__file__).with_name("requests.csv")
"""Columns text, harmful, category, pair and split."""
NAME = "english"
"""Name of these queries in tables."""
SPLITS = ("anchors", "validation", "test")


@cache
def queries(split: str) -> tuple[Query, ...]:
    """Return the queries of a split, each harmful one followed by its harmless partner.

    Pairs are in an order in which the first ones come from all categories in turn.

    Raises:
        ValueError: the split does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} does not exist; expected one of {', '.join(SPLITS)}")
    pairs: dict[str, list[Query]] = {}
    with FILE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == split:
                query = Query(row["text"], row["harmful"] == "1", row["category"], row["pair"], split=split)
                pairs.setdefault(row["pair"], []).append(query)
    by_category: dict[str, list[list[Query]]] = {}
    for pair in pairs.values():
        pair.sort(key=lambda query: not query.harmful)
        by_category.setdefault(pair[0].category, []).append(pair)
    in_turn = (pair for pairs in zip_longest(*by_category.values()) for pair in pairs if pair is not None)
    return tuple(chain(*in_turn))
