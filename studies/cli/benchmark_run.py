"""The work of `vlm-guard defend`: check everything that was typed, load models, run the study, print what it found."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from torch import Tensor

from interp import Guard, Query, read_guard_settings
from studies import benchmarks
from studies.benchmarks import BenchmarkResult
from studies.bookkeeping.provenance import file_hash
from studies.cli.messages import print_paths
from studies.cli.verbs import VerbResult
from studies.datasets import Benchmark, SeenTexts, read_queries
from studies.datasets.seen_texts import NOTHING_SEEN
from studies.defences.answer_log import ANSWERS, AnswerLog
from studies.defences.benchmark_sets import BenchmarkOptions
from studies.defences.cone import check_cone
from studies.defences.lineup import check_names
from studies.defences.ranking import RANKED
from studies.experiment.config import ConfigError
from studies.experiment.model_loading import load_model
from studies.experiment.run_folder import held
from studies.experiment.shipped_models import shipped_model
from studies.generation.generate import Generation
from studies.guard_choice import anchors_of
from studies.judges.by_name import JudgeOptions, judges_named

SHOWN = {
    "asr": "attack success",
    "harm_rate": "as judged",
    "over_refusal_rate": "over-refusal",
    "paired_rate": "pairs",
    "accuracy": "right",
    "tokens": "tokens",
    "forward_passes": "passes",
    "seconds": "seconds",
    "unparsed_rate": "unparsed",
    "failed_rate": "not asked",
}
"""Metrics that are printed, and the headings of their columns. Attack success counts coherent answers only, `as judged`
all that the judge calls harmful: for a list, all that it does not call refused."""


@dataclass(frozen=True)
class BenchmarkRun:
    """Everything that was typed, before models are loaded."""

    model: str
    loading: dict
    """How the model is loaded: arguments of `load_model`."""
    guard: str | None
    """Folder of a guard, or hub id."""
    anchors: Path | None
    """File of the queries that the guard was fitted on; by default its folder has them."""
    options: BenchmarkOptions
    judges: Sequence[str]
    judge_options: JudgeOptions
    generation: Generation
    out: Path
    cone: Tensor | None = None
    """Vectors of a refusal cone."""

    def start(self, console: Console) -> VerbResult:
        """Check what was typed, load the models, run the study, and print its result.

        Raises:
            ConfigError, GuardFileError, QueryFileError, JudgeNameError, ModelError, EndpointError: input is wrong; or
                another process writes the folder.
        """
        anchors = self._checked_anchors()
        seen = SeenTexts.read(self.guard) if self.guard else NOTHING_SEEN
        with held(self.out):
            result = self._run(anchors, seen, console)
        return print_result(result, console)

    def _run(self, anchors: Sequence[Query], seen: SeenTexts, console: Console) -> BenchmarkResult:
        AnswerLog(self.out / ANSWERS)  # a damaged file shows before models are loaded
        judges = judges_named(self.judges, self.out, self.judge_options)
        vlm = load_model(self.model, **self.loading)
        if self.cone is not None:
            check_cone(self.cone, vlm)
        options = self.options.for_model(vlm)
        print_left_out(self.options, options, console)
        own = shipped_model(self.model)
        folder = str(own.vlm) if own else self.model
        weights = benchmarks.checkpoint_identity(vlm, folder)
        description = self._description(weights, options)
        print_stand_ins(description["sets"], console)
        if self.guard and "validation" not in seen.by_split:
            console.print("leakage: unknown for what the guard was chosen on, which its folder does not say")
        guard = Guard.from_pretrained(self.guard, vlm) if self.guard else None
        return benchmarks.run(
            vlm,
            weights,
            options,
            judges,
            self.out,
            self.generation,
            guard,
            anchors,
            description,
            partial(print_leakage, console=console),
            seen,
            cone=self.cone,
        )

    def _checked_anchors(self) -> Sequence[Query]:
        """Return the queries that guard and related methods are fitted on; empty if they are unknown."""
        if self.guard and read_guard_settings(self.guard)["guard"]["source"] == "llm":
            raise ConfigError(
                f"guard {self.guard!r} reads states of the aligned LLM (source llm), which `defend` does not load"
            )
        if self.anchors:
            anchors = read_queries(self.anchors, check_pictures=False)
        else:
            anchors = anchors_of(self.guard) if self.guard else ()
        check_names(self.options.defences, bool(self.guard), bool(anchors), self.cone is not None)
        return anchors

    def _description(self, weights: str, options: BenchmarkOptions) -> dict:
        """Return what `defend.json` says about the run."""
        judge_options = (self.judge_options.settings, self.judge_options.labels)
        return {
            "model": self.model,
            "weights": weights,
            "guard": self.guard,
            "judges": list(self.judges),
            "generation": asdict(self.generation),
            "sets": [describe_set(benchmark) for benchmark in options.benchmarks],
            "attacks": options.attacks,
            "cone": None if self.cone is None else list(self.cone.shape),
            "anchors": str(self.anchors) if self.anchors else None,
            "judge options": judge_options,
            "modalities": options.modalities,
            "defences": options.defences,
            "limit": options.limit,
            "costed": options.n_costed,
            "loading": self.loading,
        }


def describe_set(benchmark: Benchmark) -> dict:
    """Return what is stored about a benchmark: source, file hashes, and how many rows and pictures it has."""
    return {
        "name": benchmark.source.name,
        "url": benchmark.source.url,
        "licence": benchmark.source.licence,
        "files": {str(file): file_hash([file]) for file in benchmark.files},
        "rows": len(benchmark.records),
        "left out": len(benchmark.skipped),
        "pictures missing": len(benchmark.missing),
        "stand-ins": sum(record.is_stand_in for record in benchmark.records),
    }


def print_left_out(before: BenchmarkOptions, after: BenchmarkOptions, console: Console) -> None:
    """Say how many rows a model can't be shown, and why."""
    for old, new in zip(before.benchmarks, after.benchmarks, strict=True):
        if added := new.skipped[len(old.skipped) :]:
            console.print(
                f"{new.source.name}: {len(added)} of {len(old.records)} rows are left out, the first {added[0].where}: "
                f"it {added[0].reason}",
                soft_wrap=True,
                markup=False,
            )


