"""Tidy table -> matplotlib figure. Runs nothing."""

from figures.defence import attack_success_bars
from figures.guard import guard_explained
from figures.readings import readings
from figures.separability import coordinates_by_modality, hidden_states, probe_auroc, transfer
from figures.style import caption, save
from figures.sweep import layer_selection, layer_sweep, pareto
from figures.tradeoff import safety_tradeoff

__all__ = [
    "attack_success_bars",
    "caption",
    "coordinates_by_modality",
    "guard_explained",
    "hidden_states",
    "layer_selection",
    "layer_sweep",
    "pareto",
    "probe_auroc",
    "transfer",
    "readings",
    "safety_tradeoff",
    "save",
]
