"""Files of queries -> `Query`."""

from studies.datasets.splits import is_paired, split_queries
from studies.datasets.table import QueryFileError, read_queries

__all__ = ["QueryFileError", "is_paired", "read_queries", "split_queries"]
