"""Does a guard hold against an attacker who knows it, and what helps? Attack success against queries spent.

For each defence an attacker searches an input that lowers the refusal of its first answer token, through the whole
defence (`objective` `own`), or through the unguarded model alone (`transferred`). Universal attacks are searched on
validation requests and reported on others. The columns `setting` and `queries` are the attack and the queries spent;
`no_attack` is what each defence costs and stops without one. This is an evaluation of defences: answers are judged and
not kept, and what was found is kept for the built-in model alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from interp import Guard
from interp.identity import fingerprint, weights_identity
from interp.whole_files import hash_of
from studies import layer_sweep
from studies.attacks.attacks import ATTACKS, AdaptiveAttack, Attacker, applicable
from studies.attacks.lineup import TRANSFERRED_FROM, Defended, check_defences, targets
from studies.attacks.outcomes import Answering, JudgedAnswers, attack_change_rows, over_refusal_rows, success_rows
from studies.attacks.search import AttackSetupError, Found, check_budget
from studies.attacks.target import AttackTarget
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.progress import phase
from studies.bookkeeping.suggestions import did_you_mean
from studies.bookkeeping.tables import tidy
from studies.experiment.config import BUILT_IN, Config
from studies.experiment.experiment import Experiment, load_experiment

NO_ATTACK = "no_attack"
OWN, TRANSFERRED = "own", "transferred"
MARKS = (0, 10, 50, 100, 250, 500, 1000, 2500)
"""Queries after which attack success is reported, as far as the budget goes; of transferred attacks first and last."""


@dataclass(frozen=True)
class AttackSettings:
    """The attacks, the defences and the budget."""

    attacks: tuple[str, ...] = ()
    """Names of attacks; all that can be made in the modality if there are none."""
    defences: tuple[str, ...] = ()
    """Names of defences; all if there are none. The unguarded model is always attacked."""
    budget: int = 500
    """Queries of one search: candidates that are scored."""
    n_searched: int = 11
    """Harmful validation requests that a universal candidate is scored on."""
    modality: str = "blank"
    """Modality of the attacked prompts."""

    def check(self) -> None:
        """Check everything that can be checked without a model.

        Raises:
            AttackSetupError: an attack or a defence does not exist, or there is nothing to spend.
        """
        check_budget(self.budget)
        check_defences(self.defences)
        for name in self.attacks:
            if name not in ATTACKS:
                suggestion = did_you_mean(name, ATTACKS)
                raise AttackSetupError(
                    f"attack {name!r} does not exist; expected any of {', '.join(ATTACKS)}{suggestion}"
                )
            if self.modality not in ATTACKS[name].modalities:
                possible = ", ".join(ATTACKS[name].modalities)
                raise AttackSetupError(f"attack {name!r} on modality {self.modality!r}; expected one of {possible}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the attacks that are made."""
        return self.attacks or applicable(self.modality)


@dataclass(frozen=True, eq=False)
class AdaptiveResult:
    """Attack success of every defence, and what was found."""

    table: pd.DataFrame = field(repr=False)
    found: Sequence[dict] = field(repr=False)
    """One record for each search: attack, defence, queries, score, and the hash of what was found."""


def run(
    config: Config,
    settings: AttackSettings | None = None,
    experiment: Experiment | None = None,
    guard: Guard | None = None,
) -> AdaptiveResult:
    """Attack every defence with the same budget.

    Args:
        config: settings of the run.
        settings: attacks, defences and budget.
        experiment: loaded from the settings by default.
        guard: by default the one that the sweep chooses on validation, which is run first.

    Returns:
        A table of attack success at `MARKS` with Wilson intervals, its paired change from no attack, over-refusal
        without an attack, and the attacker's own loss on the requests searched on; and what was found.

    Raises:
        AttackSetupError: the settings are invalid, or the model does not allow an attack.
    """
    settings = settings or AttackSettings()
    settings.check()
    experiment = experiment or load_experiment(config)
    attacker, answering = _attacker(experiment, settings), Answering.of(experiment, Path(config.out))
    # What the model does not allow is said before the sweep.
    for name in settings.chosen:
        ATTACKS[name].check(attacker)
    if guard:
        experiment.check_source(guard.source)
    else:
        chosen = layer_sweep.choice(experiment)
        guard = replace(chosen.guard, source=chosen.source)
    attacked = targets(settings.defences, Defended(experiment, guard, settings.modality))
    # 1. what each defence stops, and what it costs, without an attack
    rows = _without_attack(experiment, settings, attacked, attacker, answering)
    # 2. each attack: searched through each defence, then reported on other requests
    found = []
    for name in settings.chosen:
        searched = _searches(name, attacker, attacked, settings)
        rows += _attacked_rows(name, attacker, attacked, searched, answering)
        found += _records(name, searched, experiment.config.model == BUILT_IN)
    labels = experiment.labels | {"modality": settings.modality}
    return AdaptiveResult(tidy({**labels, "split": config.split, **row} for row in rows), found)


