"""Tidy tables of results: their columns, and how they are written and read."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from interp.whole_files import replaced

COLUMNS = (
    "model dataset fit_dataset split setting category fit_category modality fit_modality layer last_layer layers "
    "direction_layer site token source estimator rank rule reference gate gate_scope positions strength defence "
    "detector probe control selection_rule judge judge_2 verdict verdict_2 standing tuning versus objective queries "
    "seed metric value ci_low ci_high interval n"
).split()
"""Columns of result tables, one row per measurement; a table has those that apply, in this order."""


class TableError(ValueError):
    """A file of results is damaged."""


def tidy(rows: Iterable[Mapping]) -> pd.DataFrame:
    """Return rows as a table whose columns are in the order of `COLUMNS`; a table without rows has all of them.

    Raises:
        ValueError: a column that is not in `COLUMNS`.
    """
    rows = list(rows)
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=COLUMNS)
    unknown = set(table.columns) - set(COLUMNS)
    if unknown:
        raise ValueError(f"unknown columns {sorted(unknown)}; a table has some of {COLUMNS}")
    return table[[column for column in COLUMNS if column in table.columns]]


def write_table(table: pd.DataFrame, folder: Path, name: str) -> Path:
    """Write `folder/name.csv` with six significant digits, more than any of these numbers deserves."""
    path = folder / f"{name}.csv"
    with replaced(path) as new:
        table.to_csv(new, index=False, float_format="%.6g")
    return path


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read `folder/name.csv` as a study wrote it.

    Returns:
        The table; empty cells are NaN.

    Raises:
        FileNotFoundError: the study has not been run into this folder.
        TableError: the file is no table.
    """
    path = folder / f"{name}.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run `vlm-guard repro --out {folder}`")
    try:
        return pd.read_csv(path, keep_default_na=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OverflowError) as error:
        raise TableError(f"{path} is damaged ({str(error).splitlines()[0]}); write it again with the study") from None
