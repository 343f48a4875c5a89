"""The result of a layer sweep: returned by the study, or read back from its saved table.

The column `selection_rule` marks two finalists on validation: the best one with the name of the rule that chose it, and
the best single layer with that name and `SINGLE_LAYER`, unless both are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from studies.guards.choice_rule import FALLBACK_RULE, SELECTION_RULE, Finalist
from studies.guards.configuration import GuardConfiguration

IDENTIFYING = (
    "layer last_layer direction_layer source estimator rank rule gate gate_scope positions strength token"
).split()
"""Columns that identify a configuration of the sweep."""


@dataclass(frozen=True)
class SweepChoice:
    """The best configuration of a sweep by its columns, and the best single layer."""

    columns: Mapping[str, object]
    """`IDENTIFYING` columns of the best finalist, without those that do not apply; empty if no finalist is marked."""
    single_layer: int | None
    """The best single layer; None if no single layer was swept."""

    @classmethod
    def read(cls, table: pd.DataFrame) -> "SweepChoice":
        """Read the choice from the table of a finished sweep."""
        marked = table[(table.setting == "finalists") & table.selection_rule.notna()]
        best = marked[marked.selection_rule.isin((SELECTION_RULE, FALLBACK_RULE))]
        single = marked[marked.last_layer.isna()] if "last_layer" in marked else marked
        return cls(
            {} if best.empty else identifying_columns(best.iloc[0]),
            None if single.empty else int(single.layer.iloc[0]),
        )

    @property
    def layer(self) -> int:
        """The best single layer, which other studies build on.

        Raises:
            LookupError: no single layer was swept.
        """
        if self.single_layer is None:
            raise LookupError("the sweep marks no single layer; run it with single layers in its grid")
        return self.single_layer


def identifying_columns(row: Mapping[str, object] | pd.Series) -> dict[str, object]:
    """Return the `IDENTIFYING` columns of a row that have a value: column -> value."""
    return {name: row[name] for name in IDENTIFYING if name in row and not pd.isna(row[name])}


@dataclass(frozen=True, eq=False)
class SweepResult:
    """A finished sweep: the table, the finalists, and the best of them."""

    table: pd.DataFrame = field(repr=False)
    finalists: tuple[Finalist, ...] = field(repr=False)
    """Finalists in the order of their rows in the table: from the best by the first token on."""
    best: Finalist
    random: pd.DataFrame = field(repr=False)
    """The best one and every random direction that it is compared with, by the first token on the reported split;
    empty if that is validation."""

    @property
    def chosen(self) -> GuardConfiguration:
        """The configuration of the best finalist."""
        return self.best.configuration

    @property
    def choice(self) -> SweepChoice:
        """The choice as `SweepChoice.read` finds it in the table."""
        marked = [finalist.configuration.guard.layers for finalist in self.finalists if finalist.mark]
        single_layer = next((layers[0] for layers in marked if len(layers) == 1), None)
        return SweepChoice(identifying_columns(self.chosen.columns("")), single_layer)
