"""A run of a preset as it was typed: what it reads, where it writes, and what it will take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from interp import Query
from studies.datasets import Benchmark, QueryFileError, Record, read_benchmark, read_queries
from studies.defences.answer_log import ANSWERS, count_answers
from studies.defences.benchmark_sets import BenchmarkFile, BenchmarkOptions
from studies.experiment.config import ConfigError
from studies.generation.generate import Generation
from studies.presets.plan import AvailableData, RunPlan
from studies.presets.preset import AnswersSpec, DataSpec, Preset, PublishedTarget
from studies.presets.verdicts import NOT_MEASURED, OTHER_DATA, OTHER_MODEL, OTHER_SETTINGS, QUICK

ABLATION = "arditi_ablation"
"""Name of the defence that takes the model's own refusal direction away."""
BATCH_SIZE = 16


@dataclass(frozen=True)
class Reproduction:
    """The command's settings."""

    preset: Preset
    folder: Path
    """Folder of the data sets."""
    out: Path
    other_model: str = ""
    """Another model than the preset's, or `random`: its shape, with random weights."""
    is_quick: bool = False
    limit: int | None = None
    """At most this many requests of each set."""
    other_judges: tuple[str, ...] = ()
    other_blank: str = ""
    """Another colour of the blank picture than the preset's."""
    batch_size: int = BATCH_SIZE
    loading: Mapping[str, str | bool | None] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.other_model or self.preset.model.name

    @property
    def n_requests(self) -> int | None:
        """The most requests of a set; None for all."""
        quick = self.preset.quick.prompts if self.is_quick else None
        return min(filter(None, (quick, self.limit)), default=None)

    @property
    def settings(self) -> dict:
        """Settings that the results depend on, for `config.json`."""
        options = {"preset": self.preset.sha256, "quick": self.is_quick, "limit": self.limit, "blank": self.other_blank}
        return {"model": self.model, "loading": dict(self.loading), "options": options}

    @cached_property
    def data(self) -> AvailableData:
        """The data sets that are there."""
        return AvailableData.look_for(self.preset, self.folder, self._is_whole)

    def _is_whole(self, data: DataSpec) -> bool:
        """Return whether a set can be read, with its pictures; a set without them counts as missing."""
        return not data.benchmark or data.benchmark == "own" or isinstance(self._benchmarks[data.name], Benchmark)

    @cached_property
    def _benchmarks(self) -> dict[str, Benchmark | str]:
        """Benchmarks whose files are there, by the name of their data set, or why they can't be read."""
        found: dict[str, Benchmark | str] = {}
        for data in self.preset.data:
            path = self.folder / data.file
            if data.benchmark and data.benchmark != "own" and path.exists():
                file = BenchmarkFile(path, data.benchmark)
                try:
                    found[data.name] = BenchmarkOptions.of([file], limit=self.n_requests).benchmarks[0]
                except (QueryFileError, ConfigError) as error:
                    found[data.name] = str(error)
        return found

    def has(self, *names: str) -> bool:
        """Return whether data sets are there."""
        return set(names) <= set(self.data.available)

    def path(self, name: str) -> Path:
        """Return where a data set is, or should be."""
        return self.folder / self.preset.dataset(name).file

    def records(self, name: str) -> Sequence[Record]:
        """Read a benchmark."""
        return read_benchmark(self.path(name), self.preset.dataset(name).benchmark).records

    def queries(self, name: str) -> Sequence[Query]:
        """Read a table of requests."""
        return read_queries(self.path(name))

    def generation(self, part: AnswersSpec) -> Generation:
        """Return the settings of a part's answers."""
        return Generation(self.preset.quick.max_new_tokens if self.is_quick else part.max_new_tokens, self.batch_size)

    @property
    def can_ablate(self) -> bool:
        """True if the refusal direction can be fitted with the data that is there."""
        part = self.preset.refusal_direction
        return part is not None and self.has(part.harmful, part.harmless)

    def why_incomparable(self, target: PublishedTarget) -> tuple[str, str] | None:
        """Return a verdict and its reason, where ours is not the measurement that was published, or there is none."""
        needed = self.preset.needs(target)
        missing = [name for name in needed if not self.has(name)]
        if missing:
            return NOT_MEASURED, f"data {missing[0]!r} is missing"
        if self.other_model:
            return OTHER_MODEL, ""
        if self.is_quick or self.limit is not None:
            return QUICK, ""
        changed = {data.name for data in self.data.changed}
        own = [name for name in needed if name in changed or not self.preset.dataset(name).is_published]
        if own:
            return OTHER_DATA, f"{own[0]} is not the published file"
        if target.differs:
            return OTHER_DATA, target.differs
        typed = [name for name in ("revision", "dtype") if self.loading.get(name) not in (None, "auto")]
        if self.other_blank and any(part.blank != self.other_blank for part in self.preset.answers):
            typed.append("blank")
        return (OTHER_SETTINGS, f"--{typed[0]} was given") if typed else None

    def blank(self, preset_blank: str) -> str:
        """Return the colour of the blank picture."""
        return self.other_blank or preset_blank

    def answer_folder(self, part: AnswersSpec) -> Path:
        """Return the folder of a part's answers."""
        parts = self.preset.answers
        return self.out / ("answers" if len(parts) == 1 else f"answers-{parts.index(part) + 1}")

    def benchmarks(self, part: AnswersSpec) -> BenchmarkOptions | None:
        """Return the benchmarks of a part and how they are shown; None if no benchmark is available."""
        sets = tuple(each for name in part.data if isinstance(each := self._benchmarks.get(name), Benchmark))
        if not sets:
            return None
        can_fit = not part.anchors or self.has(part.anchors)
        defences = ["unguarded", *(name for name in part.defences if name not in ("unguarded", ABLATION) and can_fit)]
        return BenchmarkOptions(sets, part.modalities, tuple(defences), self.n_requests, blank=self.blank(part.blank))

    def plan(self) -> RunPlan:
        """Say what a run takes; no model is loaded."""
        n_answers, n_done, longest = 0, 0, Generation(1, self.batch_size)
        for part in self.preset.answers:
            if options := self.benchmarks(part):
                n_defences = len(options.defences) + (ABLATION in part.defences and self.can_ablate)
                n_answers += n_defences * sum(_n_prompts(options))
            longest = max(longest, self.generation(part), key=lambda each: each.max_new_tokens)
            n_done += count_answers(self.answer_folder(part) / ANSWERS)
        unreadable = {name: why for name, why in self._benchmarks.items() if isinstance(why, str)}
        return RunPlan(self.preset, self.model, self.data, n_answers, n_done, longest, unreadable)


def _n_prompts(options: BenchmarkOptions) -> list[int]:
    """Return the number of prompts of each benchmark: requests published as text are shown in each modality."""
    numbers = []
    for benchmark in options.benchmarks:
        n_text = sum(record.modality == "text" for record in benchmark.records)
        numbers.append(n_text * len(options.modalities) + len(benchmark.records) - n_text)
    return numbers
