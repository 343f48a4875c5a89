"""The openings of refusals: one or two tokens after which the answer refuses, as values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from studies.bookkeeping.estimates import rate

LEAST_COVERAGE = 0.95
"""Share of refused anchors whose opening must be known; below it the refusal score misses refusals."""


@dataclass(frozen=True)
class Opening:
    """The first token of refusals, or the first two, and what was measured on anchors."""

    tokens: tuple[int, ...]
    """One token, or two where the first one opens other answers as well."""
    text: str = ""
    mass: float = np.nan
    """Mean probability of these tokens at the start of the answer, over refused harmful anchors."""
    refused: float = np.nan
    """Share of refused harmful anchors whose answer is a refusal if it is forced to begin like this."""
    helpful: float = np.nan
    """Mean probability, over harmless anchors, of these tokens with a continuation that is not a refusal. An upper
    bound where it could not reach the limit: then the continuations are not generated."""

    def __str__(self) -> str:
        return f"{self.text!r} ({self.mass:.2f})"


@dataclass(frozen=True)
class RefusalOpenings:
    """The tokens with which a model opens refusals, and where they come from."""

    openings: tuple[Opening, ...]
    """No opening is the beginning of another one."""
    coverage: float = np.nan
    """Share of refused harmful anchors whose own answer has one of these openings; NaN if none was refused, or the
    openings are only assumed."""
    n_refused: int = 0
    """Harmful anchors that the model refuses."""
    origin: str = "given"
    """How the set was obtained; stored with the results."""

    @classmethod
    def read(cls, record: Mapping) -> "RefusalOpenings":
        """Return the openings that `record` has written."""

        def known(fields: Mapping) -> dict:
            return {name: np.nan if value is None else value for name, value in fields.items()}

        openings = tuple(Opening(**known(row) | {"tokens": tuple(row["tokens"])}) for row in record["openings"])
        return cls(**known(record) | {"openings": openings})

    @cached_property
    def record(self) -> dict:
        """Everything about the set, as JSON can write it; values that do not exist are None."""
        record = asdict(self) | {"openings": [asdict(opening) for opening in self.openings]}
        for fields in (record, *record["openings"]):
            fields |= {name: None for name, value in fields.items() if isinstance(value, float) and np.isnan(value)}
        return record

    @property
    def ids(self) -> list[list[int]]:
        """The token ids of every opening: all that a score depends on."""
        return sorted(list(opening.tokens) for opening in self.openings)

    @cached_property
    def single(self) -> tuple[int, ...]:
        """Tokens that open refusals by themselves."""
        return tuple(opening.tokens[0] for opening in self.openings if len(opening.tokens) == 1)

    @cached_property
    def seconds(self) -> dict[int, list[int]]:
        """Second tokens of two-token openings, by their first token."""
        found: dict[int, list[int]] = {}
        for opening in self.openings:
            if len(opening.tokens) == 2:
                found.setdefault(opening.tokens[0], []).append(opening.tokens[1])
        return found

    @property
    def single_only(self) -> "RefusalOpenings":
        """The set without its two-token openings, for what sees the first token alone."""
        return replace(self, openings=tuple(opening for opening in self.openings if len(opening.tokens) == 1))

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.openings))}; {self.origin}"


def coverage_row(openings: RefusalOpenings) -> dict:
    """Return the coverage of the openings as columns of a row (metric `opening_coverage`, split `anchors`)."""
    n = 0 if np.isnan(openings.coverage) else openings.n_refused
    hits = np.arange(n) < round(openings.coverage * n) if n else []
    return {"split": "anchors", "modality": "text"} | rate("opening_coverage", hits)
