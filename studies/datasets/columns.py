"""Which columns of the user's own table hold what, and what the labels in them mean."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from studies.bookkeeping.suggestions import did_you_mean
from studies.datasets.rows import QueryFileError

COLUMNS = ("text", "harmful", "category", "pair", "picture")
REQUIRED = COLUMNS[:2]
TRUE = ("true", "1", "yes", "harmful", "unsafe")
FALSE = ("false", "0", "no", "harmless", "safe", "unharmful")
ALL, NONE = "all", "none"
"""Words in place of a column of labels: every row is harmful, or none is."""
N_NAMED = 10


@dataclass(frozen=True)
class Labels:
    """The meanings of the words in a column of labels; case does not matter, nor do decimals of whole numbers."""

    yes: tuple[str, ...] = TRUE
    no: tuple[str, ...] = FALSE
    given: tuple[str, ...] = ()
    """The user's own words for yes, in place of `yes`."""
    option: str = "--harmful-values"
    """The option that gives them, for error messages."""

    @cached_property
    def _yes(self) -> frozenset[str]:
        return frozenset(map(_normal, self.given or self.yes))

    def meaning(self, label: str, remaining: str | None = None) -> bool | None:
        """Return what a label means; None if it is none of the known words, nor the one that `remaining` has found."""
        label = _normal(label)
        if label in self._yes:
            return True
        return False if label in self.no or label == remaining else None

    def remaining(self, path: Path, labels: Iterable[str]) -> str | None:
        """Return the one label that means no because all others that occur were given as yes; None if there is none.

        Raises:
            QueryFileError: words were given, and none of them occurs, or labels of several kinds remain.
        """
        if not self.given:
            return None
        counts = Counter(map(_normal, labels))
        others = [label for label in counts if label and self.meaning(label) is None]
        if not any(self.meaning(label) for label in counts):
            raise QueryFileError(f"{path}: no row is labelled {', '.join(self.given)}; expected one of {kinds(counts)}")
        # Next to a word that means no, a word that is not known may mean anything.
        if len(others) > 1 or (others and any(self.meaning(label) is False for label in counts)):
            raise QueryFileError(
                f"{path}: labels of {len(counts)} kinds: {kinds(counts)}; expected two: name in {self.option} all that "
                "mean yes, and leave out rows that are neither"
            )
        return others[0] if others else None

    def unknown(self, label: object, labels: Iterable[str]) -> str:
        """Describe a label without a meaning, and every kind of label in its column."""
        counts = Counter(map(_normal, labels))
        several = f"; the column holds {len(counts)} kinds: {kinds(counts)}" if len(counts) > 1 else ""
        return f"got {label!r}, expected true or false, or words that {self.option} explains{several}"


@dataclass(frozen=True)
class Columns:
    """The columns of a table of queries by what they hold; names are found in any case."""

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
        return cls(parse_names(columns, COLUMNS), parse_values(harmful_values))

    def __bool__(self) -> bool:
        return bool(self.names or self.harmful_values)

    @property
    def labels(self) -> Labels:
        return Labels(given=self.harmful_values)

    def find(self, path: Path, header: Collection[str]) -> dict[str, str]:
        """Return the table's name of each column that is there.

        Raises:
            QueryFileError: a column that was named or is required is missing, or several are called that.
        """
        is_constant = self.names.get("harmful") in (ALL, NONE)
        usual = {ours: (ours,) for ours in COLUMNS if ours != "harmful" or not is_constant}
        required = [ours for ours in REQUIRED if ours in usual]
        optional = f" and perhaps {','.join(COLUMNS[2:])}, or --columns text=NAME,harmful=NAME"
        expected = f"expected a header with {','.join(REQUIRED)}{'' if self.names else optional}"
        return find_columns(path, header, self.names, usual, required, expected)

    def all_harmful(self, found: Mapping[str, str]) -> bool | None:
        """Return the class of all rows, if no column holds it."""
        return None if "harmful" in found else self.names.get("harmful") == ALL


def parse_names(columns: str, allowed: Sequence[str]) -> dict[str, str]:
    """Read `ours=theirs,...`.

    Raises:
        QueryFileError: a pair is incomplete, or nothing is called that.
    """
    names: dict[str, str] = {}
    for pair in filter(None, map(str.strip, columns.split(","))):
        ours, _, theirs = map(str.strip, pair.partition("="))
        if ours not in allowed:
            suggestion = did_you_mean(ours, allowed)
            raise QueryFileError(
                f"columns: {pair!r}; expected NAME=COLUMN with one of {', '.join(allowed)}{suggestion}"
            )
        if not theirs or ours in names:
            raise QueryFileError(f"columns: {pair!r}; expected one column for each name, as in {ours}=prompt")
        names[ours] = theirs
    return names


def parse_values(values: str) -> tuple[str, ...]:
    """Read labels, as `unsafe,1`."""
    return tuple(filter(None, map(str.strip, values.split(","))))


def find_columns(
    path: Path,
    header: Collection[str],
    names: Mapping[str, str],
    usual: Mapping[str, Sequence[str]],
    required: Collection[str],
    expected: str,
) -> dict[str, str]:
    """Find the columns of a table, in any case.

    Args:
        path: the table, for error messages.
        header: names of its columns.
        names: our name -> the table's, as the user has given them.
        usual: our name -> the table's usual names for it, the first of which that is there is taken.
        required: our names that must be found.
        expected: what is said to be expected if a column is missing.

    Returns:
        Our name -> the table's, of the columns that are there.

    Raises:
        QueryFileError: a column that was named or is required is missing, or several are called that.
    """
    found, missing = {}, []
    for ours, candidates in usual.items():
        candidates = [names[ours]] if ours in names else candidates
        theirs = next(filter(None, (_matching(path, name, header) for name in candidates)), None)
        if theirs is not None:
            found[ours] = theirs
        elif ours in names and names[ours] != ours:
            missing.append(f"{names[ours]} ({ours})")
        elif ours in names or ours in required:
            missing.append(ours)
    if missing:
        close = did_you_mean(missing[0].partition(" ")[0], header)
        got = ",".join(sorted(header)) or "nothing"
        raise QueryFileError(f"{path}: line 1 has no column {', '.join(missing)}; {expected}, got {got}{close}")
    return found


def _matching(path: Path, name: str, header: Collection[str]) -> str | None:
    """Return the column of this name, in this case or another.

    Raises:
        QueryFileError: several have it in other cases.
    """
    if name in header:
        return name
    own = sorted(column for column in header if column.strip().lower() == name.lower())
    if len(own) > 1:
        raise QueryFileError(f"{path}: columns {', '.join(own)}; expected one called {name} in any case")
    return own[0] if own else None


def _normal(label: str) -> str:
    """Return a label in lower case, and a whole number without its decimals: tables with gaps hold 1 as 1.0."""
    return label.strip().lower().removesuffix(".0")


def kinds(counts: Mapping[str, int]) -> str:
    """Name labels and how often they occur."""
    named = ", ".join(f"{label or '(empty)'} ({n})" for label, n in list(counts.items())[:N_NAMED])
    return named + (f" and {len(counts) - N_NAMED} more" if len(counts) > N_NAMED else "")
