"""A run of a preset as it was typed: what it reads, where it writes, and what it will take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from interp import Query
from studies.datasets import Record, read_benchmark, read_queries
from studies.defences.answer_log import ANSWERS, read_answers
from studies.defences.benchmark_sets import BenchmarkFile, BenchmarkOptions
from studies.generation.generate import Generation
from studies.presets.plan import AvailableData, RunPlan
from studies.presets.preset import AnswersSpec, Preset

ABLATION = "arditi_ablation"
"""Name of the defence that takes the model's own refusal direction away."""
BATCH_SIZE = 16


@dataclass(frozen=True)
class Reproduction:
    """Everything that was typed."""

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
        return {"model": self.model, "revision": self.loading.get("revision"), "options": options}

    @cached_property
    def data(self) -> AvailableData:
        """The data sets that are there."""
        return AvailableData.look_for(self.preset, self.folder)

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

    def blank(self, preset_blank: str) -> str:
        """Return the colour of the blank picture."""
        return self.other_blank or preset_blank

    def answer_folder(self, part: AnswersSpec) -> Path:
        """Return the folder of a part's answers."""
        parts = self.preset.answers
        return self.out / ("answers" if len(parts) == 1 else f"answers-{parts.index(part) + 1}")

    def benchmarks(self, part: AnswersSpec) -> BenchmarkOptions | None:
        """Read the benchmarks of a part; None if none of them is there.

        Raises:
            ConfigError, QueryFileError: see `BenchmarkOptions.of`.
        """
        names = [name for name in part.data if self.has(name)]
        files = [BenchmarkFile(self.path(name), self.preset.dataset(name).benchmark) for name in names]
        if not files:
            return None
        can_fit = not part.anchors or self.has(part.anchors)
        defences = [name for name in part.defences if name != ABLATION] if can_fit else ["unguarded"]
        options = BenchmarkOptions.of(files, part.modalities, defences, self.n_requests)
        return replace(options, blank=self.blank(part.blank))

    def plan(self) -> RunPlan:
        """Say what a run takes; no model is loaded.

        Raises:
            ConfigError, QueryFileError: a data set is there, but can't be read.
        """
        n_answers, n_done, longest = 0, 0, Generation(1, self.batch_size)
        for part in self.preset.answers:
            if options := self.benchmarks(part):
                n_defences = len(options.defences) + (ABLATION in part.defences)
                n_answers += n_defences * sum(_n_prompts(options))
            longest = max(longest, self.generation(part), key=lambda each: each.max_new_tokens)
            log = self.answer_folder(part) / ANSWERS
            n_done += len(read_answers(log)) if log.exists() else 0
        return RunPlan(self.preset, self.model, self.data, n_answers, n_done, longest)


def _n_prompts(options: BenchmarkOptions) -> list[int]:
    """Return the number of prompts of each benchmark: requests published as text are shown in each modality."""
    numbers = []
    for benchmark in options.benchmarks:
        n_text = sum(record.modality == "text" for record in benchmark.records)
        numbers.append(n_text * len(options.modalities) + len(benchmark.records) - n_text)
    return numbers
