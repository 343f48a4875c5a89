"""Leakage: test requests that something was fitted on, and copies within a file, found by comparing words."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

NEAR = 0.8
"""Lowest Jaccard index of content words at which two requests count as the same."""
CELLS_AT_ONCE = 2_000_000
"""Pairs of texts compared at once, which limits memory."""
# Articles, pronouns, auxiliaries, prepositions, and question words; nothing that names an action.
STOP_WORDS = frozenset(
    "a an the this that these those i you he she it we they me him her us them my your his its our their s t "
    "is are was were be been being am do does did have has had can could will would shall should may might must "
    "to of in on at by for with from into as about and or but if than then so not no "
    "how what when where which who whom why there here some any please".split()
)
WORDS = re.compile(r"[^\W_]+")


def normal(text: str) -> str:
    """Return the words of a text in lower case, without punctuation, one space between them."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("’", "").replace("'", "")
    return " ".join(WORDS.findall(plain))


def content_words(text: str) -> frozenset[str]:
    """Return the words of a text that are not stop words."""
    return _without_stop_words(normal(text))


def _without_stop_words(normal_text: str) -> frozenset[str]:
    return frozenset(normal_text.split()) - STOP_WORDS


@dataclass(frozen=True)
class TextKey:
    """The words of a text as they are compared: plain, or hashed so that the text can be found without being kept."""

    name: str
    """Name in reports: the text itself, or its split and place."""
    whole: str
    words: frozenset[str]

    @classmethod
    def of(cls, text: str) -> "TextKey":
        """Read the words of a text."""
        whole = normal(text)
        return cls(text, whole, _without_stop_words(whole))

    def hashed(self, name: str | None = None) -> "TextKey":
        """Hash the text and each of its words, and optionally rename it; equal texts and words stay equal."""
        return TextKey(name or self.name, _hash(self.whole), frozenset(map(_hash, self.words)))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Leakage:
    """Test requests that are also anchors, up to case, punctuation and spaces, or nearly."""

    rows: pd.DataFrame
    """Columns `test` (id), `anchor` (text of the nearest one), `kind` (`exact` or `near`) and `jaccard`."""
    n_tests: int
    n_anchors: int
    split: str = "anchors"
    """Split of what is called anchors above; the guard was chosen on `validation`."""
    tested: str = "test"
    """Split of what is called tests above."""

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the test requests that should be left out."""
        return frozenset(self.rows.test)

    def __str__(self) -> str:
        exact = int((self.rows.kind == "exact").sum())
        others = "anchors" if self.split == "anchors" else f"{self.split} requests"
        return (
            f"{len(self.rows)} of {self.n_tests} {self.tested} requests are among the {self.n_anchors} {others}: "
            f"{exact} word for word, {len(self.rows) - exact} with Jaccard >= {NEAR} on content words"
        )


def find_leakage(
    anchors: Sequence[str], ids: Sequence[str], tests: Sequence[str], split: str = "anchors", tested: str = "test"
) -> Leakage:
    """Find test requests that are also anchors, up to case, punctuation and spaces, or nearly.

    Args:
        anchors: texts that something was fitted or chosen on.
        ids: ids of the test requests.
        tests: texts of the test requests, in the same order.
        split: split of the anchors, if it is another one.
        tested: split of the tests, if it is another one.
    """
    return compare_keys([*map(TextKey.of, anchors)], ids, [*map(TextKey.of, tests)], split, tested)


def compare_keys(
    anchors: Sequence[TextKey], ids: Sequence[str], tests: Sequence[TextKey], split: str, tested: str = "test"
) -> Leakage:
    """Do as `find_leakage`, with texts that may be hashed.

    Args:
        anchors: texts that something was fitted or chosen on.
        ids: ids of the test requests.
        tests: the test requests, in the same order; hashed if the anchors are.
        split: split of the anchors.
        tested: split of the tests.
    """
    exact = {key.whole: key.name for key in anchors}
    places, nearest = _nearest([key.words for key in anchors], [key.words for key in tests])
    rows = []
    for id, key, place, jaccard in zip(ids, tests, places, nearest, strict=True):
        if key.whole in exact:
            rows.append({"test": id, "anchor": exact[key.whole], "kind": "exact", "jaccard": 1.0})
        elif jaccard >= NEAR:
            rows.append({"test": id, "anchor": anchors[place].name, "kind": "near", "jaccard": float(jaccard)})
    table = pd.DataFrame(rows, columns=["test", "anchor", "kind", "jaccard"])
    return Leakage(table, len(tests), len(anchors), split, tested)


def _nearest(anchors: Sequence[frozenset[str]], tests: Sequence[frozenset[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each test, the anchor with the largest Jaccard index, and that index; 0 without content words."""
    places, nearest = np.zeros(len(tests), int), np.zeros(len(tests))
    for rows, columns, jaccard in _jaccard(tests, anchors):
        order = np.argsort(jaccard, kind="stable")
        # Later assignments overwrite earlier ones, so the largest index is kept.
        places[rows[order]], nearest[rows[order]] = columns[order], jaccard[order]
    return places, nearest


def near_pairs(words: Sequence[frozenset[str]]) -> list[tuple[int, int]]:
    """Return the places of all pairs of texts that are nearly the same by their content words; each pair once."""
    # With the words of each text in one order, from rare to common, texts that share 4 of 5 words share one of the
    # first fifth too (prefix filtering): only few pairs have to be compared.
    counts = Counter(chain.from_iterable(words))
    ordered = [sorted(own, key=lambda word: (counts[word], word)) for own in words]
    prefixes = [frozenset(own[: len(own) - ceil(NEAR * len(own) - 1e-9) + 1]) for own in ordered]
    pairs = []
    for rows, columns, _ in _jaccard(prefixes, prefixes):
        candidates = rows < columns
        for i, j in zip(rows[candidates].tolist(), columns[candidates].tolist(), strict=True):
            if len(words[i] & words[j]) / len(words[i] | words[j]) >= NEAR:
                pairs.append((i, j))
    return pairs


def _jaccard(
    first: Sequence[frozenset[str]], second: Sequence[frozenset[str]]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield places in both lists and the Jaccard index of all pairs that share a word, some rows at a time."""
    incidence = _incidence([*first, *second])
    others, sizes = incidence[len(first) :].T.tocsc(), incidence.sum(axis=1)
    n_rows = max(1, CELLS_AT_ONCE // max(len(second), 1))
    for start in range(0, len(first) if len(second) else 0, n_rows):
        shared = (incidence[start : min(start + n_rows, len(first))] @ others).tocoo()
        rows, columns = shared.coords
        union = sizes[start + rows] + sizes[len(first) + columns] - shared.data
        yield start + rows, columns, shared.data / union


def _incidence(words: Sequence[frozenset[str]]) -> csr_array:
    """Return a matrix [text word] that is 1 if the text has the word."""
    column = {word: i for i, word in enumerate(sorted(frozenset().union(*words)))}
    columns = [column[word] for text in words for word in sorted(text)]
    ends = np.cumsum([0, *map(len, words)])
    return csr_array((np.ones(len(columns), np.int64), columns, ends), shape=(len(words), len(column)))
