"""Every defence in every setting: what it stops, what it refuses beside, what the model can still do, what it costs.

Settings are those of `attack_settings`; `all text` and `all pictures` say whether a defence does anything on this model
at all, `cost` what an answer takes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from interp.inputs import TYPOGRAPHIC
from studies import layer_sweep
from studies.bookkeeping.estimates import mean
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.defences.answer_log import ANSWERS, AnswerLog, AnswerRecord
from studies.defences.attack_sets import attack_sets
from studies.defences.costs import costs
from studies.defences.defence import Defence
from studies.defences.lineup import WITHOUT_RIVALS, LineUp, made_neighbours
from studies.defences.prompt_sets import PromptSet, collect, judge_all
from studies.defences.ranking import table_rows
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load
from studies.guards.configuration import GuardConfiguration

COSTED = (("plain", "blank"), ("multimodal", "typographic"))
N_COSTED = 6
"""Prompts of each, run one by one."""


def run(config: Config, material: Experiment | None = None, reading: GuardConfiguration | None = None) -> pd.DataFrame:
    """Rates by judge with intervals, changes from unguarded with exact p-values, first-token scores, utility and cost.

    The guard is one that was chosen on validation. In the multimodal setting it is shown with each
    reference: the prompt's own text is harmless there, so with `prompt_text` its gate stays shut; `oracle` is a bound.
    Answers and verdicts are kept in `answers.jsonl`.

    Args:
        reading: the guard, and whose states it reads; by default what the sweep chooses, which is run first.
    """
    material = material or load(config)
    reading = reading or layer_sweep.chosen(layer_sweep.run(config, material), material)
    asked, answers = ask(config, material, reading)
    return tabled(config, material, asked, answers)


AskedDefences = list[tuple[PromptSet, list[Defence]]]


def ask(config: Config, material: Experiment, reading: GuardConfiguration) -> tuple[AskedDefences, list[AnswerRecord]]:
    """Who answers what, and the answers, judged."""
    neighbours, names = [], WITHOUT_RIVALS
    if config.sizes.rivals:
        anchors = (material.activations("anchors", name) for name in ("text", "blank"))
        neighbours, names = made_neighbours(material.vlm.n_layers, *anchors), ()
    guard = replace(reading.guard, source=reading.source)
    line_up = LineUp(config.model, material.judges[0], guard, neighbours, names)
    asked = [(trial, line_up(trial, references_of(trial))) for trial in attack_sets(material)]
    log, answers = AnswerLog(Path(config.out) / ANSWERS), []
    n_answers = sum(len(trial.prompts) * len(some) for trial, some in asked)
    with log.alone(), phase("defences", n_answers) as report:
        for trial, some in asked:
            answers += collect(material.asker, material.identity, trial, some, log, report)
        return asked, judge_all(log, answers, material.judges)


def tabled(config: Config, material: Experiment, asked: AskedDefences, answers: Sequence[AnswerRecord]) -> pd.DataFrame:
    """What the answers say, and what they cost."""
    rows = table_rows(answers, [judge.name for judge in material.judges], material.scorer)
    stands = {(row["defence"], row.get("reference")): row["standing"] for row in rows}
    measured = _costs(material, asked) if config.sizes.rivals else ()
    rows += [row | {"standing": stands[row["defence"], row.get("reference")]} for row in measured]
    return tidy(material.labels | {"split": config.split} | row for row in rows)


def _costs(material: Experiment, asked: Sequence[tuple[PromptSet, Sequence[Defence]]]) -> Iterator[dict]:
    """Beside a blank picture, and with the request in it."""
    chosen = [(trial, one) for trial, some in asked if (trial.setting, trial.modality) in COSTED for one in some]
    with phase("costs", len(chosen)) as report:
        for trial, one in chosen:
            found = costs(material.vlm, one, trial.prompts[:N_COSTED], material.config.generation)
            about = {"setting": "cost", "modality": trial.modality} | one.about
            yield from (about | mean(metric, values) for metric, values in found.items())
            report(1)


def references_of(trial: PromptSet) -> list[str]:
    """What a guard is shown in a trial, one after the other."""
    shown = ["prompt_text"]
    if trial.modality in TYPOGRAPHIC or trial.setting == "mossbench_like":
        shown.append("transcription")
    if trial.setting == "multimodal":
        shown.append("oracle")
    return shown
