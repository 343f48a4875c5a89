"""Which defence stops more at equal cost to harmless answers? Steering methods at their own best and at equal KL.

A method that is stronger stops more and costs more, so a table of methods at strengths that each chose for itself
compares choices, too. Here each is also reported at the strength at which it moves the model equally far: the 95th
percentile of the KL from the unguarded model, over the first tokens of the answers to harmless validation prompts in
every swept modality, reaches a target.

The column `setting`:

    own best            layers and strength by the rule that chooses the guard, on validation
    0.1 nats, ...       the same layers, at the strength that reaches this target
    cost                seconds by stage (`category`) of the own best, as `studies.defences.stage_costs` measures them

`kl_p95` is that percentile, on validation, where it was matched, and on the reported split. `tuning` says what was
chosen, or why a target can't be reached; then nothing is answered there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from interp import Guard, Prompt, answer_kl, why_not_together
from interp.identity import fingerprint, weights_identity
from probes import Measured
from studies import layer_sweep
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.defences.defence import NEIGHBOUR, unguarded
from studies.defences.guarded import guarded
from studies.defences.lineup import VARIANTS
from studies.defences.prompt_sets import PromptSet
from studies.defences.related import best_of, grids, tuned
from studies.defences.stage_costs import stage_rows
from studies.experiment.config import Config, ConfigError
from studies.experiment.experiment import Experiment, load_experiment
from studies.experiment.reference_states import read_references
from studies.generation.cached_model import PROMPTS_PER_PASS
from studies.guards.anchor_fits import AnchorFits
from studies.guards.configuration import GuardConfiguration, guard_columns
from studies.guards.equal_kl import (
    QUANTILE,
    TARGETS,
    Match,
    at_strength,
    changes_nothing_at_zero,
    equal_kl,
    tried_strengths,
)
from studies.guards.measures import outcome_rows
from studies.guards.runner import GuardRun, GuardRunner, RunBatch, run_name
from studies.guards.sweep_grid import Grid

OWN_BEST = "own best"
N_TOKENS, N_HARMLESS = 8, 20
"""First tokens of an answer whose KL counts, and harmless prompts of each modality."""
FINALISTS = {"tiny": 1, "brief": 4, "quick": 4, "full": 4}
"""Configurations of each method whose answers are judged, by scale."""
N_STRENGTHS = 8
"""Strengths of a related method at each of its layers."""
COSTED = ("blank", "typographic")
"""Modalities in which stages are timed."""
NO_INTERVAL = "none: quantile over tokens"


@dataclass(frozen=True)
class Arm:
    """A method at one strength."""

    name: str
    setting: str
    configuration: GuardConfiguration
    tuning: str

    def columns(self, modality: str) -> dict:
        """Return the columns that identify the arm in a modality."""
        own = self.configuration
        columns = guard_columns(own.guard, own.reference_in(modality), own.source)
        return columns | {"defence": self.name, "setting": self.setting, "tuning": self.tuning}


@dataclass(frozen=True, eq=False)
class EqualStrength:
    """Methods at their own best and at equal KL: the table, and the guards behind it."""

    table: pd.DataFrame = field(repr=False)
    guards: Mapping[tuple[str, str], Guard] = field(repr=False)
    """Guards by method and setting."""
    unreached: Sequence[str] = ()
    """A line for each target that a method can't reach."""


def run(
    config: Config,
    experiment: Experiment | None = None,
    targets: Sequence[float] = TARGETS,
    cone: Tensor | None = None,
) -> EqualStrength:
    """Choose every method on validation, match its KL to the targets, and measure all of that on the reported split.

    Args:
        config: settings of the run.
        experiment: loaded from the settings by default.
        targets: KL in nats.
        cone: vectors of a refusal cone, which is then one of the methods; see `SafetyDirection.from_basis`.

    Raises:
        ConfigError: a target is not a positive number, or one is given twice.
    """
    check_targets(targets)
    experiment = experiment or load_experiment(config)
    # 1. every method at its own best, chosen on validation
    best = _own_best(experiment, cone)
    # 2. the strengths at which they reach the targets
    validation = _KlMeter(experiment, "validation", best)
    matches = _matches(validation, best, targets)
    arms = [*best.values(), *_matched_arms(best, matches)]
    # 3. answers and KL on the reported split; then where the time goes
    rows = [*_kl_rows(validation, arms, "validation"), *_unreached_rows(best, matches)]
    if config.split != "validation":
        rows += _kl_rows(_KlMeter(experiment, config.split, best), arms, config.split)
    rows += _answer_rows(experiment, arms)
    rows += _cost_rows(experiment, best) if experiment.sizes.n_costed else []
    guards = {(arm.name, arm.setting): arm.configuration.guard for arm in arms}
    table = tidy(experiment.labels | {"split": config.split} | row for row in rows)
    return EqualStrength(table, guards, [_in_words(key, match) for key, match in matches.items() if match.why_not])


