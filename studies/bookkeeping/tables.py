"""Tidy results, and what lies beside them: config and provenance."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

COLUMNS = (
    "model dataset split setting category modality fit_modality layer last_layer direction_layer site token source "
    "estimator rank rule reference gate gate_scope positions strength defence probe control selection_rule judge "
    "judge_2 verdict verdict_2 standing versus seed metric value ci_low ci_high interval n"
).split()
"""One row a measurement; a table has the columns that apply, in this order."""


def tidy(rows: Iterable[Mapping]) -> pd.DataFrame:
    """A table in the order of `COLUMNS`.

    Raises:
        ValueError: a column that is not in `COLUMNS`.
    """
    table = pd.DataFrame(list(rows))
    unknown = set(table.columns) - set(COLUMNS)
    if unknown:
        raise ValueError(f"unknown columns {sorted(unknown)}; a table has some of {COLUMNS}")
    return table[[column for column in COLUMNS if column in table.columns]]


def first_judge(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the judge that decides, which stands first, and rows that need none."""
    return table[table.judge.isna() | (table.judge == table.judge.dropna().iloc[0])]


def write_table(table: pd.DataFrame, folder: Path, name: str) -> Path:
    """`folder/name.csv`; six significant digits, more than any of these numbers deserves."""
    path = folder / f"{name}.csv"
    table.to_csv(path, index=False, float_format="%.6g")
    return path


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Raises:
    FileNotFoundError: the study has not been run into this folder.
    """
    path = folder / f"{name}.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run `vlm-guard repro --out {folder}`")
    return pd.read_csv(path, keep_default_na=True)
