"""The model: what we read from it, and what we do to it."""

from interp.activations import StoreError, open_store
from interp.directions import ESTIMATORS, SafetyDirection, random_basis
from interp.guard import Guard
from interp.inputs import MODALITIES, Prompt, Query, collate, to_prompt, to_prompts
from interp.lens import Lens
from interp.patching import patch, recovered
from interp.pictures import PictureError
from interp.projection import RULES, coordinates, set_coordinates
from interp.spots import TraceError
from interp.trace import trace
from interp.vlm import LLM, VLM, ModelError

__all__ = [
    "ESTIMATORS",
    "LLM",
    "Lens",
    "MODALITIES",
    "RULES",
    "VLM",
    "Guard",
    "ModelError",
    "PictureError",
    "Prompt",
    "Query",
    "SafetyDirection",
    "StoreError",
    "TraceError",
    "collate",
    "coordinates",
    "open_store",
    "patch",
    "random_basis",
    "recovered",
    "set_coordinates",
    "to_prompt",
    "to_prompts",
    "trace",
]
