"""The defences that are attacked: without a guard, with it, and with countermeasures around it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Guard, Prompt, coordinates, fit_gate
from studies.attacks.search import AttackSetupError
from studies.attacks.target import AttackTarget
from studies.bookkeeping.suggestions import did_you_mean
from studies.defences.countermeasures import (
    Screen,
    States,
    Surprise,
    bigram_surprise,
    detector_screen,
    gate_screen,
    one_of,
    perplexity_screen,
    screened,
    text_and_halves,
    text_log_perplexities,
    text_score_screen,
    with_states,
    with_strictest_reference,
)
from studies.defences.defence import unguarded
from studies.defences.detours import text_verdict
from studies.defences.guarded import gate_refuser, guarded
from studies.defences.prompt_wordings import BUILT_IN_WORDINGS, WORDINGS, by_prompt, reworded
from studies.experiment.config import BUILT_IN
from studies.experiment.experiment import Experiment
from studies.generation.cached_model import CachedModel
from studies.generation.reference_texts import reference_for
from studies.guards.anchor_fits import AnchorFits

STRONGER = 2.0
"""How many times as strong the stronger guard is."""


@dataclass(frozen=True, eq=False)
class Defended:
    """A model, a guard on it, and everything that countermeasures are fitted on."""

    experiment: Experiment
    guard: Guard
    modality: str
    """Modality of the attacked prompts."""

    @property
    def reference(self) -> str:
        return reference_for(self.modality)

    def states(self, model: CachedModel, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt layer d_model"] | None:
        """Read the references as the guard does; nothing for a guard that needs none."""
        if not self.guard.needs_reference:
            return None
        return model.text_states(model.reference_texts(prompts, self.reference), self.guard.source)

    @cached_property
    def neighbours(self) -> tuple[int, ...]:
        """The guard's layers with the one before and the one after them."""
        first, last = min(self.guard.layers), max(self.guard.layers)
        n_layers = self.experiment.vlm.n_layers
        return tuple(range(max(0, first - 1), min(n_layers, last + 2)))

    def at(self, layers: tuple[int, ...]) -> Guard:
        """Return the guard at other layers, its gate fitted there."""
        fits, source = AnchorFits.on(self.experiment), self.guard.source
        if self.guard.gate == "probe":
            return replace(self.guard, layers=layers, direction_layer=None, probe=fits.gate(layers[0], source))
        moved = replace(self.guard, layers=layers, direction_layer=None)
        return replace(moved, threshold=fits.threshold(moved, source)) if moved.gate == "threshold" else moved

    def with_border_on_anchors(self, states: States) -> Guard:
        """Return the guard with its threshold midway between the classes of anchors, read in another way."""
        if self.guard.gate != "threshold":
            return self.guard
        anchors, layer = self.experiment.prompts("anchors", "text"), self.guard.layers[0]
        read = states(self.experiment.cached_model, anchors)[:, layer].float()
        harm = coordinates(read, self.guard.basis(layer))[:, 0]
        is_harmful = torch.tensor([prompt.query.harmful for prompt in anchors])
        return replace(self.guard, threshold=((harm[is_harmful].mean() + harm[~is_harmful].mean()) / 2).item())

    @property
    def gap(self) -> float:
        """Distance between the classes' mean coordinates on the anchors at the guard's first layer."""
        direction = AnchorFits.on(self.experiment).direction()
        at = self.guard.fitted_at(self.guard.layers[0])
        return (direction.harmful[at, 0] - direction.harmless[at, 0]).item()


def _unguarded(on: Defended) -> AttackTarget:
    return AttackTarget(unguarded())


def _worded(name: str, on: Defended) -> AttackTarget:
    wording = (BUILT_IN_WORDINGS if on.experiment.config.model == BUILT_IN else WORDINGS)[name]
    return AttackTarget(by_prompt(name, wording), shown=partial(reworded, wording))


def _text_verdict(on: Defended) -> AttackTarget:
    judge = on.experiment.judges[0]
    defence = text_verdict(on.reference, judge.refuses, judge.name)
    return AttackTarget(defence, screens=(text_score_screen(on.reference),))


def _gate(on: Defended) -> AttackTarget:
    screen = gate_screen(on.guard, on.states, on.gap)
    return AttackTarget(gate_refuser(on.guard, on.reference, on.guard.source), screens=(screen,))


def _guard(on: Defended) -> AttackTarget:
    return _as_target(ATTACKED_GUARD, on.guard, on)


