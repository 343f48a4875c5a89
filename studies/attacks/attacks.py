"""The attacks, by name: what each searches for, and how what it finds changes a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp import MODALITIES, TYPOGRAPHIC, Prompt
from interp.whole_files import hash_of
from studies.attacks.pictures import (
    LEVELS,
    Descent,
    PixelGradient,
    Pixels,
    descend,
    pixels_of,
    read_descent,
    with_pixels,
    write_descent,
)
from studies.attacks.search import Advance, Found, Objective, best_of, random_search, remembered
from studies.attacks.suffixes import Suffix, one_word_changed, ordinary_words, random_suffix, with_suffix
from studies.attacks.target import AttackTarget, refusal_objective
from studies.attacks.typography import Rendering, rendered, renderings
from studies.attacks.wordings import framed, frames
from studies.bookkeeping.checkpoints import Checkpoints
from studies.defences.defence import unguarded
from studies.generation.cached_model import CachedModel

ALONE_AT_ONCE = 16
"""Candidates for one request that are scored together."""


@dataclass(frozen=True, eq=False)
class Attacker:
    """Everything that an attack has at hand."""

    model: CachedModel
    searched: Sequence[Prompt]
    """Harmful requests that universal attacks are searched on."""
    reported: Sequence[Prompt]
    """Harmful requests that are reported; attacks on single requests are searched on these."""
    checkpoints: Checkpoints
    """Scores of searches on these requests, with this seed."""
    seed: int
    is_built_in: bool = False
    """True for the built-in model, which knows few words."""

    def rng(self, i: int = 0) -> np.random.Generator:
        """Return the random numbers of a search, the same for every defence."""
        return np.random.default_rng([self.seed, i])

    def objective(
        self, target: AttackTarget, attacked: Callable[[Any], Sequence[Prompt]], attack: str, i: int = 0
    ) -> Objective:
        """Return the attacker's objective, which remembers the scores of a search that was stopped.

        Args:
            target: the defence that the attacker goes through.
            attacked: the prompts of a candidate.
            attack: its name.
            i: number of the search.
        """
        objective = refusal_objective(target, self.model, attacked)
        return remembered(objective, self.checkpoints, f"{_key(attack, target)}-{i}")


def _key(attack: str, target: AttackTarget) -> str:
    return f"{attack}-{target.name}-{target.defence.id}"


Search = Callable[[Attacker, AttackTarget, int, Advance], list[Found]]
"""Searches with a budget of queries for each: one for all requests, or one for each that is reported."""


@dataclass(frozen=True)
class AdaptiveAttack:
    """One kind of attack."""

    search: Search
    apply: Callable[[Prompt, Any], Prompt]
    """Returns a prompt with what was found in it."""
    modalities: tuple[str, ...] = tuple(MODALITIES)
    """Modalities in which it can be made."""
    share: float = 1.0
    """Share of the budget that is spent on a search."""
    is_per_request: bool = False
    """True if there is a search for each request that is reported."""
    describe: Callable[[Any], str] = str
    """Writes what was found, for its hash; only that of the built-in model is kept."""
    check: Callable[[Attacker], object] = lambda attacker: None
    """Raises an `AttackSetupError` at once where the model does not allow the attack."""

    def budget(self, budget: int) -> int:
        """Return the queries of one search."""
        return max(1, round(self.share * budget)) if budget > 0 else budget


def _universal_suffix(attacker: Attacker, target: AttackTarget, budget: int, advance: Advance) -> list[Found]:
    """Search one suffix for all requests, on requests that are not reported."""
    words, rng = ordinary_words(attacker.model.vlm), attacker.rng()

    def attacked(suffix: Suffix) -> list[Prompt]:
        return [with_suffix(prompt, suffix) for prompt in attacker.searched]

    objective = attacker.objective(target, attacked, "universal_suffix")
    start = random_suffix(words, rng)
    return [random_search(objective, start, one_word_changed(words), budget, rng, advance=advance)]


def _request_suffix(attacker: Attacker, target: AttackTarget, budget: int, advance: Advance) -> list[Found]:
    """Search a suffix for each reported request."""
    words, found = ordinary_words(attacker.model.vlm), []
    for i, prompt in enumerate(attacker.reported):
        rng = attacker.rng(i)

        def attacked(suffix: Suffix, prompt: Prompt = prompt) -> list[Prompt]:
            return [with_suffix(prompt, suffix)]

        objective = attacker.objective(target, attacked, "request_suffix", i)
        start, change = random_suffix(words, rng), one_word_changed(words)
        found.append(random_search(objective, start, change, budget, rng, ALONE_AT_ONCE, advance))
    return found


def _wording(attacker: Attacker, target: AttackTarget, budget: int, advance: Advance) -> list[Found]:
    """Choose a frame for all requests, on requests that are not reported."""

    def attacked(frame: tuple[str, str]) -> list[Prompt]:
        return [framed(prompt, frame) for prompt in attacker.searched]

    objective = attacker.objective(target, attacked, "wording")
    return [best_of(objective, frames(attacker.is_built_in), budget, attacker.rng(), advance=advance)]


def _reference_path(attacker: Attacker, target: AttackTarget, budget: int, advance: Advance) -> list[Found]:
    """Choose a rendering of typographic requests, on requests that are not reported."""
    size = attacker.model.vlm.picture_size

    def attacked(rendering: Rendering) -> list[Prompt]:
        return [rendered(prompt, rendering, size) for prompt in attacker.searched]

    objective = attacker.objective(target, attacked, "reference_path")
    # One at a time: a batch may need the same number of pictures in every prompt.
    return [best_of(objective, renderings(), budget, attacker.rng(), 1, advance)]


def _rendered(prompt: Prompt, rendering: Rendering) -> Prompt:
    """Draw a prompt's request at the size of its own picture."""
    return rendered(prompt, rendering, pixels_of(prompt).shape[1])


