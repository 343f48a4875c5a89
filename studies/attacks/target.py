"""A defence as its attacker sees it: what it answers, and how near each answer is to a refusal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from interp import LLM, VLM, Guard, Prompt, run_guards
from studies.attacks.search import C, Objective
from studies.defences.countermeasures import Screen, States
from studies.defences.defence import Defence
from studies.generation.cached_model import CachedModel
from studies.generation.first_token import opening_score

Shown = Callable[[VLM | LLM, Sequence[Prompt]], list[Prompt]]
"""The prompts that a defence shows the model instead of those it is given."""


def as_they_are(vlm: VLM | LLM, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Show the prompts themselves."""
    return list(prompts)


def no_states(model: CachedModel, prompts: Sequence[Prompt]) -> None:
    """Read no references."""


@dataclass(frozen=True)
class AttackTarget:
    """A defence under attack. Its parts are known to the attacker, all but what it draws at random."""

    defence: Defence
    shown: Shown = as_they_are
    guards: tuple[Guard | None, ...] = (None,)
    """Guards of which one is drawn for each prompt; None for no guard."""
    states: States = no_states
    """Reads the references of the guards."""
    screens: tuple[Screen, ...] = ()
    """Each can refuse before the model is asked."""

    @property
    def name(self) -> str:
        return self.defence.name

    def margins(self, model: CachedModel, prompts: Sequence[Prompt]) -> Float[Tensor, "draw prompt"]:
        """Return how near each prompt is to being refused: above 0 it is, in nats, as far as the first token tells.

        It is the refusal score of the answer's first token, or the margin of a screen if that is larger: the attacker
        has to pass both. There is one row for each guard that may be drawn.
        """
        scores = {"refusal_score": opening_score(model.openings)}
        shown, size = self.shown(model.vlm, prompts), model.generation.batch_size
        runs = run_guards(model.vlm, shown, self.guards, self.states(model, prompts), scores, 1, size)
        margins = runs.scores["refusal_score"]
        for screen in self.screens:
            margins = torch.maximum(margins, screen(model, prompts))
        return margins


def expected_refusal(margins: Float[Tensor, "draw prompt"]) -> Float[Tensor, " prompt"]:
    """Return −log(1 − p) with p the probability of a refusal whose log-odds are the margins, averaged over draws.

    Prompts that are answered already count for nothing, and none for more than its margin.
    """
    return softplus(margins).mean(0)


def refusal_objective(
    target: AttackTarget, model: CachedModel, attacked: Callable[[C], Sequence[Prompt]]
) -> Objective[C]:
    """Return the attacker's objective: the mean of `expected_refusal` over the prompts that a candidate gives.

    Args:
        target: the defence that the attacker goes through.
        model: shared by all searches.
        attacked: the same number of prompts for every candidate.
    """

    def objective(candidates: Sequence[C]) -> Float[np.ndarray, " candidate"]:
        prompts = [prompt for candidate in candidates for prompt in attacked(candidate)]
        losses = expected_refusal(target.margins(model, prompts))
        return losses.reshape(len(candidates), -1).mean(1).double().numpy()

    return objective