Searches = dict[str, list[Found]]
"""Results of the searches through each defence, by its name."""


def _attacker(experiment: Experiment, settings: AttackSettings) -> Attacker:
    searched, reported = (
        [prompt for prompt in experiment.prompts(split, settings.modality, n) if prompt.query.harmful]
        for split, n in (("validation", settings.n_searched), (experiment.config.split, None))
    )
    depends_on = {
        "model": weights_identity(experiment.vlm),
        "refusal_openings": experiment.refusal_openings.ids,
        "prompts": [fingerprint(experiment.vlm, prompts) for prompts in (searched, reported)],
        "seed": experiment.config.seed,
    }
    checkpoints = Checkpoints(Path(experiment.config.out) / "searches", depends_on)
    is_built_in = experiment.config.model == BUILT_IN
    return Attacker(experiment.cached_model, searched, reported, checkpoints, experiment.config.seed, is_built_in)


def _without_attack(
    experiment: Experiment,
    settings: AttackSettings,
    attacked: Sequence[AttackTarget],
    attacker: Attacker,
    answering: Answering,
) -> list[dict]:
    prompts = experiment.prompts(experiment.config.split, settings.modality)
    harmless, rows = [prompt for prompt in prompts if not prompt.query.harmful], []
    with phase("without an attack", len(attacked)) as report:
        for target in attacked:
            measured = success_rows(answering.judged(target, attacker.reported))
            measured += over_refusal_rows(answering.judged(target, harmless))
            labels = target.defence.columns | {"setting": NO_ATTACK, "queries": 0}
            rows += [labels | row for row in measured]
            report(1, note=target.name)
    return rows


def _searches(name: str, attacker: Attacker, attacked: Sequence[AttackTarget], settings: AttackSettings) -> Searches:
    attack, searches = ATTACKS[name], {}
    budget = attack.budget(settings.budget)
    n_searches = len(attacked) * (len(attacker.reported) if attack.is_per_request else 1)
    with phase(name, budget * n_searches) as report:
        for target in attacked:
            searches[target.name] = attack.search(attacker, target, budget, report)
    return searches


def _attacked_rows(
    name: str, attacker: Attacker, attacked: Sequence[AttackTarget], searches: Searches, answering: Answering
) -> list[dict]:
    """Report each defence under what was found through it, at every mark, and under what was found without it."""
    rows, marks = [], {OWN: MARKS, TRANSFERRED: MARKS[:1]}
    with phase(f"{name}: answers", len(attacked)) as report:
        for target in attacked:
            before = answering.judged(target, attacker.reported)
            for objective, found in _objectives(target, searches):
                labels = target.defence.columns | {"setting": name, "objective": objective}
                curve = _curve(ATTACKS[name], target, attacker, found, before, answering, marks[objective])
                rows += [labels | row for row in curve]
            report(1, note=target.name)
    return rows


def _objectives(target: AttackTarget, searches: Searches) -> Iterator[tuple[str, list[Found]]]:
    yield OWN, searches[target.name]
    if target.name != TRANSFERRED_FROM:
        yield TRANSFERRED, searches[TRANSFERRED_FROM]


def _curve(
    attack: AdaptiveAttack,
    target: AttackTarget,
    attacker: Attacker,
    found: Sequence[Found],
    before: JudgedAnswers,
    answering: Answering,
    marks: Sequence[int],
) -> Iterator[dict]:
    """Yield attack success after each mark and at the end, and its change at the end.

    Args:
        attack: applies what was found.
        target: answers.
        attacker: knows the requests that are reported.
        found: one for all of them, or one for each.
        before: verdicts without the attack.
        answering: judges the answers.
        marks: queries spent.
    """
    by_request = list(found) if len(found) > 1 else list(found) * len(attacker.reported)
    n_queries, judged = max(each.n_queries for each in found), before
    for mark in (*(mark for mark in marks if mark < n_queries), n_queries):
        if mark:
            steps = zip(attacker.reported, by_request, strict=True)
            prompts = [attack.apply(prompt, each.after(mark).candidate) for prompt, each in steps]
            judged = answering.judged(target, prompts)
        yield from ({"queries": mark} | row for row in success_rows(judged))
    yield from ({"queries": n_queries} | row for row in attack_change_rows(judged, before))


def _records(name: str, searches: Searches, is_published: bool) -> Iterator[dict]:
    for defence, found in searches.items():
        for i, each in enumerate(found):
            best = each.after(each.n_queries)
            text = ATTACKS[name].describe(best.candidate)
            record = {"attack": name, "defence": defence, "search": i, "queries": each.n_queries}
            record |= {
                "found_after": best.n_queries,
                "score": round(best.score, 4),
                "sha256": hash_of(text.encode())[:16],
            }
            yield record | ({"found": text} if is_published else {})
