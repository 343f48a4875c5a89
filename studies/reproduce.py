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
from studies.bookkeeping.provenance import write_json, write_provenance
from studies.bookkeeping.tables import write_table
from studies.experiment.config import ConfigError
from studies.experiment.model_loading import load_model
from studies.experiment.run_folder import CONFIG, check_settings, held
from studies.judges.by_name import JudgeOptions, judges_named
from studies.presets.measuring import Measuring, Place, counterpart
from studies.presets.preset import PresetError
from studies.presets.random_weights import RANDOM, random_model
from studies.presets.reproduction import Reproduction
from studies.presets.verdicts import REPRODUCED, Result, TargetVerdict, verdict_on


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
        judges = [
            judges_named(reproduction.other_judges or each.judges, out, JudgeOptions()) for each in preset.answers
        ]
        measuring = Measuring(reproduction, _load(reproduction))
        write_json(out / CONFIG, reproduction.settings)
        results = measuring.directions() | measuring.detection()
        cosines, defences = measuring.refusal_direction()
        results |= cosines
        for part, own_judges in zip(preset.answers, judges, strict=True):
            results |= measuring.answers(part, own_judges, defences, console)
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
    typed = {name: value for name, value in loading.items() if value not in (None, "auto")}
    return load_model(own.name, **{"dtype": own.dtype, "revision": own.revision} | typed)


def compare(reproduction: Reproduction, results: Mapping[Place, Result]) -> list[TargetVerdict]:
    """Compare every published number of a preset with its counterpart."""
    is_part = reproduction.is_quick or reproduction.limit is not None
    verdicts = []
    for target in reproduction.preset.targets:
        missing = [name for name in reproduction.preset.needs(target) if not reproduction.has(name)]
        reason = f"data {missing[0]!r} is missing" if missing else "this model has no such place"
        result = None if missing else counterpart(target, results)
        verdicts.append(verdict_on(target, result, reason, is_part, bool(reproduction.other_model)))
    return verdicts


def as_table(verdicts: Sequence[TargetVerdict]) -> Table:
    """Lay out the verdicts for the terminal."""
    table = Table(title="Published numbers and ours")
    for name in ("target", "theirs", "ours", "difference", "verdict", "why"):
        table.add_column(name, overflow="fold")
    for verdict in verdicts:
        reason = "" if verdict.verdict == REPRODUCED else verdict.reason
        table.add_row(verdict.target, *verdict.in_words(), verdict.verdict, reason)
    return table