def _stronger(on: Defended) -> AttackTarget:
    return _as_target("guard_stronger", replace(on.guard, strength=STRONGER * on.guard.strength), on)


def _more_layers(on: Defended) -> AttackTarget:
    return _as_target("guard_more_layers", on.at(on.neighbours), on)


def _as_target(name: str, guard: Guard, on: Defended) -> AttackTarget:
    return AttackTarget(guarded(guard, on.reference, guard.source, name), guards=(guard,), states=on.states)


def _references(on: Defended) -> AttackTarget:
    states: States = with_strictest_reference(on.guard, text_and_halves(on.reference), on.guard.source)
    guard = on.with_border_on_anchors(states)
    return AttackTarget(with_states("guard_references", guard, on.reference, states), guards=(guard,), states=states)


def _random_layer(on: Defended) -> AttackTarget:
    guards = tuple(on.at((layer,)) for layer in on.neighbours)
    defence = one_of("guard_random_layer", guards, on.reference, on.states)
    return AttackTarget(defence, guards=guards, states=on.states)


def _perplexity(on: Defended) -> AttackTarget:
    return _filtered("guard_perplexity", text_log_perplexities, on)


def _bigrams(on: Defended) -> AttackTarget:
    experiment = on.experiment
    anchors = [prompt.text for prompt in experiment.prompts("anchors", on.modality)]
    return _filtered("guard_bigrams", bigram_surprise(experiment.vlm.tokenizer, anchors), on)


def _filtered(name: str, surprise: Surprise, on: Defended) -> AttackTarget:
    """Return the guard behind a filter that all requests of validation pass, harmful or not: they are in use."""
    experiment = on.experiment
    texts = [prompt.text for prompt in experiment.prompts("validation", on.modality)]
    threshold = round(surprise(experiment.cached_model, texts).max().item(), 3)
    return _behind(name, perplexity_screen(surprise, threshold), {"log_perplexity": threshold}, on)


def _detector(on: Defended) -> AttackTarget:
    layer = on.guard.layers[0]
    probe = fit_gate(on.experiment.activations("anchors", on.modality), layer)
    return _behind("guard_detector", detector_screen(probe, layer), {"probe": "logistic", "layer": layer}, on)


def _text_score(on: Defended) -> AttackTarget:
    return _behind("guard_text_score", text_score_screen(on.reference), {"text_score": 0.0}, on)


def _behind(name: str, screen: Screen, settings: dict, on: Defended) -> AttackTarget:
    """Return the guard behind a screen."""
    inner = guarded(on.guard, on.reference, on.guard.source)
    return AttackTarget(
        screened(name, screen, inner, settings), guards=(on.guard,), states=on.states, screens=(screen,)
    )


TARGETS: dict[str, Callable[[Defended], AttackTarget]] = {
    "unguarded": _unguarded,
    "self_reminder": partial(_worded, "self_reminder"),
    "safety_prompt": partial(_worded, "safety_prompt"),
    "text_verdict": _text_verdict,
    "gate_refuser": _gate,
    "guard": _guard,
    "guard_stronger": _stronger,
    "guard_more_layers": _more_layers,
    "guard_references": _references,
    "guard_random_layer": _random_layer,
    "guard_perplexity": _perplexity,
    "guard_bigrams": _bigrams,
    "guard_detector": _detector,
    "guard_text_score": _text_score,
}
"""Defences that can be attacked, by name; `guard_...` are the guard with a countermeasure."""
ATTACKED_GUARD = "guard"
"""The guard as it was given or chosen, without a countermeasure."""
TRANSFERRED_FROM = "unguarded"
"""The defence whose attacks are tried on all others."""


def targets(names: Sequence[str], on: Defended) -> list[AttackTarget]:
    """Return the defences with these names, all if there are none; the one that attacks transfer from always first."""
    check_defences(names)
    chosen = [name for name in TARGETS if name in names or not names or name == TRANSFERRED_FROM]
    return [TARGETS[name](on) for name in chosen]


def check_defences(names: Sequence[str]) -> None:
    """Check the names of defences.

    Raises:
        AttackSetupError: one does not exist.
    """
    for name in names:
        if name not in TARGETS:
            raise AttackSetupError(
                f"defence {name!r} can't be attacked; expected any of {', '.join(TARGETS)}{did_you_mean(name, TARGETS)}"
            )
