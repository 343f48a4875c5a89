"""Tables packed as JSON columns for the page: small, and with all digits of the CSV."""

import math
from collections.abc import Iterable

import pandas as pd

REPEATS = 4
"""A column whose values repeat this often on average is packed as its distinct values and one index per row."""


def packed(table: pd.DataFrame) -> dict:
    """Pack a table for `data.js`, which unpacks it.

    Returns:
        `rows`: number of rows; `names`: all columns in the order of the CSV; `empty`: names of columns without values;
        `same`: pairs of name and value of columns with the same value in every row; `columns`: the other columns, each
        with `name`, `numeric`, `values` and, for columns that repeat themselves, `codes`: one index into `values` per
        row. Without `codes`, `values` has one entry per row. Missing values are null.
    """
    columns = {str(name): _column(table[name]) for name in table.columns}
    distinct = {name: dict.fromkeys(values) for name, (_, values) in columns.items()}
    empty = [name for name, values in distinct.items() if not set(values) - {None}]
    same = {name: next(iter(values)) for name, values in distinct.items() if len(values) == 1 and name not in empty}
    return {
        "rows": len(table),
        "names": list(columns),
        "empty": empty,
        "same": [[name, value] for name, value in same.items()],
        "columns": [
            {"name": name, "numeric": numeric, **_encoded(values, distinct[name])}
            for name, (numeric, values) in columns.items()
            if name not in empty and name not in same
        ],
    }


def _column(column: pd.Series) -> tuple[bool, list]:
    """Return a flag that says if the column is numeric, and its values as int, float, str or None."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return True, [_number(value) for value in column.tolist()]
    return False, [None if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)]


def _number(value: int | float) -> int | float | str | None:
    """Convert a number for JSON, which has no infinity: JavaScript's word for it is read back as a number."""
    if pd.isna(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return int(value) if float(value).is_integer() else float(value)


def _encoded(values: list, distinct: Iterable) -> dict:
    unique = list(distinct)
    if len(unique) * REPEATS > len(values):
        return {"values": values}
    codes = {value: code for code, value in enumerate(unique)}
    return {"values": unique, "codes": [codes[value] for value in values]}
