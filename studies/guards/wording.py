"""A guard in one sentence that names it in full; the same in reports, claims, captions and `vlm-guard guard show`."""

from collections.abc import Mapping

import pandas as pd

from interp.display import layers_in_words
from interp.projection import RELATED_RULES, RULES, rule_named
from studies.guards.choice_rule import FALLBACK_RULE, SELECTION_RULE
from studies.guards.configuration import layer_columns
from studies.guards.sweep_result import SweepChoice

CHOSEN_ON = "validation"
"""Split on which every guard is chosen."""
EITHER_REFERENCE = "prompt_text (transcription if the request is in a picture)"
"""Reference of a guard for which none was set: the text that holds the request."""


def guard_in_words(columns: Mapping[str, object], chosen_by: str | None = None) -> str:
    """Name a guard in full: rule, layers, strength, gate, positions, reference, direction, and how it was chosen.

    Args:
        columns: those of `studies.guards.configuration.guard_columns`; without `reference` it is `EITHER_REFERENCE`.
        chosen_by: name of the rule that chose it on validation; None if it was not chosen.
    """
    value = {name: content for name, content in columns.items() if not pd.isna(content)}
    parts = [
        f"rule {value['rule']}" if "rule" in value else "",
        _layers(value),
        f"strength {value['strength']:g}" if "strength" in value else "",
        _gate(value),
        f"positions {value['positions']}" if "positions" in value else "",
        _reference(value) if _needs_reference(value) else "",
        _direction(value),
    ]
    named = ", ".join(filter(None, parts))
    return f"{named}; chosen on {CHOSEN_ON} by {chosen_by}" if chosen_by else named


def _layers(value: Mapping) -> str:
    if "layers" in value:
        layers = [int(layer) for layer in value["layers"].split(", ")]
    elif "layer" in value:
        layers = range(int(value["layer"]), int(value.get("last_layer", value["layer"])) + 1)
    else:
        return ""
    where = layers_in_words(layers)
    # Several layers have a direction each, unless one layer's is used throughout.
    is_elsewhere = "direction_layer" in value and list(layers) != [value["direction_layer"]]
    return f"{where} (direction of layer {int(value['direction_layer'])})" if is_elsewhere else where


def _gate(value: Mapping) -> str:
    gate = value.get("gate", "always")
    # The scope of a gate that is always open has no effect.
    has_scope = gate != "always" and "gate_scope" in value
    return f"gate {gate} (scope {value['gate_scope']})" if has_scope else f"gate {gate}"


def _needs_reference(value: Mapping) -> bool:
    is_known = value.get("rule") in RULES or value.get("rule") in RELATED_RULES
    needs = rule_named(value["rule"]).needs if is_known else ("reference",)
    return "reference" in needs or value.get("gate", "always") != "always"


def _reference(value: Mapping) -> str:
    reader = f" read by {value['source']}" if "source" in value else ""
    return f"reference {value.get('reference', EITHER_REFERENCE)}{reader}"


def _direction(value: Mapping) -> str:
    if "estimator" not in value:
        return ""
    rank = f" of rank {int(value['rank'])}" if "rank" in value else ""
    return f"direction {value['estimator']}{rank}" + (f" at token {value['token']}" if "token" in value else "")


def chosen_in_words(sweep: pd.DataFrame, reference: str | None = None) -> str:
    """Name the guard that a sweep chose; empty if its table marks none.

    Args:
        sweep: table of `studies.layer_sweep`.
        reference: a kind of reference; by default the text that holds the request.
    """
    columns = SweepChoice.read(sweep).columns
    if not columns:
        return ""
    marks = sweep[sweep.setting == "finalists"].selection_rule
    chosen_by = next(mark for mark in marks if mark in (SELECTION_RULE, FALLBACK_RULE))
    return guard_in_words(columns if reference is None else {**columns, "reference": reference}, chosen_by)


def saved_in_words(record: Mapping[str, Mapping]) -> str:
    """Name a saved guard, from its record alone.

    Args:
        record: returned by `interp.read_guard_settings`.
    """
    guard, direction = record["guard"], record["direction"]
    columns = {
        **layer_columns(guard["layers"], guard["direction_layer"]),
        "strength": guard["strength"] if rule_named(guard["rule"]).has_strength else None,
        # A guard that reads the prompt by default is shown what the picture says, if the request is there.
        "reference": None if guard["reference"] == "prompt_text" else guard["reference"],
        **{name: guard[name] for name in ("rule", "gate", "gate_scope", "positions", "source")},
        **{name: direction[name] for name in ("estimator", "token", "rank") if name in direction},
    }
    return guard_in_words(columns, guard.get("chosen_by") or None)
