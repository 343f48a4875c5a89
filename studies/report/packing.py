"""A table as columns that a page can carry: small, and exact to the digits that the CSV has."""

import math
from collections.abc import Iterable

import pandas as pd

REPEATS = 4
"""A column whose values come this often on average travels as a list of them and a place in it per row."""


def packed(table: pd.DataFrame) -> dict:
    """What `data.js` unpacks.

    Returns:
        `rows`: how many; `empty`: columns with nothing in them; `same`: columns that say the same in every row, with
        what they say; `columns`: the others, each with `name`, `numeric`, `values` and perhaps `codes`: one place in
        `values` per row, without which `values` has one per row. Missing is null.
    """
    columns = {str(name): _column(table[name]) for name in table.columns}
    distinct = {name: dict.fromkeys(values) for name, (_, values) in columns.items()}
    empty = [name for name, seen in distinct.items() if not set(seen) - {None}]
    same = {name: next(iter(seen)) for name, seen in distinct.items() if len(seen) == 1 and name not in empty}
    return {
        "rows": len(table),
        "empty": empty,
        "same": [[name, value] for name, value in same.items()],
        "columns": [
            {"name": name, "numeric": numeric, **_coded(values, distinct[name])}
            for name, (numeric, values) in columns.items()
            if name not in empty and name not in same
        ],
    }


def _column(column: pd.Series) -> tuple[bool, list]:
    """Whether it holds numbers, and its values: int, float, str or None."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return True, [_number(value) for value in column.tolist()]
    return False, [None if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)]


def _number(value: int | float) -> int | float | str | None:
    """JSON knows no infinity: JavaScript's word for it is read back as a number."""
    if pd.isna(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return int(value) if float(value).is_integer() else float(value)


def _coded(values: list, distinct: Iterable) -> dict:
    seen = list(distinct)
    if len(seen) * REPEATS > len(values):
        return {"values": values}
    place = {value: code for code, value in enumerate(seen)}
    return {"values": seen, "codes": [place[value] for value in values]}
