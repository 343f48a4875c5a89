"""Which claims hold on which model? The verdicts of finished runs side by side, with what was planted in controls.

A control is a model that was trained to have, or to lack, what a claim is about. A claim that comes out otherwise on it
shows a fault of the studies.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from studies.bookkeeping.tables import read_table
from studies.bookkeeping.verdict_words import NOT_SHOWN

COLUMNS = ["model", "claim", "theirs", "ours", "verdict", "outcome", "planted"]
SHOWN = "shown"
"""Outcome of a claim that holds, whatever the model."""
LOWERS_REFUSAL, BLURS = "an image lowers refusal", "an image blurs them"
PLANTED = {
    "no gap": {LOWERS_REFUSAL: NOT_SHOWN},
    "blurred": {BLURS: SHOWN},
}
"""Planted outcomes of each control, by the beginning of the claims' names."""


def run(results: Mapping[str, str | Path]) -> pd.DataFrame:
    """Put the verdicts of finished runs side by side.

    Args:
        results: folders that `studies.repro.run` has written, by the name of the model. Controls are called as in
            `PLANTED`, perhaps with a seed, as in `no gap, seed 1` or `no_gap-seed1`.

    Returns:
        One row per model and claim, with the columns `COLUMNS`: `outcome` is the verdict without the kind of model,
        `planted` what it has to be on a control, empty elsewhere.

    Raises:
        FileNotFoundError: a run has no claims.
    """
    tables = []
    for model, folder in results.items():
        table = read_table(Path(folder), "claims").assign(model=model)
        table["outcome"] = [_outcome(verdict) for verdict in table.verdict]
        table["planted"] = [_planted(model, claim) for claim in table.claim]
        tables.append(table[COLUMNS])
    return pd.concat(tables, ignore_index=True)


def mismatches(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of controls whose outcome is not what was planted."""
    return table[(table.planted != "") & (table.planted != table.outcome)]


def _outcome(verdict: str) -> str:
    return SHOWN if verdict == "reproduced" or verdict.startswith(f"{SHOWN} on ") else verdict


def attacks(results: Mapping[str, str | Path]) -> pd.DataFrame:
    """Return the defences of finished runs in one table, with the name of the run in the column `model`.

    Args:
        results: see `run`; runs without a table of defences are left out, and so are controls.
    """
    tables = [
        read_table(Path(folder), "defence").assign(model=model)
        for model, folder in results.items()
        if (Path(folder) / "defence.csv").is_file() and _control_of(model) not in PLANTED
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _control_of(model: str) -> str:
    """Return the name of a control that a model has, without its seed."""
    return re.split(r",|-seed| seed", model.replace("_", " "))[0].strip().lower()


def _planted(model: str, claim: str) -> str:
    outcomes = PLANTED.get(_control_of(model), {})
    return next((outcome for beginning, outcome in outcomes.items() if claim.startswith(beginning)), "")
