"""Agreement of two runs: nothing is left out, and nothing near 1 or far from it is forgiven more than 0.001."""

import numpy as np
import pandas as pd
import pytest

from studies.bookkeeping.agreement import compare
from studies.bookkeeping.tables import write_table

TABLES = ("defence", "points", "changes", "claims")


def tables():
    return {
        "defence": pd.DataFrame(
            {
                "defence": ["guard", "guard", "guard", "unguarded"],
                "layer": [3, 3, 3, np.nan],
                "metric": ["asr", "kl", "seconds", "asr"],
                "value": [0.98, -7.0, 2.5, 0.3],
                "ci_low": [0.9, -8.0, 2.0, np.nan],
                "ci_high": [1.0, -6.0, 3.0, np.nan],
                "n": [60, 60, 6, 60],
            }
        ),
        "points": pd.DataFrame(
            {"modality": "text", "layer": [0, 1], "harmful": [True, False], "pc1": 1.5, "pc2": 2.0, "coordinate": -3.0}
            | {"border": -7.78253}
        ),
        "changes": pd.DataFrame(
            {
                "text": ["a", "b"],
                "layer": 7,
                "coordinate": 1.0,
                "reference_coordinate": 2.0,
                "gate": [True, False],
                "after": 3.0,
                "delta_norm": [0.5, 0.0],
                "answer": ["Sure!", "Sure!"],
                "guarded_answer": ["I cannot.", "Sure!"],
                "refused": False,
                "guarded_refused": [True, False],
            }
        ),
        "claims": pd.DataFrame({"claim": ["c"], "theirs": ["a plot"], "ours": ["0.98"], "verdict": ["shown"]}),
    }


@pytest.fixture
def folders(tmp_path):
    """Folders of two equal runs."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for table, rows in tables().items():
            write_table(rows, tmp_path / name, table)
    return tmp_path / "first", tmp_path / "second"


def compared(folders, table, column, row, value):
    """Agreement after one cell of the second run was changed."""
    first, second = folders
    changed = tables()[table].astype({column: object})
    changed.loc[row, column] = value
    write_table(changed, second, table)
    return compare(second, first, TABLES)


def test_a_run_agrees_with_itself_in_every_value(folders):
    agreement = compare(*folders, TABLES)
    # Two rows with 4 numbers and one with 2 (seconds are left out), 2 with 4, 2 with 4 and a text, 3 texts.
    assert agreement.n_compared == 2 * 4 + 2 + 2 * 4 + 2 * 5 + 3 and agreement.n_answers == 4
    assert agreement.differing == agreement.flipped == ()
    assert str(agreement) == "31 of 31 values agree within 0.001; 0 answers of 4 flipped"


def test_numbers_that_round_differently_tell_no_rows_apart(folders):
    """The border of a layer is in its rows, and its last digit is another one on another processor."""
    assert compared(folders, "points", "border", 0, -7.78254).differing == ()


@pytest.mark.parametrize(
    ("table", "column", "row", "value"),
    [
        ("defence", "value", 0, 0.96),
        ("defence", "value", 0, 0.9815),
        ("defence", "value", 1, -7.1),
        ("defence", "value", 1, -7.008),
        ("defence", "ci_low", 0, 0.89),
        ("defence", "ci_high", 0, 0.99),
        ("defence", "n", 0, 59),
        ("defence", "ci_low", 3, 0.1),
        ("points", "pc2", 1, 2.01),
        ("points", "coordinate", 0, 3.0),
        ("points", "border", 0, -7.9),
        ("changes", "delta_norm", 0, 0.49),
        ("changes", "gate", 1, True),
        ("claims", "ours", 0, "0.97"),
        ("claims", "verdict", 0, "not shown"),
    ],
)
def test_one_changed_value_is_one_difference(folders, table, column, row, value):
    agreement = compared(folders, table, column, row, value)
    (line,) = agreement.differing
    assert line.startswith(f"{table}: ") and f": {column} {value}, reference" in line and agreement.flipped == ()


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [("value", 0, 0.9809), ("value", 1, -7.006), ("value", 2, 50.0), ("ci_high", 2, 60.0)],
)
def test_rounding_and_seconds_are_no_differences(folders, column, row, value):
    assert compared(folders, "defence", column, row, value).differing == ()


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [("guarded_answer", 0, "Sure!"), ("guarded_refused", 0, False), ("answer", 1, "I cannot."), ("refused", 1, True)],
)
def test_a_flipped_answer_is_counted_as_such(folders, column, row, value):
    agreement = compared(folders, "changes", column, row, value)
    assert agreement.differing == () and len(agreement.flipped) == 1
    assert str(agreement).endswith("1 answers of 4 flipped")


def test_rows_and_tables_that_only_one_run_has_are_differences(folders):
    first, second = folders
    write_table(tables()["defence"].drop(index=0), second, "defence")
    assert len(compare(second, first, TABLES).differing) == len(compare(first, second, TABLES).differing) == 4
    (second / "points.csv").unlink()
    assert len(compare(second, first, TABLES).differing) == 5


def test_a_column_that_only_one_run_has_makes_rows_differ_where_it_is_filled(folders):
    first, second = folders
    write_table(tables()["defence"].assign(tuning=["12 configurations", None, None, None]), second, "defence")
    # The row counts twice, with the 4 numbers of either run.
    assert len(compare(second, first, TABLES).differing) == 8
