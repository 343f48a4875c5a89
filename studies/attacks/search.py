"""Searches for an input that lowers a score within a budget of queries. Nothing here knows a model.

A query is one candidate that is scored. What a candidate is, and on how many requests it is scored, is up to the
objective.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float

from studies.bookkeeping.checkpoints import Checkpoints

C = TypeVar("C")
Objective = Callable[[Sequence[C]], Float[np.ndarray, " candidate"]]
"""Scores of candidates; the attacker wants a low one."""
Advance = Callable[[int], None]
"""Called with the number of queries spent since the last call."""
AT_ONCE = 4
"""Candidates of a random search that are scored together: more are faster, and spend more queries on old ideas."""


class AttackSetupError(ValueError):
    """An attack that can't be made with these settings, or on this model."""


@dataclass(frozen=True)
class Improvement(Generic[C]):
    """A candidate that was better than all before it."""

    n_queries: int
    """Queries spent when it was found, its own included."""
    candidate: C
    score: float


@dataclass(frozen=True)
class Found(Generic[C]):
    """Everything that a search has found."""

    trace: tuple[Improvement[C], ...]
    """Every improvement, the start first."""
    n_queries: int
    """Queries spent."""

    def after(self, n_queries: int) -> Improvement[C]:
        """Return the best candidate of the first queries, at least one."""
        return [step for step in self.trace if step.n_queries <= max(1, n_queries)][-1]

    @property
    def best(self) -> C:
        return self.trace[-1].candidate


def check_budget(budget: int) -> None:
    """Check that there is anything to spend.

    Raises:
        AttackSetupError: there is not.
    """
    if budget < 1:
        raise AttackSetupError(f"a budget of {budget} queries; expected at least 1")


def random_search(
    objective: Objective[C],
    start: C,
    propose: Callable[[C, np.random.Generator], C],
    budget: int,
    rng: np.random.Generator,
    at_once: int = AT_ONCE,
    advance: Advance = lambda n_queries: None,
) -> Found[C]:
    """Change the best candidate so far at random, and keep the change where it lowers the score.

    As in Andriushchenko et al. (arXiv:2404.02151), section 3, who change a suffix; here a few changes are tried
    together.

    Args:
        objective: scores candidates; equal candidates get equal scores.
        start: scored first, as one query.
        propose: returns a changed candidate.
        budget: the most candidates that are scored.
        rng: decides everything that is random.
        at_once: candidates that are changes of the same best one.
        advance: progress callback.

    Raises:
        AttackSetupError: the budget is 0.
    """
    check_budget(budget)
    trace = [Improvement(1, start, float(objective([start])[0]))]
    advance(1)
    for n_spent in range(1, budget, at_once):
        candidates = [propose(trace[-1].candidate, rng) for _ in range(min(at_once, budget - n_spent))]
        trace += _improvements(candidates, objective(candidates), n_spent, trace[-1].score)
        advance(len(candidates))
    return Found(tuple(trace), budget)


def best_of(
    objective: Objective[C],
    candidates: Sequence[C],
    budget: int,
    rng: np.random.Generator,
    at_once: int = AT_ONCE,
    advance: Advance = lambda n_queries: None,
) -> Found[C]:
    """Score the first candidate and then the others in random order, as many as the budget allows.

    Args:
        objective: scores candidates.
        candidates: at least one; the first is where the attack starts, such as no change at all.
        budget: the most candidates that are scored.
        rng: decides the order.
        at_once: candidates scored together.
        advance: progress callback.

    Raises:
        AttackSetupError: the budget is 0, or there is no candidate.
    """
    check_budget(budget)
    if not candidates:
        raise AttackSetupError("no candidates for the attack; expected at least one")
    order = [0, *(1 + rng.permutation(len(candidates) - 1))][:budget]
    trace: list[Improvement[C]] = []
    for n_spent in range(0, len(order), at_once):
        part = [candidates[i] for i in order[n_spent : n_spent + at_once]]
        trace += _improvements(part, objective(part), n_spent, trace[-1].score if trace else None)
        advance(len(part))
    return Found(tuple(trace), len(order))


def _improvements(
    candidates: Sequence[C], scores: Float[np.ndarray, " candidate"], n_spent: int, best: float | None
) -> list[Improvement[C]]:
    """Return the candidates that were the best so far, one after the other; without a best score the first one is."""
    found = []
    for i, (candidate, score) in enumerate(zip(candidates, scores, strict=True)):
        if best is None or score < best:
            best = float(score)
            found.append(Improvement(n_spent + i + 1, candidate, best))
    return found


def remembered(objective: Objective[C], checkpoints: Checkpoints, name: str) -> Objective[C]:
    """Return the objective with the scores of a search that was stopped, and save those that are new.

    A search decides everything by its `rng` and the scores, so with the same scores it takes the same way again.

    Args:
        objective: scores candidates.
        checkpoints: of this computation only; its inputs name everything that scores depend on.
        name: of the search among those with the same inputs.
    """
    saved = checkpoints.read(name)
    scores, n_asked = [] if saved is None else saved["scores"].tolist(), 0

    def score(candidates: Sequence[C]) -> Float[np.ndarray, " candidate"]:
        nonlocal n_asked
        start, n_asked = n_asked, n_asked + len(candidates)
        if len(scores) < n_asked:
            scores[start:] = np.asarray(objective(candidates), dtype=float).tolist()
            checkpoints.write(name, {"scores": np.array(scores)})
        return np.array(scores[start:n_asked])

    return score
