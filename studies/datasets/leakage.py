"""Leakage: test requests that something was fitted on, found by comparing words with the anchors."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

NEAR = 0.8
"""Lowest Jaccard index of content words at which two requests count as the same."""
ROWS_AT_ONCE = 2000
"""Test requests compared at once, which limits memory."""
# Articles, pronouns, auxiliaries, prepositions, and question words; nothing that names an action.
STOP_WORDS = frozenset(
    "a an the this that these those i you he she it we they me him her us them my your his its our their s t "
    "is are was were be been being am do does did have has had can could will would shall should may might must "
    "to of in on at by for with from into as about and or but if than then so not no "
    "how what when where which who whom why there here some any please".split()
)


def normal(text: str) -> str:
    """Return the words of a text in lower case, without punctuation, one space between them."""
    return " ".join(re.findall(r"\w+", text.lower().replace("’", "").replace("'", "")))


def content_words(text: str) -> frozenset[str]:
    """Return the words of a text that are not stop words."""
    return frozenset(normal(text).split()) - STOP_WORDS


@dataclass(frozen=True)
class Leakage:
    """Test requests that are also anchors, up to case, punctuation and spaces, or nearly."""

    rows: pd.DataFrame
    """Columns `test` (id), `anchor` (text of the nearest one), `kind` (`exact` or `near`) and `jaccard`."""
    n_tests: int
    n_anchors: int

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the test requests that should be left out."""
        return frozenset(self.rows.test)

    def __str__(self) -> str:
        exact = int((self.rows.kind == "exact").sum())
        return (
            f"{len(self.rows)} of {self.n_tests} test requests are among the {self.n_anchors} anchors: {exact} word "
            f"for word, {len(self.rows) - exact} with Jaccard >= {NEAR} on content words"
        )


def find_leakage(anchors: Sequence[str], ids: Sequence[str], tests: Sequence[str]) -> Leakage:
    """Find test requests that are also anchors, up to case, punctuation and spaces, or nearly.

    Args:
        anchors: texts that something was fitted on.
        ids: ids of the test requests.
        tests: texts of the test requests, in the same order.
    """
    exact = {normal(text): text for text in anchors}
    places, nearest = _nearest(anchors, tests)
    rows = []
    for id, text, place, jaccard in zip(ids, tests, places, nearest, strict=True):
        if normal(text) in exact:
            rows.append({"test": id, "anchor": exact[normal(text)], "kind": "exact", "jaccard": 1.0})
        elif jaccard >= NEAR:
            rows.append({"test": id, "anchor": anchors[place], "kind": "near", "jaccard": float(jaccard)})
    table = pd.DataFrame(rows, columns=["test", "anchor", "kind", "jaccard"])
    return Leakage(table, len(tests), len(anchors))


def _nearest(anchors: Sequence[str], tests: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each test, the anchor with the largest Jaccard index, and that index; 0 without content words."""
    words = [content_words(text) for text in (*anchors, *tests)]
    incidence = _incidence(words)
    anchor_words, sizes = incidence[: len(anchors)].T.tocsc(), incidence.sum(axis=1)
    places, nearest = np.zeros(len(tests), int), np.zeros(len(tests))
    for start in range(0, len(tests) if anchors else 0, ROWS_AT_ONCE):
        part = incidence[len(anchors) + start : len(anchors) + start + ROWS_AT_ONCE]
        shared = (part @ anchor_words).tocoo()
        rows, columns = shared.coords
        union = sizes[len(anchors) + start + rows] + sizes[columns] - shared.data
        order = np.argsort(shared.data / union, kind="stable")
        # Later assignments overwrite earlier ones, so the largest index is kept.
        places[start + rows[order]] = columns[order]
        nearest[start + rows[order]] = (shared.data / union)[order]
    return places, nearest


def _incidence(words: Sequence[frozenset[str]]) -> csr_array:
    """Return a matrix [text word] that is 1 if the text has the word."""
    column = {word: i for i, word in enumerate(sorted(frozenset().union(*words)))}
    columns = [column[word] for text in words for word in sorted(text)]
    ends = np.cumsum([0, *map(len, words)])
    return csr_array((np.ones(len(columns), np.int64), columns, ends), shape=(len(words), len(column)))
