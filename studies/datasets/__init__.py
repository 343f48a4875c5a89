"""Data files: the user's own queries -> `Query`; published benchmarks -> `Record`.

Queries of your own are read by `read_queries` (`table.py`, with the names of columns in `columns.py`) and divided by
`split_queries` (`splits.py`). A benchmark is read by `read_benchmark` (`reader.py`): `finding.py` finds its files,
`files.py` turns them into rows (`rows.py`), and a reader of `text_sets.py`, `picture_sets.py`, `paired_sets.py` or
`ability_sets.py` turns rows into records. Files are opened by `opening.py`, and read by `delimited.py`, `json_rows.py`
or `arrow_rows.py`; pictures inside them are found by `embedded.py`. `catalogue.py` lists the benchmarks, `checking.py`
says what a file holds, `leakage.py` which test requests something was fitted on, `copies.py` which queries of a file
repeat others, `seen_texts.py` what a saved guard was fitted and chosen on, `responses.py` reads answers that people
have labelled (`response_sets.py` the published ones), `saved_answers.py` those that other programs have saved, and
`attacks.py` holds jailbreak templates.

To add a benchmark:

1. write its `Source` and a reader, a function from a `DataFile` to its `Record`s, in one of the `*_sets.py` files;
2. add an `Entry` to `ENTRIES` in `registry.py`: what its files look like, its reader, and where its pictures are;
3. add a line to `FILES_OF` in `catalogue.py`: what it is, and which files to get;
4. add a small file in its format to `FORMS` in `tests/studies/datasets/benchmark_files.py`, which every test of
   readers uses.
"""

from studies.datasets.checking import Check, check
from studies.datasets.columns import Columns
from studies.datasets.copies import Copies
from studies.datasets.finding import recognise
from studies.datasets.leakage import Leakage, find_leakage
from studies.datasets.reader import Benchmark, read_benchmark, unreadable_pictures, without_pictures
from studies.datasets.record import ANSWER, CAVEAT, EXPECTED, REFUSE, Record, SkippedRow, Source
from studies.datasets.response_sets import LabelledResponse
from studies.datasets.responses import ResponseColumns, ResponseFiles, read_response_files, read_responses
from studies.datasets.rows import QueryFileError
from studies.datasets.saved_answers import AnswerColumns, SavedAnswers, read_saved_answers
from studies.datasets.seen_texts import SeenTexts
from studies.datasets.splits import is_paired, split_queries
from studies.datasets.table import read_queries, write_queries

__all__ = [
    "ANSWER",
    "AnswerColumns",
    "CAVEAT",
    "EXPECTED",
    "REFUSE",
    "Benchmark",
    "Check",
    "Columns",
    "Copies",
    "LabelledResponse",
    "Leakage",
    "QueryFileError",
    "Record",
    "ResponseColumns",
    "ResponseFiles",
    "SavedAnswers",
    "SeenTexts",
    "SkippedRow",
    "Source",
    "check",
    "find_leakage",
    "is_paired",
    "read_benchmark",
    "read_queries",
    "read_response_files",
    "read_responses",
    "read_saved_answers",
    "recognise",
    "split_queries",
    "unreadable_pictures",
    "without_pictures",
    "write_queries",
]
