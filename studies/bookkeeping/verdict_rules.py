"""Rows of a table -> does a claim hold? True, False, None if it is undecided, or `CEILING`.

No claim fails because its measure could not have shown it. Where a measure is at its ceiling, or at its floor, in both
conditions, a real difference would be invisible: the answer is `CEILING` instead of False.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from probes import wilson_interval
from studies.bookkeeping.verdict_words import CEILING, NOT_SHOWN, UNDECIDED

Holds = bool | str | None
"""True, False, None (undecided) or `CEILING`."""
Decision = tuple[Holds, str]
"""The answer for a claim, and our numbers in words."""
LEVEL = 0.05
"""Level of the corrected tests that ranks and verdicts rest on."""
RATE = (0.0, 1.0)
"""Floor and ceiling of a rate."""
NEGLIGIBLE = 0.1
"""A rate whose interval ends below this has not risen, whatever it was before."""
NEAR = 0.05
"""Distance from a limit at which an unclear difference counts as hidden by it."""


def only_row(table: pd.DataFrame, **columns) -> pd.Series:
    """Return the only row with these values; None means missing.

    Raises:
        LookupError: no row has them, several have, or what was measured is not a number.
    """
    rows = table
    for column, value in columns.items():
        if column not in rows:
            raise LookupError(f"no column {column}")
        rows = rows[rows[column].isna() if value is None else rows[column] == value]
    if len(rows) != 1:
        raise LookupError(f"{len(rows)} rows with {columns}; expected one")
    if pd.isna(rows.value.iloc[0]):
        raise LookupError(f"no value of {columns}")
    return rows.iloc[0]


def with_interval(row: pd.Series) -> str:
    """Write a value with its interval."""
    return f"{row.value:z.2f} [{row.ci_low:z.2f}, {row.ci_high:z.2f}]"


def unless_hidden(
    is_reversed: bool,
    first: pd.Series,
    second: pd.Series,
    limits: Sequence[float | None] = RATE,
    rows_per_case: int = 1,
) -> Holds:
    """Decide about a difference that was not shown: False if it is reversed or absent, None if it is only unclear.

    It is `CEILING` if a real difference could look the same, because both values are at the same limit of the measure:
    in the interval that as many cases exactly at the limit would have (Wilson's; 0.06 for 60 cases). With few cases
    that interval is wide, so a difference that is only unclear has to be within `NEAR` of the limit as well.

    Args:
        is_reversed: whether the difference is absent or has the wrong sign.
        first: row of one condition.
        second: row of the other condition.
        limits: lowest and highest value of the measure; None if there is none.
        rows_per_case: 2 where `n` counts both members of pairs, as it does in measures of separation.
    """

    def is_at(row: pd.Series, limit: float) -> bool:
        _, reach = wilson_interval(0, max(1, int(row.n) // rows_per_case))
        reach = reach if is_reversed else min(reach, NEAR)
        return bool(row.ci_low <= limit <= row.ci_high or abs(row.value - limit) <= reach)

    if any(is_at(first, limit) and is_at(second, limit) for limit in limits if limit is not None):
        return CEILING
    return False if is_reversed else None


def is_below(lower: pd.Series, upper: pd.Series) -> Holds:
    """Decide if one rate is below another: True if their intervals are apart, False if the value itself is not."""
    if lower.ci_high < upper.ci_low:
        return True
    return unless_hidden(bool(lower.value >= upper.value), lower, upper)


def is_rise(before: pd.Series, after: pd.Series) -> Holds:
    """Decide if a rate rises: True if the intervals are apart, False if it does not or stays below `NEGLIGIBLE`.

    Two rates at their floor don't hide a rise as two at their ceiling do: the interval of the second one says how much
    of a rise there can be.
    """
    if before.ci_high < after.ci_low:
        return True
    if after.ci_high <= NEGLIGIBLE:
        return False
    return unless_hidden(bool(after.value <= before.value), before, after, (None, RATE[1]))


def is_decrease(change: pd.Series, p_value: float, first: pd.Series, second: pd.Series) -> Holds:
    """Decide if a paired change of a rate is negative: True if it is by the corrected test, False if it is not at all.

    Args:
        change: row of the change.
        p_value: of the change, corrected for everything that is tested with it.
        first: row of the rate before it.
        second: row of the rate after it.
    """
    if change.ci_high < 0 and p_value < LEVEL:
        return True
    return unless_hidden(bool(change.value >= 0), first, second)


def is_within(row: pd.Series, low: float = -np.inf, high: float = np.inf) -> bool | None:
    """Decide if a value is within limits: True or False if its whole interval is inside or outside, else None."""
    if low <= row.ci_low and row.ci_high <= high:
        return True
    return False if row.ci_high < low or row.ci_low > high else None


def all_hold(decisions: Iterable[Holds]) -> Holds:
    """Combine decisions: False if any fails, else None or `CEILING` if any is that; None if there are none.

    Claims that must hold everywhere need no correction for the number of places: all of them are tested, and every
    single one has to reach its level.
    """
    every = list(decisions)
    if False in every:
        return False
    if not every or None in every:
        return None
    return CEILING if CEILING in every else True


def in_a_word(holds: Holds) -> str:
    """Write the decision on a part of a claim."""
    if isinstance(holds, str):
        return holds
    return {True: "shown", False: NOT_SHOWN, None: UNDECIDED}[holds]
