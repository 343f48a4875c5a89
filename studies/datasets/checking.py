"""Checks data files before anything runs on them (`vlm-guard data check`)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from studies.datasets.columns import Columns
from studies.datasets.leakage import Leakage, find_leakage
from studies.datasets.opening import first_bytes, pointer_in
from studies.datasets.reader import Benchmark, read_benchmark, unreadable_pictures
from studies.datasets.record import CAVEAT, Record

N_COMPARED = 10_000
"""Requests that are compared with anchors at once."""
N_NAMED = 10
"""At most this many names are printed, for example of missing pictures."""


@dataclass(frozen=True)
class Check:
    """The contents of a benchmark, and how much of it can be used."""

    benchmark: Benchmark
    damaged: tuple[str, ...]
    """Files of the pictures that can't be read."""
    leakage: Leakage | None
    """Overlap with the anchors; None if there are none."""

    @property
    def n_pictures(self) -> int:
        """Number of different pictures that are there and can be read, without stand-ins."""
        present = {r.picture_file for r in self.benchmark.records if r.picture is not None and not r.is_stand_in}
        return len(present - {*self.damaged})

    @property
    def damaged_inside(self) -> tuple[str, ...]:
        """Damaged pictures inside data files: unlike a file of a picture, they can't be replaced one by one."""
        return tuple(name for name in self.damaged if any(name.startswith(f"{path}#") for path in self.benchmark.files))

    @property
    def is_whole(self) -> bool:
        """True if every picture is there and can be read."""
        return not (self.benchmark.missing or self.damaged)

    @property
    def is_usable(self) -> bool:
        """True if every row that needs a picture has a readable one: its own, or one drawn in its place."""
        return not (self.damaged or any(record.is_missing_picture for record in self.benchmark.records))

    def lines(self) -> list[tuple[str, str]]:
        """Return the label and the text of each line to print."""
        benchmark, records, source = self.benchmark, self.benchmark.records, self.benchmark.source
        lines = (
            ("recognised", source.name),
            ("source", source.url or "-"),
            ("licence", source.licence + ("; test only: nothing may be fitted on it" if source.test_only else "")),
            ("files", _listed([str(path) for path in benchmark.files])),
            ("not read", _listed(_unused_files(benchmark))),
            ("rows", str(len(records))),
            ("left out", _counted(Counter(skip.reason for skip in benchmark.skipped))),
            ("class", _counted(Counter(map(_class, records)))),
            ("expected", _counted(Counter(record.expected for record in records))),
            ("modality", _counted(Counter(record.modality for record in records))),
            ("pairs", str(_n_pairs(benchmark))),
            ("categories", _counted(Counter(record.query.category or "(none)" for record in records))),
        )
        return [(label, text) for label, text in (*lines, *self._problem_lines()) if text]

    def _problem_lines(self) -> tuple[tuple[str, str], ...]:
        benchmark = self.benchmark
        n_stand_ins = sum(record.is_stand_in for record in benchmark.records)
        return (
            ("pictures", f"{self.n_pictures} present, {len(benchmark.missing)} missing, {len(self.damaged)} damaged"),
            ("missing", _listed(benchmark.missing)),
            ("damaged", _listed([_with_reason(name) for name in self.damaged])),
            ("stand-ins", f"{n_stand_ins} rows" if n_stand_ins else ""),
            ("not drawn", _counted(Counter(skip.reason for skip in benchmark.not_drawn))),
            ("repeated ids", _listed(benchmark.repeated_ids)),
            ("repeated rows", str(benchmark.n_repeated)),
            ("anchors", str(self.leakage) if self.leakage else ""),
        )


def check(
    path: str | Path,
    name: str | None = None,
    pictures: str | Path | None = None,
    stand_in: bool = False,
    anchors: Sequence[str] = (),
    columns: Columns | None = None,
) -> Check:
    """Read a benchmark and open every picture of it.

    Args:
        path: see `read_benchmark`.
        name: see `read_benchmark`.
        pictures: see `read_benchmark`.
        stand_in: see `read_benchmark`.
        anchors: texts that something was fitted on; they are looked for in the benchmark.
        columns: see `read_benchmark`.

    Raises:
        QueryFileError, ValueError: see `read_benchmark`.
    """
    benchmark = read_benchmark(path, name, pictures, stand_in, columns)
    leakage = leakage_of(benchmark, anchors) if anchors else None
    return Check(benchmark, unreadable_pictures(benchmark), leakage)


def leakage_of(benchmark: Benchmark, anchors: Sequence[str]) -> Leakage:
    """Compare anchors with a benchmark's true requests, some at a time, which limits memory."""
    parts = []
    for first in range(0, max(len(benchmark.records), 1), N_COMPARED):
        records = benchmark.records[first : first + N_COMPARED]
        parts.append(find_leakage(anchors, [r.id for r in records], [r.query.text for r in records]))
    rows = pd.concat([part.rows for part in parts], ignore_index=True) if len(parts) > 1 else parts[0].rows
    return replace(parts[0], rows=rows, n_tests=len(benchmark.records))


def _with_reason(name: str) -> str:
    """Return the file of a damaged picture, and what to do if it is a pointer to one."""
    reason = pointer_in(first_bytes(Path(name))) if Path(name).is_file() else None
    return f"{name} ({reason})" if reason else name


def _unused_files(benchmark: Benchmark) -> list[str]:
    reasons = {skip.where: skip.reason for skip in benchmark.unreadable}
    return [f"{path} ({reasons[str(path)]})" if str(path) in reasons else str(path) for path in benchmark.unused_files]


def _class(record: Record) -> str:
    """Return `harmful`, `harmless` or `caveat`; a request for advice is neither of the first two."""
    return CAVEAT if record.expected == CAVEAT else "harmful" if record.query.harmful else "harmless"


def _n_pairs(benchmark: Benchmark) -> int:
    classes = {(record.query.pair, record.query.harmful) for record in benchmark.records if record.query.pair}
    return sum((pair, False) in classes for pair, harmful in classes if harmful)


def _counted(counts: Counter) -> str:
    return ", ".join(f"{name}: {n}" for name, n in counts.most_common())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more
