"""The model: what we read from it, and what we do to it."""

import interp.cards  # noqa: F401  (registers what Jupyter shows)
from interp.activations import StoreError, open_store
from interp.directions import SafetyDirection, alignment, fit_gate, random_basis, stability
from interp.estimators import ESTIMATORS, AnchorError
from interp.guard import Guard
from interp.guard_batches import GuardBatchError, run_guards
from interp.guard_files import GuardFileError
from interp.inputs import MODALITIES, Prompt, Query, collate, to_prompt, to_prompts
from interp.lens import Lens
from interp.patching import patch, recovered
from interp.pictures import PictureError
from interp.projection import RULES, ProbeGate, coordinates, set_coordinates
from interp.token_positions import TraceError
from interp.trace import trace
from interp.vlm import LLM, VLM, ModelError

__all__ = [
    "ESTIMATORS",
    "LLM",
    "Lens",
    "MODALITIES",
    "RULES",
    "VLM",
    "AnchorError",
    "Guard",
    "GuardFileError",
    "ModelError",
    "PictureError",
    "ProbeGate",
    "Prompt",
    "Query",
    "GuardBatchError",
    "SafetyDirection",
    "StoreError",
    "TraceError",
    "alignment",
    "collate",
    "coordinates",
    "fit_gate",
    "open_store",
    "patch",
    "random_basis",
    "recovered",
    "run_guards",
    "set_coordinates",
    "stability",
    "to_prompt",
    "to_prompts",
    "trace",
]
