"""Which attacks does each defence stop, and at what cost? Every defence in every setting, with utility and costs.

The column `setting` names the prompts, see `studies.defences.attack_sets`; `all text` and `all pictures` say whether a
defence has any effect on this model at all, and `cost` measures what one answer takes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from interp import TYPOGRAPHIC
from studies import layer_sweep
from studies.bookkeeping.estimates import mean
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.defences.answer_log import ANSWERS, AnswerLog, AnswerRecord
from studies.defences.attack_sets import attack_sets
from studies.defences.costs import costs
from studies.defences.defence import Defence
from studies.defences.lineup import WITHOUT_RIVALS, LineUp, fit_related_methods
from studies.defences.prompt_sets import AnswerCollector, PromptSet, judge_all
from studies.defences.ranking import table_rows
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.guards.configuration import GuardConfiguration

COSTED = (("plain", "blank"), ("multimodal", "typographic"))
"""Settings and modalities in which costs are measured: a blank picture, and the request in the picture."""
N_COSTED = 6
"""Prompts of each, run one by one."""


@dataclass(frozen=True, eq=False)
class DefenceResult:
    """A finished comparison of defences: the table, and the answers behind it."""

    table: pd.DataFrame = field(repr=False)
    answers: Sequence[AnswerRecord] = field(repr=False)
    """Every answer with the judges' verdicts."""


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
        first-token scores, utility and cost; and the answers.
    """
    experiment = experiment or load_experiment(config)
    configuration = configuration or layer_sweep.run(config, experiment).chosen
    # 1. the prompts, and the defences that answer them
    line_up = _line_up(experiment, configuration)
    prompt_sets = [(prompts, line_up(prompts, references_of(prompts))) for prompts in attack_sets(experiment)]
    # 2. answers, then verdicts
    answers = _judged_answers(experiment, prompt_sets)
    # 3. rates, and costs of the same defences
    rows = table_rows(answers, [judge.name for judge in experiment.judges], experiment.scorer)
    standings = {(row["defence"], row.get("reference")): row["standing"] for row in rows}
    for row in _cost_rows(experiment, prompt_sets) if config.sizes.rivals else ():
        rows.append(row | {"standing": standings[row["defence"], row.get("reference")]})
    return DefenceResult(tidy(experiment.labels | {"split": config.split} | row for row in rows), answers)


PromptSets = Sequence[tuple[PromptSet, Sequence[Defence]]]
"""Prompt sets, each with the defences that answer it."""


def _line_up(experiment: Experiment, configuration: GuardConfiguration) -> LineUp:
    related, names = [], WITHOUT_RIVALS
    if experiment.config.sizes.rivals:
        anchors = (experiment.activations("anchors", modality) for modality in ("text", "blank"))
        related, names = fit_related_methods(experiment.vlm.n_layers, *anchors), ()
    guard = replace(configuration.guard, source=configuration.source)
    return LineUp(experiment.config.model, experiment.judges[0], guard, related, names)


def _judged_answers(experiment: Experiment, prompt_sets: PromptSets) -> list[AnswerRecord]:
    """Collect the answers of every defence and have them judged; what the log holds already is reused."""
    log, answers = AnswerLog(Path(experiment.config.out) / ANSWERS), []
    collector = AnswerCollector(experiment.cached_model, experiment.identity, log)
    n_answers = sum(len(prompts.prompts) * len(defences) for prompts, defences in prompt_sets)
    with log.locked(), phase("defences", n_answers) as report:
        for prompts, defences in prompt_sets:
            answers += collector.collect(prompts, defences, report)
        return judge_all(log, answers, experiment.judges)


def _cost_rows(experiment: Experiment, prompt_sets: PromptSets) -> Iterator[dict]:
    costed = [
        (prompts, defence)
        for prompts, defences in prompt_sets
        if (prompts.setting, prompts.modality) in COSTED
        for defence in defences
    ]
    with phase("costs", len(costed)) as report:
        for prompts, defence in costed:
            by_metric = costs(experiment.vlm, defence, prompts.prompts[:N_COSTED], experiment.config.generation)
            columns = {"setting": "cost", "modality": prompts.modality} | defence.columns
            yield from (columns | mean(metric, values) for metric, values in by_metric.items())
            report(1)


def references_of(prompts: PromptSet) -> list[str]:
    """Return the kinds of reference that the guard reads for a prompt set, one after the other."""
    references = ["prompt_text"]
    if prompts.modality in TYPOGRAPHIC or prompts.setting == "mossbench_like":
        references.append("transcription")
    if prompts.setting == "multimodal":
        references.append("oracle")
    return references
