"""Agreement of two runs: every number, text and answer in their tables, row by row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

TOLERANCE = 1e-3
"""Largest difference that counts as agreement, relative to values beyond 1: `|a - b| <= TOLERANCE * max(1, |b|)`."""
MACHINE_DEPENDENT = ("seconds", "seconds_p50", "seconds_p95")
"""Metrics that no two machines share; they are not compared."""
MEASURED = ("value", "ci_low", "ci_high", "n")
NUMBERS = {
    "points": ("pc1", "pc2", "coordinate", "border"),
    "changes": ("coordinate", "reference_coordinate", "after", "delta_norm"),
    "claims": (),
}
"""Columns of numbers, by table; `MEASURED` in all others. What is not listed here or below identifies a row."""
TEXTS = {"changes": ("gate",), "claims": ("theirs", "ours", "verdict")}
"""Columns that have to be equal, by table."""
ANSWERS = {"changes": (("answer", "refused"), ("guarded_answer", "guarded_refused"))}
"""Columns of answers and of their verdicts, by table."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of a run with a reference."""

    n_compared: int
    """Values that at least one of the two has."""
    differing: tuple[str, ...]
    """One line for each value that differs, or that only one of the two has."""
    n_answers: int = 0
    flipped: tuple[str, ...] = ()
    """One line for each answer whose text or verdict differs."""

    def __str__(self) -> str:
        n_equal = self.n_compared - len(self.differing)
        return (
            f"{n_equal} of {self.n_compared} values agree within {TOLERANCE:g}; {len(self.flipped)} answers of "
            f"{self.n_answers} flipped"
        )


def compare(folder: Path, reference: Path, tables: Sequence[str]) -> Agreement:
    """Compare the tables of a run with those of a reference.

    Processors round differently, which can change an answer in a hundred, and all that depends on it. Such answers are
    counted, not forgiven.

    Args:
        folder: tables of the run.
        reference: tables of the reference.
        tables: their names. A table that only one of the two has counts as one differing value.
    """
    n_compared, differing, n_answers, flipped = 0, [], 0, []
    for name in tables:
        if missing := [str(place) for place in (folder, reference) if not (place / f"{name}.csv").exists()]:
            n_compared += 1
            differing.append(f"{name}: not in {' or '.join(missing)}")
            continue
        merged, keys = _merged(*(_compared_rows(place, name) for place in (folder, reference)), _results_of(name))
        for column in (*NUMBERS.get(name, MEASURED), *TEXTS.get(name, ())):
            counted, different = _compared(merged, column, is_text=column in TEXTS.get(name, ()))
            n_compared += counted
            differing += _lines(name, merged[different], keys, column)
        for answer, verdict in ANSWERS.get(name, ()):
            is_flipped = np.logical_or(*(_compared(merged, column, is_text=True)[1] for column in (answer, verdict)))
            n_answers += len(merged)
            flipped += _lines(name, merged[is_flipped], keys, answer)
    return Agreement(n_compared, tuple(differing), n_answers, tuple(flipped))


def _compared_rows(folder: Path, name: str) -> pd.DataFrame:
    """Read a table as text, in which a number is written alike whether or not its column has empty cells."""
    table = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
    return table[~table.metric.isin(MACHINE_DEPENDENT)] if "metric" in table else table


def _results_of(name: str) -> set[str]:
    answers = [column for columns in ANSWERS.get(name, ()) for column in columns]
    return {*NUMBERS.get(name, MEASURED), *TEXTS.get(name, ()), *answers}


def _merged(ours: pd.DataFrame, theirs: pd.DataFrame, results: set[str]) -> tuple[pd.DataFrame, list[str]]:
    """Merge two tables on the columns that identify a row, and return these columns too.

    A column that only one of them has is empty in the other.
    """
    columns = list(dict.fromkeys([*ours.columns, *theirs.columns, *results]))
    keys, parts = [column for column in columns if column not in results], []
    for table in (ours, theirs):
        table = table.reindex(columns=columns, fill_value="")
        # Rows that nothing tells apart are compared in their order.
        parts.append(table.assign(occurrence=table.groupby(keys, sort=False).cumcount()))
    how = {"on": [*keys, "occurrence"], "how": "outer", "suffixes": ("", "_reference"), "sort": False}
    return parts[0].merge(parts[1], indicator=True, **how), keys


def _compared(merged: pd.DataFrame, column: str, is_text: bool) -> tuple[int, np.ndarray]:
    """Return how many cells were compared, and which of them differ."""
    ours, theirs = merged[column], merged[f"{column}_reference"]
    is_in_both = (merged._merge == "both").to_numpy()
    if is_text:
        return len(merged), (ours != theirs).to_numpy() | ~is_in_both
    ours, theirs = (values.replace("", np.nan).astype(float).to_numpy() for values in (ours, theirs))
    tolerance = TOLERANCE * np.fmax(1.0, np.abs(theirs))
    with np.errstate(invalid="ignore"):
        is_near = (np.abs(ours - theirs) <= tolerance) | (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    # Cells that are empty in both, such as limits of a value without an interval, are nothing to agree on.
    is_there = ~(np.isnan(ours) & np.isnan(theirs))
    return int(is_there.sum()), ~(is_near & is_in_both) & is_there


def _lines(name: str, rows: pd.DataFrame, keys: Sequence[str], column: str) -> Iterator[str]:
    for row in rows.fillna({column: "none", f"{column}_reference": "none"}).to_dict("records"):
        where = " ".join(f"{key}={row[key]}" for key in keys if row[key])
        yield f"{name}: {where}: {column} {row[column] or 'none'}, reference {row[f'{column}_reference'] or 'none'}"
