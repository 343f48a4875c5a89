"""Which attacks does each defence stop, and at what cost? Every defence in every setting, with utility and costs.

The column `setting` names the prompts, see `studies.defences.attack_sets`; `cost` measures what one answer takes. The
guard is compared with its rivals, with bounds that need no direction, and with random directions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from interp import TYPOGRAPHIC
from studies import layer_sweep
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.defences.answer_log import ANSWERS, AnswerLog, AnswerRecord
from studies.defences.attack_sets import attack_sets
from studies.defences.costs import cost_rows
from studies.defences.defence import GUARD, PROMPT, Defence
from studies.defences.detours import TextScoreRule
from studies.defences.guarded import reference_states
from studies.defences.lineup import WITHOUT_RIVALS, LineUp
from studies.defences.prompt_sets import AnswerCollector, PromptSet, judge_all
from studies.defences.ranking import table_rows
from studies.defences.related import RelatedMethod, best_of, grids, tuned
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.generation.openings import coverage_row
from studies.guards.anchor_fits import AnchorFits
from studies.guards.configuration import GuardConfiguration
from studies.guards.random_directions import random_draws

COSTED = (("plain", "blank"), ("multimodal", "typographic"))
"""Settings and modalities in which costs are measured: a blank picture, and the request in the picture."""

RIVALS = ("shift_dc", "cmrm", "infer_aligner", "astra")
"""Related methods that are tuned here; `studies.equal_strength` compares these and later ones."""


@dataclass(frozen=True, eq=False)
class DefenceResult:
    """A finished comparison of defences: the table, and the answers behind it."""

    table: pd.DataFrame = field(repr=False)
    answers: Sequence[AnswerRecord] = field(repr=False)
    """Every answer with the judges' verdicts."""
    random: pd.DataFrame = field(repr=False)
    """The guard and every random direction, by the first token."""


def run(
    config: Config, experiment: Experiment | None = None, configuration: GuardConfiguration | None = None
) -> DefenceResult:
    """Have every defence answer every prompt set, judge the answers and measure the costs.

    In the multimodal setting the guard reads each kind of reference in turn. The prompt's own text is harmless there,
    so with `prompt_text` its gate stays shut; `oracle` is an upper bound. Answers and verdicts go to `answers.jsonl`.

    Args:
        config: settings of the run.
        experiment: loaded from the settings by default.
        configuration: the guard, chosen on validation; by default the one that the sweep chooses, which is run first.

    Returns:
        A table with rates by judge and their intervals, changes from the unguarded model with exact p-values,
        ranks, first-token scores, utility and cost; the answers; and the random directions.
    """
    experiment = experiment or load_experiment(config)
    configuration = configuration or layer_sweep.run(config, experiment).chosen
    # 1. the prompts, and the defences that answer them; rivals are tuned on validation
    line_up = _line_up(experiment, configuration)
    prompt_sets = [(prompts, line_up(prompts, references_of(prompts))) for prompts in attack_sets(experiment)]
    # 2. answers, then verdicts
    answers = _judged_answers(experiment, prompt_sets)
    # 3. rates; then costs of the same defences, and the guard among random directions
    rows = table_rows(answers, [judge.name for judge in experiment.judges], experiment.scorer)
    statuses = _statuses(rows)
    compared, draws = _random_rows(experiment, prompt_sets, statuses)
    rows += compared
    rows += _cost_rows(experiment, prompt_sets, statuses) if experiment.sizes.n_costed else ()
    rows.append(coverage_row(experiment.refusal_openings))
    labels = experiment.labels | {"split": config.split}
    return DefenceResult(tidy(labels | row for row in rows), answers, tidy(labels | row for row in draws))


PromptSets = Sequence[tuple[PromptSet, Sequence[Defence]]]
"""Prompt sets, each with the defences that answer it."""
Statuses = Mapping[tuple, dict]
"""The columns `standing` and `tuning` by dataset, setting, modality, defence and reference."""


def _line_up(experiment: Experiment, configuration: GuardConfiguration) -> LineUp:
    fits = AnchorFits.on(experiment)
    tried, _ = layer_sweep.GRIDS[experiment.config.scale].configurations(fits)
    is_chosen = configuration.identity in {each.identity for each in tried}
    tuning = best_of(len(tried)) if is_chosen else ""
    has_rivals = experiment.sizes.rivals
    return LineUp(
        experiment.config.model,
        experiment.judges[0],
        _text_score_rule(experiment),
        replace(configuration.guard, source=configuration.source),
        _tuned_rivals(experiment, tried) if has_rivals else (),
        () if has_rivals else WITHOUT_RIVALS,
        tuning,
    )


