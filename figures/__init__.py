"""Tidy table -> matplotlib figure. Runs nothing."""

from figures.bench import bench_ratios
from figures.by_model import attack_success_by_model
from figures.claims import claims_by_model
from figures.defence import attack_success_bars
from figures.detection import detection_auroc, detection_matrix
from figures.directions import directions
from figures.guard import gate_roc, guard_explained, what_changed
from figures.judges import judge_agreement
from figures.random_directions import random_directions
from figures.readings import readings
from figures.separability import degradation, probe_auroc, separation, transfer
from figures.signal_path import attribution, patching_map, refusal_lens
from figures.states import coordinate_ridges, hidden_states
from figures.style import NARROW, WIDE, caption, first_judge, paper_style, save
from figures.sweep import layer_selection, layer_sweep, pareto
from figures.targets import targets
from figures.tradeoff import safety_tradeoff

__all__ = [
    "NARROW",
    "WIDE",
    "attack_success_bars",
    "attack_success_by_model",
    "attribution",
    "bench_ratios",
    "caption",
    "claims_by_model",
    "coordinate_ridges",
    "degradation",
    "detection_auroc",
    "detection_matrix",
    "directions",
    "first_judge",
    "gate_roc",
    "guard_explained",
    "hidden_states",
    "judge_agreement",
    "layer_selection",
    "layer_sweep",
    "paper_style",
    "pareto",
    "patching_map",
    "probe_auroc",
    "random_directions",
    "readings",
    "refusal_lens",
    "safety_tradeoff",
    "save",
    "separation",
    "targets",
    "transfer",
    "what_changed",
]
