"""Does a published experiment come out? `vlm-guard reproduce PRESET` runs it, and compares with the published numbers.

The folder of results holds `answers/` (as of `vlm-guard defend`), `targets.csv` (theirs, ours, the verdict) and
`config.json`. An interrupted run is resumed after its last answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

import figures
from interp import LLM, VLM
from studies import benchmarks
from studies.bookkeeping.provenance import write_json, write_provenance
from studies.bookkeeping.tables import write_table
from studies.defences.answer_log import ANSWERS, count_answers
from studies.defences.defence import Defence
from studies.experiment.config import ConfigError
from studies.experiment.model_loading import load_model
from studies.experiment.run_folder import CONFIG, check_settings, held
from studies.experiment.shipped_models import shipped_model
from studies.judges import Judge
from studies.judges.by_name import JudgeOptions, judges_named
from studies.presets.measuring import Measuring, Place, counterpart
from studies.presets.plan import seconds_for
from studies.presets.preset import AnswersSpec, PresetError
from studies.presets.random_weights import RANDOM, random_model
from studies.presets.reproduction import Reproduction
from studies.presets.verdicts import REPRODUCED, OurResult, TargetVerdict, verdict_on

RATES = ("asr", "harm_rate")
UNJUDGED = ("unparsed_rate", "failed_rate")


def run(reproduction: Reproduction, console: Console) -> list[TargetVerdict]:
    """Print the plan, run the experiment, and compare it with the published numbers.

    Raises:
        ConfigError, PresetError, QueryFileError, ModelError, JudgeNameError: input is wrong, or nothing of the data is
            there.
    """
    console.print("\n".join(reproduction.plan().lines()), soft_wrap=True)
    preset = reproduction.preset
    if not reproduction.data.available:
        raise PresetError(f"none of the data of {preset.name!r} is in {reproduction.folder}; nothing can be measured")
    with held(reproduction.out) as out:
        check_settings(out, reproduction.settings)
        # Judges are named before the model is loaded: a misspelt one shows at once.
        typed = reproduction.other_judges
        names = [(*typed, *(name for name in part.judges if name not in typed)) for part in preset.answers]
        judges = [judges_named(each, out, JudgeOptions()) for each in names]
        measuring = Measuring(reproduction, _load(reproduction))
        write_json(out / CONFIG, reproduction.settings)
        results = measuring.directions() | measuring.detection()
        cosines, defences = measuring.refusal_direction()
        results |= cosines
        for part, own_judges in zip(preset.answers, judges, strict=True):
            results |= measure_answers(measuring, part, own_judges, defences, console)
        verdicts = compare(reproduction, results)
        labels = {"model": Path(reproduction.model).name, "preset": f"{preset.name} {preset.sha256}"}
        table = pd.DataFrame([labels | asdict(verdict) for verdict in verdicts])
        written = [write_table(table, out, "targets")]
        write_provenance(out, {"model": reproduction.model, "preset": preset.sha256}, tables=written)
        written += figures.save(figures.targets(table), out, "targets")
    console.print(as_table(verdicts))
    for path in written:
        console.print(f"  {path}", soft_wrap=True)
    return verdicts


def _load(reproduction: Reproduction) -> VLM | LLM:
    """Load the preset's model as the preset says, or another one as was typed."""
    loading = reproduction.loading
    if reproduction.other_model == RANDOM:
        return random_model(reproduction.preset)
    if reproduction.other_model:
        return load_model(reproduction.other_model, **loading)
    own = reproduction.preset.model
    if own.needs_code and not loading.get("trust_remote_code"):
        raise ConfigError(f"{own.name} runs Python code of its own; read it, then give --trust-remote-code")
    return load_model(own.name, **own.loading(loading))


def measure_answers(
    measuring: Measuring,
    part: AnswersSpec,
    judges: Sequence[Judge],
    defences: Sequence[Defence],
    console: Console,
) -> dict[Place, OurResult]:
    """Measure the rates of a part's answers, and say first how long they take at most.

    Args:
        measuring: the model, and what was typed.
        part: which answers.
        judges: the first one decides.
        defences: those that were made for this model.
        console: where the time is printed.
    """
    reproduction, model = measuring.reproduction, measuring.model
    options = reproduction.benchmarks(part)
    if options is None:
        return {}
    options, generation = options.for_model(model), reproduction.generation(part)
    groups = benchmarks.prompts_by_kind(options, model.picture_size)
    n_answers = sum(map(len, groups)) * (len(options.defences) + bool(defences))
    n_left = n_answers - count_answers(reproduction.answer_folder(part) / ANSWERS)
    if n_left > 0:
        seconds = seconds_for(model, groups, generation) * n_left / sum(map(len, groups))
        console.print(
            f"answers: {n_left} left, about {seconds / 60:.1f} minutes if all are as long as they may be; more under "
            "defences that ask several times",
            soft_wrap=True,
        )
    own = shipped_model(reproduction.model)
    weights = benchmarks.checkpoint_identity(model, str(own.vlm) if own else reproduction.model)
    anchors = reproduction.queries(part.anchors) if part.anchors and reproduction.has(part.anchors) else ()
    extra = [defence for defence in defences if defence.name in part.defences]
    folder = reproduction.answer_folder(part)
    found = benchmarks.run(model, weights, options, judges, folder, generation, anchors=anchors, extra=extra)
    names = {reproduction.preset.dataset(name).benchmark or name: name for name in part.data}
    results = {}
    unjudged = found.table[found.table.metric.isin(UNJUDGED)]
    unjudged = unjudged.groupby(["dataset", "modality", "defence", "judge"]).value.sum().to_dict()
    for row in found.table[found.table.metric.isin(RATES)].itertuples():
        category = row.category if isinstance(row.category, str) else ""
        place = (names.get(row.dataset, row.dataset), row.metric, row.modality, row.defence, category)
        if row.n:
            share = unjudged.get((row.dataset, row.modality, row.defence, row.judge), 0.0)
            result = OurResult(row.value, row.ci_low, row.ci_high, int(row.n), row.judge, share)
            results[*place, row.judge.split("@")[0]] = result
    return results


def compare(reproduction: Reproduction, results: Mapping[Place, OurResult]) -> list[TargetVerdict]:
    """Compare every published number of a preset with its counterpart."""
    return [
        verdict_on(target, counterpart(target, results), reproduction.why_incomparable(target))
        for target in reproduction.preset.targets
    ]


def as_table(verdicts: Sequence[TargetVerdict]) -> Table:
    """Lay out the verdicts for the terminal."""
    table = Table(title="Published numbers and ours")
    for name in ("target", "theirs", "ours", "difference", "verdict", "why"):
        table.add_column(name, overflow="fold")
    for verdict in verdicts:
        reason = "" if verdict.verdict == REPRODUCED else verdict.reason
        table.add_row(verdict.target, *verdict.in_words(), verdict.verdict, reason)
    return table
