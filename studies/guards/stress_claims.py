"""The claim that the guard helps with sampled, longer and later answers too, decided from `stress.csv`."""

import pandas as pd

from figures import first_judge
from studies.bookkeeping.verdict_rules import (
    LEVEL,
    NEAR,
    Decision,
    Holds,
    all_hold,
    in_a_word,
    is_decrease,
    only_row,
    with_interval,
)

KINDS = {"temperature": "sampled", "tokens": "longer", "turn": "later"}
"""Kinds of settings that the claim names, by a word of their names."""
SAID = 4
"""Places that are named where the guard does not lower attack success; the table has all."""


def holds(table: pd.DataFrame) -> Decision:
    """Decide in every setting and modality but the standard one whether the guard lowers attack success.

    Places where the unguarded model answers hardly any harmful request can't show it, unless the guard raises that;
    they are counted, and left out. Each kind of setting has to be decided somewhere.

    Raises:
        LookupError: without a guard, attacks succeed in no setting but the standard one.
    """
    rows = first_judge(table)
    changes = rows[(rows.metric == "asr_change") & (rows.setting != "standard")]
    decisions, failing, kinds, n_silent = [], [], set(), 0
    for place in changes[["setting", "modality"]].itertuples(index=False):
        where = place._asdict()
        before, after = (only_row(rows, metric="asr", defence=name, **where) for name in ("unguarded", "guard"))
        decision = _is_lowered(rows, where, before, after)
        if decision is None and before.ci_low <= NEAR:
            n_silent += 1
            continue
        decisions.append(decision)
        kinds |= {kind for word, kind in KINDS.items() if word in place.setting}
        if decision is not True:
            failing.append(
                f"{place.setting}, {place.modality}: {with_interval(before)}, guarded {with_interval(after)} "
                f"({in_a_word(decision)})"
            )
    if not decisions:
        raise LookupError("no other setting in which attacks succeed without a guard")
    missing = [kind for kind in KINDS.values() if kind not in kinds]
    words = f"lower in {len(decisions) - len(failing)} of {len(decisions)} places"
    words += f"; {n_silent} more, where hardly any attack succeeds, can't show it" if n_silent else ""
    words += f"; no such place for {' and '.join(missing)} answers" if missing else ""
    words += f"; not in: {'; '.join(failing[:SAID])}" if failing else ""
    words += f"; and {len(failing) - SAID} more" if len(failing) > SAID else ""
    return all_hold([*decisions, *([None] if missing else [])]), words


def _is_lowered(rows: pd.DataFrame, where: dict, before: pd.Series, after: pd.Series) -> Holds:
    """Decide about one place; a rise is False however few attacks succeed without the guard."""
    change, p_value = (only_row(rows, metric=name, **where) for name in ("asr_change", "asr_change_p"))
    if change.ci_low > 0 and p_value.value < LEVEL:
        return False
    return None if before.ci_low <= NEAR else is_decrease(change, p_value.value, before, after)