def check_targets(targets: Sequence[float]) -> None:
    """Check that targets can be searched for.

    Raises:
        ConfigError: there is none, one is not a positive number, or one is given twice.
    """
    if not targets or not all(np.isfinite(target) and target > 0 for target in targets):
        raise ConfigError(f"targets {list(targets)}; expected positive numbers, in nats, as 0.1,0.3,1")
    if len(set(targets)) < len(targets):
        raise ConfigError(f"targets {list(targets)}; expected each once")


def _own_best(experiment: Experiment, cone: Tensor | None) -> dict[str, Arm]:
    """Choose layers and strength of the guard and of each related method on validation, by the same rule.

    Methods that can't share a prefill are tried at the layers of their papers only: each run takes one of its own.
    """
    top = FINALISTS[experiment.config.scale]
    tried, _ = layer_sweep.GRIDS[experiment.config.scale].configurations(AnchorFits.on(experiment))
    best = layer_sweep.search(experiment, tried, top).best.configuration
    arms = {"guard": Arm("guard", OWN_BEST, best, best_of(len(tried)))}
    always = replace(best, guard=replace(best.guard, **VARIANTS["guard_always"]))
    arms["guard_always"] = Arm("guard_always", OWN_BEST, always, "the guard's")
    text, blank = (experiment.activations("anchors", modality) for modality in ("text", "blank"))
    windows = Grid(layers=(experiment.sizes.layers, "middle-to-last")).windows(experiment.vlm.n_layers)
    max_new_tokens = experiment.config.generation.max_new_tokens
    for name, configurations in grids(text, blank, windows, N_STRENGTHS * len(windows), cone).items():
        published = configurations[0].guard
        if why_not_together(experiment.vlm, published, max_new_tokens):
            configurations = [each for each in configurations if each.guard.layers == published.layers]
        found = layer_sweep.search(experiment, configurations, top)
        arms[name] = Arm(name, OWN_BEST, found.best.configuration, tuned(name, found.best, len(configurations)).tuning)
    return arms


@dataclass(frozen=True)
class _KlMeter:
    """Measures the KL of guards on the harmless prompts of a split, in every swept modality; what is done is saved."""

    experiment: Experiment
    split: str
    best: Mapping[str, Arm]
    """The methods, which decide what reference each guard reads."""

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        by_modality = {name: self.experiment.prompts(self.split, name) for name in self.experiment.sizes.swept}
        return {
            name: [each for each in own if not each.query.harmful][:N_HARMLESS] for name, own in by_modality.items()
        }

    @cached_property
    def checkpoints(self) -> Checkpoints:
        depends_on = {"model": weights_identity(self.experiment.vlm), "measure": "answer_kl"}
        return Checkpoints(Path(self.experiment.config.out) / "kl", depends_on)

    def __call__(self, guards: Sequence[tuple[str, Guard]]) -> list[float]:
        """Return the quantile over tokens of the KL of each guard, given with the name of its method."""
        parts = {name: self._measured(name, guards) for name in self.prompts}
        return [float(np.nanquantile(np.concatenate(each), QUANTILE)) for each in zip(*parts.values(), strict=True)]

    @property
    def n_prompts(self) -> int:
        return sum(map(len, self.prompts.values()))

    def _measured(self, modality: str, guards: Sequence[tuple[str, Guard]]) -> list[Float[np.ndarray, "prompt token"]]:
        prompts, hashes = self.prompts[modality], {}
        runs = [GuardRun(guard, self._states(modality, self.best[name].configuration)) for name, guard in guards]
        of_prompts = fingerprint(self.experiment.vlm, prompts)
        names = [run_name(of_prompts, N_TOKENS, run, hashes) for run in runs]
        missing = [i for i, name in enumerate(names) if self.checkpoints.read(name) is None]
        if missing:
            with phase(f"KL on {self.split}, {modality}", len(missing) * len(prompts)) as report:
                own, states = [runs[i].guard for i in missing], [runs[i].states for i in missing]
                values = answer_kl(
                    self.experiment.vlm, prompts, own, states, N_TOKENS, PROMPTS_PER_PASS, report
                ).numpy()
            for i, kl in zip(missing, values, strict=True):
                self.checkpoints.write(names[i], {"kl": kl})
        return [self.checkpoints.read(name)["kl"] for name in names]

    def _states(self, modality: str, configuration: GuardConfiguration) -> Tensor | None:
        if not configuration.guard.needs_reference:
            return None
        key = modality, configuration.reference_in(modality), configuration.source
        if key not in self._references:
            self._references[key] = read_references(self.experiment, self.prompts[modality], *key[1:]).states
        return self._references[key]

    @cached_property
    def _references(self) -> dict[tuple[str, str, str], Tensor]:
        return {}


