"""Results -> one page that stands by itself: verdicts, figures, tables, hidden states, provenance."""

from studies.report.page import write

__all__ = ["write"]
