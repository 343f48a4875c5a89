"""Claims about readings of the method, decided from the table of `studies.readings`."""

import pandas as pd

from interp import IMAGE_AUGMENTED
from studies.bookkeeping.verdict_rules import Decision, all_hold, only_row, with_interval
from studies.guards.random_directions import DECISIVE, N_DRAWS, SIGNIFICANT
from studies.guards.wording import guard_in_words

GAIN = "refusal_score_gain"


def _compared(table: pd.DataFrame, metric: str, rule: str | None, control: str | None = None) -> pd.DataFrame:
    """Return rows of a reading on the reported split, for requests with a picture.

    Args:
        table: of `studies.readings`.
        metric: what was measured.
        rule: rule of the reading; None for the guard that the sweep chose, whose rows are marked.
        control: control that the reading is run with.

    Raises:
        LookupError: it was not measured.
    """
    rows = table[(table.setting == "compared") & (table.metric == metric) & table.modality.isin(IMAGE_AUGMENTED)]
    rows = rows[rows.selection_rule.notna() if rule is None else rows.selection_rule.isna() & (rows.rule == rule)]
    rows = rows[rows.control.isna() if control is None else rows.control == control]
    if rows.empty or rows.modality.duplicated().any():
        raise LookupError(f"{len(rows)} rows of {metric}, {rule or 'the guard'}; expected one for each modality")
    return rows


def lowers_refusal(table: pd.DataFrame, rule: str) -> Decision:
    """Decide if a reading lowers the refusal score of harmful requests with every kind of picture."""
    gains = _compared(table, GAIN, rule)
    return _all_fall(gains), f"with a picture, change of the refusal score in nats: {_by_modality(gains)}"


def brings_refusal_back(table: pd.DataFrame, rule: str) -> Decision:
    """Decide if a reading raises the refusal score, and does it by its direction.

    It has to raise it with every kind of picture, more than random directions do, and lower it with the sign flipped.
    """
    gains, flipped = (_compared(table, GAIN, rule, control) for control in (None, "sign_flipped"))
    is_more, shares = more_than_random(table, rule)
    numbers = (
        f"with a picture, change of the refusal score in nats: {_by_modality(gains)}; {shares}; with the sign "
        f"flipped: {_by_modality(flipped)}"
    )
    return all_hold([_all_rise(gains), is_more, _all_fall(flipped)]), numbers


def more_than_random(table: pd.DataFrame, rule: str | None = None) -> Decision:
    """Decide if a guard raises the refusal score more than 95 % of random directions, with every kind of picture.

    It is undecided with fewer than `N_DRAWS` directions, and fails if half of them do as much.

    Args:
        table: of `studies.readings`.
        rule: rule of a reading; None for the guard that the sweep chose.
    """
    decisive = table[table.category == DECISIVE]
    shares, p_values = (_compared(decisive, metric, rule) for metric in ("random_percentile", "random_p"))
    above = ", ".join(
        f"{row.modality} {row.value:.3f} (p = {only_row(p_values, modality=row.modality).value:.3f})"
        for _, row in shares.iterrows()
    )
    numbers = f"share of {int(shares.n.min())} random directions of the same size with a smaller change: {above}"
    if p_values.n.min() < N_DRAWS:
        return None, numbers
    if (p_values.value <= SIGNIFICANT).all():
        return True, numbers
    return (False if (shares.value <= 0.5).any() else None), numbers


def in_words(table: pd.DataFrame, rule: str) -> str:
    """Name a reading in full; empty if it was not measured."""
    rows = table[(table.setting == "compared") & (table.rule == rule) & table.control.isna()]
    rows = rows[rows.selection_rule.isna()]
    return "" if rows.empty else guard_in_words(rows.iloc[0].to_dict() | {"reference": None})


def _all_rise(gains: pd.DataFrame) -> bool | None:
    """Decide if all gains are positive: True if every interval is above 0, False if any is at or below 0, else None."""
    if (gains.ci_low > 0).all():
        return True
    return False if (gains.ci_high <= 0).any() else None


def _all_fall(gains: pd.DataFrame) -> bool | None:
    return _all_rise(gains.assign(ci_low=-gains.ci_high, ci_high=-gains.ci_low))


def _by_modality(gains: pd.DataFrame) -> str:
    return ", ".join(f"{row.modality} {with_interval(row)}" for _, row in gains.iterrows())
