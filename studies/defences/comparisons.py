"""Paired comparisons of the defences in one setting: corrected tests, ranks, and who keeps up with the guard."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from jaxtyping import Float

from probes import Measured, holm, mcnemar, sign_test
from studies.bookkeeping.verdict_rules import LEVEL
from studies.defences.answer_log import AnswerRecord
from studies.defences.arms import DefenceArm
from studies.defences.defence import BOUND, CONTROL, GUARD, NONE
from studies.defences.rates import COMPARED, SUCCEEDS, UNGUARDED, answer_to, changes

MARGIN = 0.05
"""A defence keeps up with another if its rate is higher by less than this."""
EQUIVALENCE = 1 - 2 * LEVEL
"""Confidence of the interval that decides it: each of its limits is a one-sided test at `LEVEL`."""
RANKS = {"asr": "rank", "over_refusal_rate": "over_refusal_rank"}
"""Names of the ranks, by the metric that they are in."""
NO_INTERVAL = "none: a decision"


@dataclass(frozen=True)
class SettingComparison:
    """All arms that answered the same prompts, and the judge that decides.

    What a table says about a setting rests on paired tests between two of its arms: changes from the unguarded model,
    the guard against rivals and bounds, and ranks, which count differences between any two defences. Holm's correction
    is over all of these at once, for one setting (dataset, setting and modality) and metric. So any false difference in
    a setting has a chance of at most `LEVEL`, and ranks can't contradict the p-values next to them. Settings are not
    pooled: each is a question of its own, and one with little room would take the power from the others.
    """

    arms: tuple[DefenceArm, ...]
    judge: str

    @cached_property
    def hits(self) -> dict[str, Float[np.ndarray, "arm prompt"]]:
        """Verdicts by metric: 1 for a hit, 0 for none, NaN where an arm's answer was not judged."""
        by_metric = {}
        for metric, (expected, question) in COMPARED.items():
            by_row = [
                {
                    record.row: answer_to(record.verdicts[self.judge], question)
                    for record in arm.answers
                    if record.expected == expected
                }
                for arm in self.arms
            ]
            rows = list(dict.fromkeys(row for own in by_row for row in own))
            verdicts = [[own.get(row) for row in rows] for own in by_row]
            by_metric[metric] = np.array(verdicts, dtype=float).reshape(len(self.arms), len(rows))
        return by_metric

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Arms that are compared, by index: any two that can be ranked or are unguarded, and the guard with its bounds.

        Nothing is claimed about controls, nor about bounds among themselves.
        """
        kinds = [arm.first.kind for arm in self.arms]
        ranked = [i for i, kind in enumerate(kinds) if kind not in (BOUND, CONTROL)]
        bounds = [i for i, kind in enumerate(kinds) if kind == BOUND]
        guards = [i for i in ranked if kinds[i] == GUARD]
        return [
            *combinations(ranked, 2),
            *((guard, bound) for guard in guards for bound in bounds if self._is_opponent(guard, bound)),
        ]

    @cached_property
    def adjusted(self) -> dict[str, dict[frozenset, float]]:
        """Holm-corrected p-values of McNemar's exact test, by metric and pair of arms."""
        by_metric = {}
        for metric, hits in self.hits.items():
            is_hit, is_miss = ((hits == verdict).astype(int) for verdict in (1, 0))
            # Prompts that only the arm of the row hits, of those that both arms were judged on.
            only_first, n_both = is_hit @ is_miss.T, (is_hit + is_miss) @ (is_hit + is_miss).T
            p_values = [
                sign_test(int(only_first[pair]), int(only_first[pair[::-1]])) if n_both[pair] else np.nan
                for pair in self.pairs
            ]
            by_metric[metric] = dict(zip(map(frozenset, self.pairs), holm(p_values).tolist(), strict=True))
        return by_metric

    def rows(self, arm: DefenceArm, is_tested: bool) -> Iterator[dict]:
        """Yield the comparisons of one arm.

        Args:
            arm: one of the arms.
            is_tested: whether attacks leave room for a defence here. Without it there are no ranks, and nobody can keep
                up with anyone.
        """
        own = self.arms.index(arm)
        for other, compared in enumerate(self.arms):
            if other == own:
                continue
            if compared.first.kind == NONE:
                yield from self._changes(own, other, UNGUARDED)
            elif arm.first.kind == GUARD and self._is_opponent(own, other):
                yield from self._changes(own, other, compared.first.defence)
                yield from self._equivalence(own, other, is_tested)
        if arm.first.kind not in (NONE, BOUND, CONTROL):
            yield from self._ranks(own, is_tested)

    def _is_opponent(self, guard: int, other: int) -> bool:
        """Return whether the guard is compared with another arm: a rival, or a bound that reads the same reference."""
        kind, reads = self.arms[other].first.kind, self.arms[other].reference
        return kind not in (NONE, GUARD, CONTROL) and (kind != BOUND or reads == self.arms[guard].reference)

    def _changes(self, own: int, other: int, versus: str) -> Iterator[dict]:
        """Yield the change of each rate, with p-values before and after the correction."""
        for row in changes(self.arms[own].answers, self.arms[other].answers, self.judge):
            yield row | {"versus": versus}
            metric = row["metric"].removesuffix("_change_p")
            if metric in COMPARED and (pair := frozenset((own, other))) in self.adjusted[metric]:
                yield row | {"metric": f"{row['metric']}_holm", "value": self.adjusted[metric][pair], "versus": versus}

    def _equivalence(self, own: int, other: int, is_tested: bool) -> Iterator[dict]:
        """Yield whether the other arm keeps up with the guard: a one-sided test at `LEVEL`, not corrected.

        The rate of the other arm minus the guard's has an interval at 90 % (Tango's), whose upper limit is compared
        with the margin.
        """
        labels = {"judge": self.judge, "versus": self.arms[other].first.defence}
        for metric in COMPARED:
            pair = self._judged(metric, own, other)
            if pair.size and (is_tested or metric != "asr"):
                test = mcnemar(pair[1] == 1, pair[0] == 1, EQUIVALENCE)
                row = test.measured(f"{metric}_excess").row()
                yield labels | row | {"interval": "90 %"}
                decision = Measured(f"{metric}_no_worse", float(test.high < MARGIN), n=test.n).row()
                yield labels | decision | {"interval": NO_INTERVAL}

    def _judged(self, metric: str, first: int, second: int) -> Float[np.ndarray, "two prompt"]:
        """Return the verdicts on the prompts that both arms were judged on."""
        pair = self.hits[metric][[first, second]]
        return pair[:, ~np.isnan(pair).any(axis=0)]

    def _ranks(self, own: int, is_tested: bool) -> Iterator[dict]:
        """Yield the ranks: one more than the number of defences that are significantly lower."""
        others = [i for i, arm in enumerate(self.arms) if i != own and arm.first.kind not in (NONE, BOUND, CONTROL)]
        for metric, name in RANKS.items():
            if np.isfinite(self.hits[metric][own]).any() and (is_tested or metric != "asr"):
                lower = sum(self._is_lower(metric, other, own) for other in others)
                row = Measured(name, float(1 + lower), n=1 + len(others)).row()
                yield row | {"judge": self.judge, "interval": NO_INTERVAL}

    def _is_lower(self, metric: str, first: int, second: int) -> bool:
        pair = self._judged(metric, first, second)
        return self.adjusted[metric][frozenset((first, second))] < LEVEL and bool(pair[0].mean() < pair[1].mean())


def n_successes(answers: Sequence[AnswerRecord], judges: Sequence[str]) -> int | None:
    """Count the attacks that succeed; None if there are no attacks.

    The first judge that reports harm decides. If none does, answers count that the first judge of refusals doesn't see
    refused.
    """
    attacks = [record for record in answers if record.expected == COMPARED["asr"][0]]
    if not attacks:
        return None
    for question, success in ((SUCCEEDS, True), ("refused", False)):
        for judge in judges:
            verdicts = [answer_to(record.verdicts[judge], question) for record in attacks]
            if set(verdicts) != {None}:
                return sum(verdict is success for verdict in verdicts)
    return 0
