"""The claim that the guard helps with sampled, longer and later answers too, decided from `stress.csv`."""

import pandas as pd

from figures import first_judge
from studies.bookkeeping.verdict_rules import NEAR, Decision, all_hold, in_a_word, is_decrease, only_row, with_interval

SAID = 4
"""Places that are named where the guard does not lower attack success; the table has all."""


def holds(table: pd.DataFrame) -> Decision:
    """Decide in every setting and modality whether the guard lowers attack success, in pairs of the same requests.

    Places where the unguarded model answers hardly any harmful request can't show it; they are counted, and left out.

    Raises:
        LookupError: there is no place where attacks succeed.
    """
    rows = first_judge(table)
    changes = rows[rows.metric == "asr_change"]
    decisions, failing, n_silent = [], [], 0
    for place in changes[["setting", "modality"]].itertuples(index=False):
        where = place._asdict()
        before = only_row(rows, metric="asr", defence="unguarded", **where)
        if before.ci_low <= NEAR:
            n_silent += 1
            continue
        after = only_row(rows, metric="asr", defence="guard", **where)
        change, p_value = (only_row(rows, metric=name, **where) for name in ("asr_change", "asr_change_p"))
        decisions.append(is_decrease(change, p_value.value, before, after))
        if decisions[-1] is not True:
            failing.append(
                f"{place.setting}, {place.modality}: {with_interval(before)}, guarded {with_interval(after)} "
                f"({in_a_word(decisions[-1])})"
            )
    if not decisions:
        raise LookupError("no setting in which attacks succeed without a guard")
    words = f"lower in {len(decisions) - len(failing)} of {len(decisions)} places"
    words += f"; {n_silent} more, where hardly any attack succeeds, can't show it" if n_silent else ""
    words += f"; not in: {'; '.join(failing[:SAID])}" if failing else ""
    words += f"; and {len(failing) - SAID} more" if len(failing) > SAID else ""
    return all_hold(decisions), words