def print_stand_ins(sets: Sequence[dict], console: Console) -> None:
    """Warn about sets in which pictures were drawn in place of missing ones."""
    for described in sets:
        if described["stand-ins"]:
            message = f"{described['name']}: {described['stand-ins']} of {described['rows']} pictures are stand-ins"
            console.print(f"{message}; results are not results of the published set", soft_wrap=True)


def print_leakage(leakage: Mapping[str, str], console: Console) -> None:
    """Print, for each set, how many of its requests a guard was fitted or chosen on."""
    if not leakage:
        console.print("leakage: unknown, because the anchors are unknown (--anchors FILE)")
    for name, summary in leakage.items():
        console.print(f"leakage, {name}: {summary}", soft_wrap=True)


def print_result(result: BenchmarkResult, console: Console) -> VerbResult:
    """Print a table for each set, and where results were written."""
    for table in summary_tables(result):
        console.print(table)
    for row in result.table[result.table.metric == "answer_tokens"].itertuples():
        console.print(f"{row.interval} (at most {row.value:.0f} here)", soft_wrap=True, markup=False)
    print_paths(console, result.files)
    return VerbResult({"judge": result.judge}, result.files)


def summary_tables(result: BenchmarkResult) -> Iterator[Table]:
    """Yield, for each set, the rates of every defence with intervals."""
    table = result.table
    rows = table.reindex(columns=list(dict.fromkeys([*table.columns, "judge", "category", "reference"])))
    # Rates by category are in the file only.
    rows = rows[((rows.judge == result.judge) | rows.judge.isna()) & rows.category.isna() & rows.metric.isin(SHOWN)]
    for condition, group in rows.groupby(["dataset", "setting", "modality"], sort=False):
        metrics = [name for name in SHOWN if name in set(group.metric)]
        title = f"{', '.join(condition)}; judge {result.judge}"
        printed = Table("defence", *(SHOWN[name] for name in metrics), "", title=title)
        arms = group.groupby(["defence", "reference", "standing"], dropna=False, sort=False)
        for (defence, _, status), arm in arms:
            cells = {row.metric: f"{row.value:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]" for row in arm.itertuples()}
            note = "" if status == RANKED or pd.isna(status) else status
            printed.add_row(defence, *(cells.get(name, "") for name in metrics), note)
        yield printed