def _matches(meter: _KlMeter, best: Mapping[str, Arm], targets: Sequence[float]) -> dict[tuple[str, float], Match]:
    """Find the strengths at which all methods reach the targets, those that can share a prefill together."""
    guards = {name: arm.configuration.guard for name, arm in best.items()}

    def measure(asked: Sequence[tuple[str, float]]) -> list[float]:
        return meter([(name, at_strength(guards[name], strength)) for name, strength in asked])

    tried = {name: tried_strengths(guard) for name, guard in guards.items()}
    from_zero = [name for name, guard in guards.items() if changes_nothing_at_zero(guard)]
    return equal_kl(measure, tried, targets, from_zero)


def _matched_arms(best: Mapping[str, Arm], matches: Mapping[tuple[str, float], Match]) -> list[Arm]:
    arms = []
    for (name, target), match in matches.items():
        if not match.why_not:
            own = best[name].configuration
            guard = at_strength(own.guard, match.strength)
            tuning = f"own best's layers, strength {match.strength:.3g}: {match.kl:.3g} nats on validation"
            arms.append(Arm(name, _setting(target), replace(own, guard=guard), tuning))
    return arms


def _setting(target: float) -> str:
    return f"{target:g} nats"


def _in_words(key: tuple[str, float], match: Match) -> str:
    return f"{key[0]} can't reach {key[1]:g} nats: {match.why_not}"


def _kl_rows(meter: _KlMeter, arms: Sequence[Arm], split: str) -> list[dict]:
    measured = meter([(arm.name, arm.configuration.guard) for arm in arms])
    return [
        _pooled(arm) | {"split": split} | _kl_row(kl, meter.n_prompts) for arm, kl in zip(arms, measured, strict=True)
    ]


def _unreached_rows(best: Mapping[str, Arm], matches: Mapping[tuple[str, float], Match]) -> list[dict]:
    """Return a row for each target that can't be reached, with the nearest KL, and why in `tuning`."""
    return [
        {"defence": name, "setting": _setting(target), "split": "validation", "tuning": f"not reached: {match.why_not}"}
        | _kl_row(match.kl, 0)
        for (name, target), match in matches.items()
        if match.why_not
    ]


def _kl_row(kl: float, n: int) -> dict:
    return Measured("kl_p95", kl, n=n).row() | {"interval": NO_INTERVAL}


def _pooled(arm: Arm) -> dict:
    """Return the columns of an arm for a measure over all modalities: references differ between these."""
    return {name: value for name, value in arm.columns("").items() if name != "reference"}


def _answer_rows(experiment: Experiment, arms: Sequence[Arm]) -> list[dict]:
    """Judge the answers of every arm, and of the unguarded model, in every swept modality."""
    rows, runner, batches, prompts = [], GuardRunner(experiment), [], {}
    for modality in experiment.sizes.swept:
        prompts[modality] = experiment.prompts(experiment.config.split, modality)
        states: dict[tuple, Tensor] = {}
        runs = [GuardRun(None, None)]
        for arm in arms:
            own = arm.configuration
            key = own.reference_in(modality), own.source
            if own.guard.needs_reference and key not in states:
                states[key] = read_references(experiment, prompts[modality], *key).states
            runs.append(GuardRun(own.guard, states[key] if own.guard.needs_reference else None))
        batches.append(RunBatch(prompts[modality], runs, experiment.config.generation.max_new_tokens))
    with phase("answers at equal strength", sum(len(each.prompts) * len(each.runs) for each in batches)) as report:
        outcomes = iter(runner.run(batches, report))
    for modality, own in prompts.items():
        for arm in (None, *arms):
            columns = arm.columns(modality) if arm else {"defence": "unguarded", "setting": OWN_BEST}
            rows += [columns | {"modality": modality} | row for row in outcome_rows(experiment, own, next(outcomes))]
    return rows


def _cost_rows(experiment: Experiment, best: Mapping[str, Arm]) -> list[dict]:
    rows, modalities = [], [name for name in COSTED if name in experiment.sizes.swept]
    with phase("cost of each stage", len(modalities) * (1 + len(best))) as report:
        for modality in modalities:
            prompts = experiment.prompts(experiment.config.split, modality)
            defences = [unguarded()]
            for name, arm in best.items():
                own = arm.configuration
                defences.append(guarded(own.guard, own.reference_in(modality), own.source, name, NEIGHBOUR, arm.tuning))
            prompt_set = PromptSet.of("plain", modality, prompts, experiment.dataset)
            rows += stage_rows(experiment.cached_model, prompt_set, defences, experiment.sizes.n_costed, report)
    return rows
