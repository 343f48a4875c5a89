"""Tidy table -> matplotlib figure. Runs nothing."""

from figures.adaptive import attack_curves
from figures.bench import bench_ratios
from figures.by_model import attack_success_by_model, headline
from figures.claims import claims_by_model
from figures.defence import attack_success_map
from figures.detection import detection_auroc, detection_matrix
from figures.directions import directions
from figures.equal_strength import equal_strength
from figures.guard import gate_roc, guard_explained, what_changed
from figures.judges import judge_agreement
from figures.page import PAGE_WIDTHS, page
from figures.picture_maps import picture_map
from figures.random_directions import random_directions
from figures.readings import readings
from figures.selection import layer_selection
from figures.separability import degradation, probe_auroc, separation, transfer
from figures.signal_path import attribution, patching_map, refusal_lens
from figures.states import coordinate_ridges, hidden_states
from figures.stress import stress_map
from figures.style import caption, first_judge, paper_style, save
from figures.sweep import layer_sweep, pareto
from figures.targets import targets
from figures.tradeoff import safety_tradeoff

__all__ = [
    "PAGE_WIDTHS",
    "attack_curves",
    "attack_success_by_model",
    "attack_success_map",
    "attribution",
    "bench_ratios",
    "caption",
    "claims_by_model",
    "coordinate_ridges",
    "degradation",
    "detection_auroc",
    "detection_matrix",
    "directions",
    "equal_strength",
    "first_judge",
    "gate_roc",
    "guard_explained",
    "headline",
    "hidden_states",
    "judge_agreement",
    "layer_selection",
    "layer_sweep",
    "page",
    "paper_style",
    "pareto",
    "patching_map",
    "picture_map",
    "probe_auroc",
    "random_directions",
    "readings",
    "refusal_lens",
    "safety_tradeoff",
    "save",
    "separation",
    "stress_map",
    "targets",
    "transfer",
    "what_changed",
]
