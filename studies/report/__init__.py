"""One self-contained page of results: verdicts, figures, tables, hidden states, provenance."""

from studies.report.page import write

__all__ = ["write"]
