"""What a data file holds, before anything runs on it: `vlm-guard data check`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studies.datasets.leakage import Leakage, find_leakage
from studies.datasets.reader import Benchmark, damaged, read_benchmark
from studies.datasets.record import CAVEAT, Record

SHOWN = 10
"""Names of missing pictures that are printed."""


@dataclass(frozen=True)
class Check:
    """What a benchmark holds, and how much of it may be used."""

    benchmark: Benchmark
    damaged: tuple[str, ...]
    """Where pictures lie that can't be read."""
    leakage: Leakage | None
    """Against the anchors; None without any."""

    @property
    def n_pictures(self) -> int:
        """Pictures that are there and can be read, stand-ins and repetitions not counted."""
        shown = {r.picture_place for r in self.benchmark.records if r.picture is not None and not r.is_stand_in}
        return len(shown - {*self.damaged})

    @property
    def is_whole(self) -> bool:
        """Whether every picture is there and can be read."""
        return not (self.benchmark.missing or self.damaged)

    @property
    def is_usable(self) -> bool:
        """Whether every row has a picture that can be read, if it has one: its own, or one drawn in its place."""
        return not (self.damaged or any(record.is_missing_picture for record in self.benchmark.records))

    def lines(self) -> list[tuple[str, str]]:
        """(what, how much) of each line to print."""
        known, records = self.benchmark, self.benchmark.records
        source = known.source
        read = (
            ("recognised", source.name),
            ("source", source.url or "-"),
            ("licence", source.licence + ("; test only: nothing may be fitted on it" if source.test_only else "")),
            ("files", _listed([str(path) for path in known.files])),
            ("not read", _listed(_not_read(known))),
            ("rows", str(len(records))),
            ("left out", _counted(Counter(part.reason for part in known.left_out))),
            ("class", _counted(Counter(map(_class, records)))),
            ("expected", _counted(Counter(record.expected for record in records))),
            ("modality", _counted(Counter(record.modality for record in records))),
            ("pairs", str(_n_pairs(known))),
            ("categories", _counted(Counter(record.query.category or "(none)" for record in records))),
        )
        return [(what, text) for what, text in (*read, *self._oddities()) if text]

    def _oddities(self) -> tuple[tuple[str, str], ...]:
        known = self.benchmark
        n_stand_ins = sum(record.is_stand_in for record in known.records)
        return (
            ("pictures", f"{self.n_pictures} present, {len(known.missing)} missing, {len(self.damaged)} damaged"),
            ("missing", _listed(known.missing)),
            ("damaged", _listed(self.damaged)),
            ("stand-ins", f"{n_stand_ins} rows" if n_stand_ins else ""),
            ("not drawn", _counted(Counter(part.reason for part in known.not_drawn))),
            ("repeated ids", _listed(known.repeated_ids)),
            ("repeated rows", str(known.n_repeated)),
            ("anchors", str(self.leakage) if self.leakage else ""),
        )


def check(
    path: str | Path,
    name: str | None = None,
    pictures: str | Path | None = None,
    stand_in: bool = False,
    anchors: Sequence[str] = (),
) -> Check:
    """Reads a benchmark and every picture of it.

    Args:
        path: see `read_benchmark`, for `name`, `pictures` and `stand_in` too.
        anchors: texts that something was fitted on, to be looked for in the benchmark.

    Raises:
        QueryFileError, ValueError: see `read_benchmark`.
    """
    benchmark = read_benchmark(path, name, pictures, stand_in)
    return Check(benchmark, damaged(benchmark), leakage_of(benchmark, anchors) if anchors else None)


def leakage_of(benchmark: Benchmark, anchors: Sequence[str]) -> Leakage:
    """Anchors against a benchmark's true requests."""
    records = benchmark.records
    return find_leakage(anchors, [record.id for record in records], [record.query.text for record in records])


def _not_read(benchmark: Benchmark) -> list[str]:
    reasons = {part.where: part.reason for part in benchmark.unread}
    return [f"{path} ({reasons[str(path)]})" if str(path) in reasons else str(path) for path in benchmark.aside]


def _class(record: Record) -> str:
    """Advice and the like is neither: a good answer is no refusal, and not every answer is good."""
    return CAVEAT if record.expected == CAVEAT else "harmful" if record.query.harmful else "harmless"


def _n_pairs(benchmark: Benchmark) -> int:
    classes = {(record.query.pair, record.query.harmful) for record in benchmark.records if record.query.pair}
    return sum((pair, False) in classes for pair, harmful in classes if harmful)


def _counted(counts: Counter) -> str:
    return ", ".join(f"{name}: {n}" for name, n in counts.most_common())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
