"""One configuration of a guard, with the columns that identify it in a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from interp import Guard
from interp.display import is_window
from interp.projection import rule_named
from studies.generation.reference_texts import reference_for


def guard_columns(guard: Guard | None, reference: str, source: str = "vlm_text") -> dict:
    """Return the columns that say which guard a row is about.

    Args:
        guard: None for the unguarded model.
        reference: kind of reference text.
        source: model whose states of the reference the guard reads.

    Returns:
        Column -> value; None where a column does not apply.
    """
    if guard is None:
        return {"defence": "unguarded"}
    return {
        "defence": "guard",
        **layer_columns(guard.layers, guard.direction_layer),
        "token": guard.direction.token,
        "estimator": guard.direction.estimator,
        "rank": guard.direction.rank,
        "source": source,
        "rule": guard.rule,
        "reference": reference,
        "gate": guard.gate,
        "gate_scope": guard.gate_scope,
        "positions": guard.positions,
        "strength": guard.strength if rule_named(guard.rule).has_strength else None,
        "control": guard.control,
    }


def layer_columns(layers: Sequence[int], direction_layer: int | None) -> dict:
    """Return the columns that say where a guard acts, and at which layer its direction was fitted.

    Args:
        layers: in ascending order. Those of a window are its first and last; of any others, the column `layers`.
        direction_layer: None where each layer has its own.

    Returns:
        Column -> value; `last_layer` and `layers` only where they apply.
    """
    if len(layers) == 1:
        return {"layer": layers[0], "direction_layer": layers[0] if direction_layer is None else direction_layer}
    if is_window(layers):
        return {"layer": layers[0], "last_layer": layers[-1], "direction_layer": direction_layer}
    return {"layer": None, "layers": ", ".join(map(str, layers)), "direction_layer": direction_layer}


@dataclass(frozen=True)
class GuardConfiguration:
    """A guard with its references, as one entry of a grid."""

    setting: str
    """Part of the study: the value of the column `setting`."""
    guard: Guard
    reference: str | None = None
    """Kind of reference; by default the one that holds the request: the prompt's text, or the text in its picture."""
    source: str = "vlm_text"
    """Model whose states of the reference the guard reads."""
    control: str | None = None
    """A control that is not a setting of the guard itself."""
    seed: int | None = None
    """Seed of a random control."""
    reference_from: str | None = None
    """Whose reference each prompt gets: None for its own, else another prompt's of the `same` or the `other` class."""

    def reference_in(self, modality: str) -> str:
        """Return the kind of reference in a modality."""
        return self.reference or reference_for(modality)

    def columns(self, modality: str) -> dict:
        """Return the columns that identify this configuration: column -> value."""
        columns = guard_columns(self.guard, self.reference_in(modality), self.source) | {"setting": self.setting}
        columns |= {"control": self.control} if self.control else {}
        return columns | ({"seed": self.seed} if self.seed is not None else {})

    def key(self, modality: str) -> tuple:
        """Return a key that two configurations share if they act the same."""
        guard = self.guard
        # What related methods vary, and the columns of a table do not name.
        others = (guard.control_seed, guard.keeps_norm, guard.frozen_shift, guard.all_writes, self.reference_from)
        return (*(self.columns(modality) | {"setting": None}).items(), *others)

    @property
    def identity(self) -> tuple:
        """A key that two configurations share if they act the same in every modality."""
        return (self.reference, *self.key(""))

    @property
    def acts_late(self) -> bool:
        """Tell whether the guard leaves the first answer token unchanged."""
        return self.guard.positions == "generated"
