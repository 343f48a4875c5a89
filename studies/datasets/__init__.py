"""Files of queries -> `Query`; published benchmarks -> `Record`."""

from studies.datasets.checking import Check, check
from studies.datasets.finding import recognise
from studies.datasets.leakage import Leakage, find_leakage
from studies.datasets.reader import Benchmark, damaged, read_benchmark, without
from studies.datasets.record import ANSWER, CAVEAT, EXPECTED, REFUSE, Record, SkippedRow, Source
from studies.datasets.responses import LabelledResponse, read_responses
from studies.datasets.splits import is_paired, split_queries
from studies.datasets.table import QueryFileError, read_queries, write_queries

__all__ = [
    "ANSWER",
    "CAVEAT",
    "EXPECTED",
    "REFUSE",
    "Benchmark",
    "Check",
    "LabelledResponse",
    "Leakage",
    "SkippedRow",
    "QueryFileError",
    "Record",
    "Source",
    "check",
    "damaged",
    "find_leakage",
    "is_paired",
    "read_benchmark",
    "read_queries",
    "read_responses",
    "recognise",
    "split_queries",
    "without",
    "write_queries",
]