def _text_score_rule(experiment: Experiment) -> TextScoreRule:
    """Put the border of the text verdict midway between the classes of anchors."""
    prompts = experiment.prompts("anchors", "text")
    generation = experiment.config.generation
    return TextScoreRule.fit(experiment.vlm, prompts, experiment.refusal_openings, generation)


def _tuned_rivals(experiment: Experiment, tried: Sequence[GuardConfiguration]) -> list[RelatedMethod]:
    """Choose the layers and the strength of each related method as the guard's were, with as many configurations."""
    text, blank = (experiment.activations("anchors", modality) for modality in ("text", "blank"))
    windows = list(dict.fromkeys(configuration.guard.layers for configuration in tried))
    top, methods = layer_sweep.TOP[experiment.config.scale], []
    for name, configurations in grids(text, blank, windows, len(tried), names=RIVALS).items():
        best = layer_sweep.search(experiment, configurations, top).best
        methods.append(tuned(name, best, len(configurations)))
    return methods


def _judged_answers(experiment: Experiment, prompt_sets: PromptSets) -> list[AnswerRecord]:
    """Collect the answers of every defence and have them judged; what the log holds already is reused."""
    log, answers = AnswerLog(Path(experiment.config.out) / ANSWERS), []
    collector = AnswerCollector(experiment.cached_model, experiment.identity, log)
    n_answers = sum(len(prompts.prompts) * len(defences) for prompts, defences in prompt_sets)
    with log.locked(), phase("defences", n_answers) as report:
        for prompts, defences in prompt_sets:
            answers += collector.collect(prompts, defences, report)
        return judge_all(log, answers, experiment.judges)


def _statuses(rows: Sequence[dict]) -> Statuses:
    return {_key(row): {name: row[name] for name in ("standing", "tuning") if name in row} for row in rows}


def _key(row: Mapping) -> tuple:
    return tuple(row.get(name) for name in ("dataset", "setting", "modality", "defence", "reference"))


def _random_rows(experiment: Experiment, prompt_sets: PromptSets, statuses: Statuses) -> tuple[list[dict], list[dict]]:
    """Compare the guard with random directions on every set of attacks.

    Returns:
        Rows that place the guard among the draws, and rows of the draws themselves.
    """
    rows, draws = [], []
    attacked = [
        (prompts, defence)
        for prompts, defences in prompt_sets
        if any(prompt.query.harmful for prompt in prompts.prompts)
        for defence in defences
        # A guard that acts on generated tokens alone leaves the first one as it is.
        if defence.kind == GUARD and defence.guard_setup.guard.positions != "generated"
    ]
    with phase("random directions", len(attacked)) as report:
        for prompts, defence in attacked:
            states = reference_states(defence.guard_setup, experiment.cached_model, prompts.prompts)
            compared = random_draws(experiment, prompts.prompts, defence.guard_setup.guard, states)
            place = {"dataset": prompts.dataset, "setting": prompts.setting, "modality": prompts.modality}
            columns = place | defence.columns
            columns |= statuses[_key(columns)]
            rows += [columns | row for row in compared.comparison_rows()]
            draws += compared.rows(columns)
            report(1)
    return rows, draws


def _cost_rows(experiment: Experiment, prompt_sets: PromptSets, statuses: Statuses) -> Iterator[dict]:
    sizes = experiment.sizes
    # Prompt defences cost what their words cost; that is left to the scale at which everything is measured.
    costed = [
        (prompts, [defence for defence in defences if sizes.rivals or defence.kind != PROMPT])
        for prompts, defences in prompt_sets
        if (prompts.setting, prompts.modality) in COSTED
    ]
    with phase("costs", sum(len(defences) for _, defences in costed)) as report:
        for prompts, defences in costed:
            for row in cost_rows(experiment.cached_model, prompts, defences, sizes.n_costed, report):
                yield row | statuses[_key(row | {"setting": prompts.setting})]


def references_of(prompts: PromptSet) -> list[str]:
    """Return the kinds of reference that the guard reads for a prompt set, one after the other."""
    references = ["prompt_text"]
    if prompts.modality in TYPOGRAPHIC or prompts.setting == "mossbench_like":
        references.append("transcription")
    if prompts.setting == "multimodal":
        references.append("oracle")
    return references
