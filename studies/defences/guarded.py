"""Guards as defences."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp import GUARD_SETTINGS, Guard, Prompt
from studies.defences.defence import BOUND, GUARD, REFUSAL, Defence, GuardSetup, refuse_where
from studies.generation.cached_model import CachedModel, Outcome
from studies.generation.generate import answers


def guarded(
    guard: Guard, reference: str, source: str = "vlm_text", name: str = "guard", kind: str = GUARD, tuning: str = ""
) -> Defence:
    """Return a guard that reads one kind of reference, as a defence.

    Args:
        guard: the fitted guard.
        reference: which text it reads, see `studies.generation.reference_texts.reference_texts`.
        source: whose states of that text: `vlm_text` or `llm`.
        name: what the defence is called in tables.
        kind: one of `studies.defences.defence.KINDS`.
        tuning: what was chosen on validation.
    """
    setup = GuardSetup(guard, reference, source)
    settings = _settings(setup)
    return Defence(name, kind, settings, lambda model, prompts: _run_setups(model, prompts, [setup])[0], setup, tuning)


def gate_refuser(guard: Guard, reference: str, source: str = "vlm_text", tuning: str = "") -> Defence:
    """Return the bound that refuses where the guard's gate opens, and leaves other answers alone.

    A guard that isn't better than its own gate doesn't need its direction. The refusal is always `REFUSAL`.

    Args:
        guard: the guard whose gate it is; at several layers it is open if it opens at any of them.
        reference: which text the gate reads.
        source: whose states of that text: `vlm_text` or `llm`.
        tuning: what was chosen on validation.
    """
    setup = GuardSetup(guard, reference, source)

    def run(model: CachedModel, prompts: Sequence[Prompt]) -> Outcome:
        return refuse_where(model, prompts, _opens(setup, model, prompts))

    return Defence("gate_refuser", BOUND, _settings(setup) | {"refusal": REFUSAL}, run, tuning=tuning)


def _settings(setup: GuardSetup) -> dict:
    return guard_settings(setup.guard, setup.reference, setup.source)


def guard_settings(guard: Guard, reference: str, source: str | None = None) -> dict:
    """Return everything that a guard does with one kind of reference, as JSON values.

    Args:
        guard: the fitted guard.
        reference: which text it reads.
        source: whose states of that text; by default those that the guard names.
    """
    settings = {field: getattr(guard, field) for field in GUARD_SETTINGS}
    settings |= {"reference": reference, "source": source or guard.source}
    return settings | {"control": guard.control, "tensors": _tensor_hash(guard)}


def _opens(setup: GuardSetup, model: CachedModel, prompts: Sequence[Prompt]) -> list[bool]:
    """Return for each prompt whether the guard's gate opens at any of its layers."""
    if setup.guard.gate == "always":
        return [True] * len(prompts)
    return opens_anywhere(setup.guard, reference_states(setup, model, prompts))


def reference_states(
    setup: GuardSetup, model: CachedModel, prompts: Sequence[Prompt]
) -> Float[Tensor, "prompt layer d_model"] | None:
    """Return the states of the references that a guard reads; None if it needs none."""
    if not setup.guard.needs_reference:
        return None
    return model.text_states(model.reference_texts(prompts, setup.reference), setup.source)


def opens_anywhere(guard: Guard, states: Float[Tensor, "prompt layer d_model"]) -> list[bool]:
    """Return whether the gate opens at any guarded layer; only the gate `sign` can differ between layers."""
    return torch.stack([guard.opens(states, layer) for layer in guard.layers]).any(0).tolist()


def _tensor_hash(guard: Guard) -> str:
    """Hash everything that was fitted."""
    tensors = guard.direction.tensors
    if guard.probe is not None:
        tensors["probe"] = guard.probe.weight
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def answer_alone(model: CachedModel, prompt: Prompt, defence: Defence) -> str:
    """Answer one prompt as a deployed model would: a guard is applied by itself, not together with others."""
    if not defence.guard_setup:
        return defence.run(model, [prompt]).answers[0]
    setup = defence.guard_setup
    references = None
    if setup.guard.needs_reference and setup.source == "llm":
        references = model.text_states(model.reference_texts([prompt], setup.reference), setup.source)
    elif setup.guard.needs_reference and setup.reference != "prompt_text":
        references = model.reference_texts([prompt], setup.reference)
    with setup.guard.on(model.vlm, references):
        return answers(model.vlm, [prompt], model.generation)[0]


def run_together(model: CachedModel, prompts: Sequence[Prompt], guards: Sequence[Defence]) -> list[Outcome]:
    """Return the outcome of every guard; guards that can, share one prefill."""
    return _run_setups(model, prompts, [defence.guard_setup for defence in guards])


def _run_setups(model: CachedModel, prompts: Sequence[Prompt], setups: Sequence[GuardSetup]) -> list[Outcome]:
    references = [reference_states(setup, model, prompts) for setup in setups]
    outcomes = model.run_guards(prompts, [setup.guard for setup in setups], references)
    return [
        outcome if states is None else replace(outcome, acted=opens_anywhere(setup.guard, states))
        for setup, outcome, states in zip(setups, outcomes, references, strict=True)
    ]
