"""The attacks, by name: what each searches for, and how what it finds changes a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp import Prompt
from studies.attacks.search import Advance, Found, Objective, random_search, remembered
from studies.attacks.suffixes import one_word_changed, ordinary_words, random_suffix, with_suffix
from studies.attacks.target import Target, refusal_objective
from studies.bookkeeping.checkpoints import Checkpoints
from studies.generation.cached_model import CachedModel


@dataclass(frozen=True, eq=False)
class Attacker:
    """What an attack has at hand."""

    model: CachedModel
    searched: Sequence[Prompt]
    """Harmful requests that universal attacks are searched on."""
    reported: Sequence[Prompt]
    """Harmful requests that are reported; attacks on single requests are searched on these."""
    checkpoints: Checkpoints
    """Scores of searches on these requests, with this seed."""
    seed: int

    def rng(self, i: int = 0) -> np.random.Generator:
        """Return the random numbers of a search, the same for every defence."""
        return np.random.default_rng([self.seed, i])

    def objective(
        self, target: Target, attacked: Callable[[Any], Sequence[Prompt]], attack: str, i: int = 0
    ) -> Objective:
        """Return the attacker's objective, which remembers the scores of a search that was stopped.

        Args:
            target: the defence that the attacker goes through.
            attacked: the prompts of a candidate.
            attack: its name.
            i: number of the search.
        """
        name = f"{attack}-{target.name}-{target.defence.id}-{i}"
        return remembered(refusal_objective(target, self.model, attacked), self.checkpoints, name)


Search = Callable[[Attacker, Target, int, Advance], list[Found]]
"""Searches with a budget of queries for each: one for all requests, or one for each that is reported."""


@dataclass(frozen=True)
class Attack:
    """One kind of attack."""

    search: Search
    apply: Callable[[Prompt, Any], Prompt]
    """Returns a prompt with what was found in it."""
    share: float = 1.0
    """Share of the budget that is spent on a search."""
    describe: Callable[[Any], str] = str
    """Writes what was found, for its hash; only that of the built-in model is kept."""

    def budget(self, budget: int) -> int:
        """Return the queries of one search."""
        return max(1, round(self.share * budget)) if budget > 0 else budget


def _universal_suffix(attacker: Attacker, target: Target, budget: int, advance: Advance) -> list[Found]:
    """Search one suffix for all requests, on requests that are not reported."""
    words, rng = ordinary_words(attacker.model.vlm), attacker.rng()
    objective = attacker.objective(
        target, lambda suffix: [with_suffix(prompt, suffix) for prompt in attacker.searched], "universal_suffix"
    )
    start = random_suffix(words, rng)
    return [random_search(objective, start, one_word_changed(words), budget, rng, advance=advance)]


ATTACKS = {
    "universal_suffix": Attack(_universal_suffix, with_suffix, describe=" ".join),
}
"""Attacks by name."""
