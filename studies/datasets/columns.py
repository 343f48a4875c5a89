"""Which columns of the user's own table hold what, and which labels mean harmful."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from studies.bookkeeping.suggestions import did_you_mean
from studies.datasets.rows import QueryFileError

COLUMNS = ("text", "harmful", "category", "pair", "picture")
REQUIRED = COLUMNS[:2]
TRUE = ("true", "1", "1.0", "yes", "harmful", "unsafe")
FALSE = ("false", "0", "0.0", "no", "harmless", "safe", "unharmful")
ALL, NONE = "all", "none"
"""Words in place of a column of labels: every row is harmful, or none is."""
N_NAMED = 10


@dataclass(frozen=True)
class Columns:
    """The columns of a table by what they hold; names are found in any case."""

    names: Mapping[str, str] = field(default_factory=dict)
    """One of `COLUMNS` -> the table's own name for it, where the two differ."""
    harmful_values: tuple[str, ...] = ()
    """Labels that mean harmful, in any case; by default those of `TRUE`."""

    @classmethod
    def parse(cls, columns: str = "", harmful_values: str = "") -> "Columns":
        """Read `text=prompt,harmful=label` and `unsafe,1`.

        Raises:
            QueryFileError: a pair is incomplete, or nothing is called that.
        """
        names: dict[str, str] = {}
        for pair in filter(None, map(str.strip, columns.split(","))):
            ours, _, theirs = map(str.strip, pair.partition("="))
            if ours not in COLUMNS:
                suggestion = did_you_mean(ours, COLUMNS)
                raise QueryFileError(
                    f"columns: {pair!r}; expected NAME=COLUMN with one of {', '.join(COLUMNS)}{suggestion}"
                )
            if not theirs or ours in names:
                raise QueryFileError(f"columns: {pair!r}; expected one column for each name, as in text=prompt")
            names[ours] = theirs
        values = tuple(value.strip() for value in harmful_values.split(",") if value.strip())
        return cls(names, values)

    def __bool__(self) -> bool:
        return bool(self.names or self.harmful_values)

    def find(self, path: Path, header: Collection[str]) -> dict[str, str]:
        """Return the table's name of each column that is there.

        Raises:
            QueryFileError: a column that was named or is required is missing, or several are called that.
        """
        found, missing = {}, []
        for ours in COLUMNS:
            theirs = self.names.get(ours, ours)
            own = _matching(theirs, header)
            if len(own) > 1:
                raise QueryFileError(f"{path}: columns {', '.join(own)}; expected one called {theirs} in any case")
            if own:
                found[ours] = own[0]
            elif ours in self.names and not (ours == "harmful" and theirs in (ALL, NONE)):
                missing.append(f"{theirs} ({ours})" if theirs != ours else theirs)
            elif ours in REQUIRED and ours not in self.names:
                missing.append(ours)
        if missing:
            raise QueryFileError(self._missing(path, missing, header))
        return found

    def _missing(self, path: Path, missing: Sequence[str], header: Collection[str]) -> str:
        seen = ",".join(sorted(header)) or "nothing"
        advice = "" if self.names else f" and perhaps {','.join(COLUMNS[2:])}, or --columns text=NAME,harmful=NAME"
        close = did_you_mean(missing[0].partition(" ")[0], header)
        return (
            f"{path}: line 1 has no column {', '.join(missing)}; expected a header with {','.join(REQUIRED)}{advice}, "
            f"got {seen}{close}"
        )

    def all_harmful(self, found: Mapping[str, str]) -> bool | None:
        """Return the class of all rows, if no column holds it."""
        return None if "harmful" in found else self.names.get("harmful") == ALL

    def is_harmful(self, label: str) -> bool | None:
        """Return what a label means; None if it is none of the known words. Other words than those given are None."""
        label = label.strip().lower()
        if self.harmful_values:
            own = {value.lower() for value in self.harmful_values}
            return True if label in own or _number(label) in own else (False if label in FALSE else None)
        return True if label in TRUE else (False if label in FALSE else None)

    def other_label(self, path: Path, labels: Iterable[str]) -> str | None:
        """Return the one label that means harmless because it is the only one left, if there are unknown labels.

        Raises:
            QueryFileError: `harmful_values` are given, and several unknown labels are left, or none of the given ones
                occurs.
        """
        if not self.harmful_values:
            return None
        counts = Counter(label.strip().lower() for label in labels)
        unknown = [label for label in counts if label and self.is_harmful(label) is None]
        if not any(self.is_harmful(label) for label in counts):
            given = ", ".join(self.harmful_values)
            raise QueryFileError(f"{path}: no row is labelled {given}; expected one of {kinds(counts)}")
        if len(unknown) > 1:
            raise QueryFileError(
                f"{path}: labels of {len(counts)} kinds: {kinds(counts)}; expected two: name in --harmful-values all "
                "that mean harmful, and leave out rows that are neither"
            )
        return unknown[0] if unknown else None


def _matching(name: str, header: Collection[str]) -> list[str]:
    if name in header:
        return [name]
    return sorted(own for own in header if own.strip().lower() == name.lower())


def _number(label: str) -> str:
    """Return a whole number without its decimals: tables with gaps hold 1 as 1.0."""
    return label.removesuffix(".0")


def kinds(counts: Mapping[str, int]) -> str:
    """Name labels and how often they occur."""
    named = ", ".join(f"{label or '(empty)'} ({n})" for label, n in list(counts.items())[:N_NAMED])
    return named + (f" and {len(counts) - N_NAMED} more" if len(counts) > N_NAMED else "")
