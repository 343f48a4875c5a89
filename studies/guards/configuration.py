"""One configuration of a guard, with the columns that identify it in a table."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.guard import Guard
from studies.generation.reference_texts import reference_for
from studies.guards.measures import describe


@dataclass(frozen=True)
class GuardConfiguration:
    """One configuration of the grid."""

    setting: str
    guard: Guard
    reference: str | None = None
    """By default what says the request: the prompt's text, or what is read in the picture."""
    source: str = "vlm_text"
    control: str | None = None
    """Controls that are no field of the guard."""
    seed: int | None = None
    deal: str | None = None
    """Whose reference each prompt gets: its own, that of another prompt of the `same` class, or of the `other`."""

    def reference_in(self, modality: str) -> str:
        return self.reference or reference_for(modality)

    def about(self, modality: str) -> dict:
        """The columns that tell it from others."""
        told = describe(self.guard, self.reference_in(modality), self.source) | {"setting": self.setting}
        told |= {"control": self.control} if self.control else {}
        return told | ({"seed": self.seed} if self.seed is not None else {})

    def key(self, modality: str) -> tuple:
        """The same for configurations that do the same."""
        return (*(self.about(modality) | {"setting": None}).items(), self.guard.control_seed, self.deal)

    @property
    def is_honest(self) -> bool:
        """Whether it may be chosen: no control, and with the reference that suits the modality."""
        return self.guard.control is None and self.control is None and self.reference is None


def rows_of(table: pd.DataFrame, one: GuardConfiguration) -> pd.DataFrame:
    """A reading's rows in all modalities."""
    found = []
    for modality, rows in table.groupby("modality"):
        # A window may begin at the layer of a single one, and tables without windows lack the column.
        told = {"last_layer": None} | one.about(modality) | {"control": one.guard.control}
        known = rows.reindex(columns=list(told))
        is_mine = np.logical_and.reduce(
            [known[name].isna() if value is None else known[name] == value for name, value in told.items()]
        )
        found.append(rows[is_mine])
    return pd.concat(found)
