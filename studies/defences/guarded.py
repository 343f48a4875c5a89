"""Guards as defences."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from interp.guard import Guard
from interp.guard_files import PLAIN
from interp.inputs import Prompt
from studies.defences.defence import GUARD, Defence, GuardSetup
from studies.generation.cached_model import CachedModel, Outcome
from studies.generation.generate import answers


def guarded(guard: Guard, reference: str, source: str = "vlm_text", name: str = "guard", kind: str = GUARD) -> Defence:
    """A guard that is shown one kind of reference."""
    settings = {field: getattr(guard, field) for field in PLAIN} | {"reference": reference, "source": source}
    settings |= {"control": guard.control, "tensors": _tensors_of(guard)}
    ridden = GuardSetup(guard, reference, source)
    return Defence(name, kind, settings, lambda asker, prompts: _ride(asker, prompts, [ridden])[0], ridden)


def _tensors_of(guard: Guard) -> str:
    """Hash of what the guard was fitted to."""
    named = {name: value for name, value in vars(guard.direction).items() if isinstance(value, Tensor)}
    if guard.probe is not None:
        named["probe"] = guard.probe.weight
    digest = hashlib.sha256()
    for name, value in sorted(named.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def answer_alone(asker: CachedModel, prompt: Prompt, one: Defence) -> str:
    """One prompt, as somebody would ask a defended model: a guard is put on, and does not ride beside others."""
    if not one.ridden:
        return one.run(asker, [prompt]).answers[0]
    guard, reference, source = one.ridden.guard, one.ridden.reference, one.ridden.source
    told = None
    if guard.needs_reference and source == "llm":
        told = asker.states(asker.read([prompt], reference), source)
    elif guard.needs_reference and reference != "prompt_text":
        told = asker.read([prompt], reference)
    with guard.on(asker.vlm, told):
        return answers(asker.vlm, [prompt], asker.how)[0]


def ride(asker: CachedModel, prompts: Sequence[Prompt], guards: Sequence[Defence]) -> list[Outcome]:
    """What every guard does, all of them for one prefill where they can ride together."""
    return _ride(asker, prompts, [one.ridden for one in guards])


def _ride(asker: CachedModel, prompts: Sequence[Prompt], guards: Sequence[GuardSetup]) -> list[Outcome]:
    states = [
        asker.states(asker.read(prompts, one.reference), one.source) if one.guard.needs_reference else None
        for one in guards
    ]
    found = asker.ride(prompts, [one.guard for one in guards], states)
    return [
        outcome if read is None else replace(outcome, acted=one.guard.opens(read).tolist())
        for one, outcome, read in zip(guards, found, states, strict=True)
    ]