def _picture(attacker: Attacker, target: AttackTarget, budget: int, advance: Advance) -> list[Found]:
    """Change one picture for all requests, on requests that are not reported."""
    name = f"{_key('picture', target)}-{budget}"
    start = pixels_of(attacker.searched[0])
    gradient = PixelGradient.of(target, attacker.model, attacker.searched, start)

    def save(descent: Descent) -> None:
        write_descent(descent, attacker.checkpoints, name)

    return [descend(gradient, start, budget, read_descent(attacker.checkpoints, name), save, advance)]


def _words(attacker: Attacker) -> tuple[str, ...]:
    return ordinary_words(attacker.model.vlm)


def _gradient(attacker: Attacker) -> object:
    """Take the gradient of one prompt, without a defence."""
    prompts = attacker.searched[:1]
    start = pixels_of(prompts[0])
    pixels = torch.from_numpy(start.transpose(2, 0, 1)).float() / LEVELS
    return PixelGradient.of(AttackTarget(unguarded()), attacker.model, prompts, start)(pixels, 0)


def _hash(pixels: Pixels) -> str:
    return hash_of(pixels.tobytes())


ATTACKS = {
    "universal_suffix": AdaptiveAttack(_universal_suffix, with_suffix, describe=" ".join, check=_words),
    "request_suffix": AdaptiveAttack(
        _request_suffix, with_suffix, share=0.1, is_per_request=True, describe=" ".join, check=_words
    ),
    "wording": AdaptiveAttack(_wording, framed, describe="{request}".join),
    "picture": AdaptiveAttack(_picture, with_pixels, ("blank",), 0.2, describe=_hash, check=_gradient),
    "reference_path": AdaptiveAttack(_reference_path, _rendered, TYPOGRAPHIC),
}
"""Attacks by name."""


def applicable(modality: str) -> tuple[str, ...]:
    """Return the names of the attacks that can be made in a modality."""
    return tuple(name for name, attack in ATTACKS.items() if modality in attack.modalities)
