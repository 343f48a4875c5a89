"""Texts that a guard was fitted and chosen on, as hashes in its folder, so that it is not tested on them unnoticed.

Hashes of a whole text find exact copies, hashes of its content words near ones. They are not a secret: whoever guesses
a word finds out whether it occurs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from interp import Query
from interp.json_text import parse_json
from interp.whole_files import write_whole
from studies.datasets.leakage import Leakage, TextKey, compare_keys
from studies.datasets.rows import QueryFileError

SEEN = "seen_texts.json"
"""File in the folder of a guard."""
FORMAT = 1


@dataclass(frozen=True)
class SeenTexts:
    """Hashed texts by split: `anchors` that a guard was fitted on, and `validation` that it was chosen on."""

    by_split: Mapping[str, tuple[TextKey, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, queries: Mapping[str, Sequence[Query]]) -> "SeenTexts":
        """Hash the texts of queries; reports still name them."""
        return cls(
            {split: tuple(TextKey.of(query.text).hashed() for query in rows) for split, rows in queries.items() if rows}
        )

    @classmethod
    def read(cls, folder: str | Path) -> "SeenTexts":
        """Read the texts that a guard has seen from its folder; none if an earlier version has saved it.

        Raises:
            QueryFileError: the file is damaged.
        """
        path = Path(folder) / SEEN
        if not path.exists():
            return cls()
        try:
            saved = parse_json(path.read_text(encoding="utf-8"))
            if saved["format"] != FORMAT:
                raise QueryFileError(f"{path}: format {saved['format']!r}; this version reads {FORMAT}")
            return cls(
                {
                    split: tuple(
                        TextKey(f"{split} {i}", entry["text"], frozenset(entry["words"]))
                        for i, entry in enumerate(entries, 1)
                    )
                    for split, entries in saved["splits"].items()
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, QueryFileError):
                raise
            raise QueryFileError(f"{path}: damaged ({type(error).__name__}: {error}); save the guard again") from error

    def write(self, folder: str | Path) -> None:
        """Write the hashes into the folder of a guard."""
        splits = {
            split: [{"text": key.whole, "words": sorted(key.words)} for key in keys]
            for split, keys in self.by_split.items()
        }
        write_whole(Path(folder) / SEEN, json.dumps({"format": FORMAT, "splits": splits}) + "\n")

    def with_anchors(self, anchors: Sequence[Query]) -> "SeenTexts":
        """Add anchors whose texts are known, which reports can then name; what was seen before stays seen."""
        if not anchors:
            return self
        named = SeenTexts.of({"anchors": anchors}).by_split["anchors"]
        known = {key.whole for key in named}
        rest = (key for key in self.by_split.get("anchors", ()) if key.whole not in known)
        return replace(self, by_split={**self.by_split, "anchors": (*named, *rest)})

    def leakage(self, ids: Sequence[str], texts: Sequence[str]) -> dict[str, Leakage]:
        """Look for the texts of each split among tests, exactly and nearly."""
        keys = [TextKey.of(text).hashed() for text in texts]
        return {split: compare_keys(own, ids, keys, split) for split, own in self.by_split.items()}


NOTHING_SEEN = SeenTexts()
"""All that is known without a guard."""
