"""Everything that the package offers, imported at once; `interp` does so when the first part of it is used."""

import interp.cards  # noqa: F401  (registers what Jupyter shows)
from interp.activations import Store, StoreError, open_store
from interp.answer_divergence import answer_kl
from interp.directions import SafetyDirection, alignment, fit_gate, random_basis, stability
from interp.errors import ModelError
from interp.estimators import ESTIMATORS, AnchorError
from interp.forced import ForcedScore, forced_beginning, log_probabilities, logprobs_after
from interp.guard import POSITIONS, REFERENCES, SOURCES, Guard
from interp.guard_batches import GuardBatchError, GuardRuns, GuardScore, References, run_guards
from interp.guard_files import GUARD_SETTINGS, GuardFileError, read_guard_settings
from interp.inputs import (
    CAPTION_REQUEST,
    IMAGE_AUGMENTED,
    MODALITIES,
    TRANSCRIPTION_REQUEST,
    TYPOGRAPHIC,
    TYPOGRAPHIC_REQUEST,
    caption_prompt,
    collate,
    text_prompt,
    to_prompt,
    to_prompts,
    transcription_prompt,
)
from interp.lens import Lens
from interp.loading import is_text_only
from interp.patching import patch, recovered
from interp.pictures import PictureError
from interp.prefill_sharing import why_not_together
from interp.projection import RULES, ProbeGate, coordinates, set_coordinates
from interp.sampling import Sampling
from interp.token_positions import ALL_TOKENS, TOKEN_ROLES, TraceError
from interp.trace import PromptsLeftOut, trace
from interp.tracing.forward import DECODER_SITES
from interp.tracing.prefix import SharingDisabled
from interp.vlm import LLM, VLM

__all__ = [
    "ALL_TOKENS",
    "AnchorError",
    "CAPTION_REQUEST",
    "DECODER_SITES",
    "ESTIMATORS",
    "ForcedScore",
    "GUARD_SETTINGS",
    "Guard",
    "GuardBatchError",
    "GuardFileError",
    "GuardRuns",
    "GuardScore",
    "IMAGE_AUGMENTED",
    "LLM",
    "Lens",
    "MODALITIES",
    "ModelError",
    "POSITIONS",
    "PictureError",
    "ProbeGate",
    "PromptsLeftOut",
    "REFERENCES",
    "RULES",
    "References",
    "SOURCES",
    "SafetyDirection",
    "Sampling",
    "SharingDisabled",
    "Store",
    "StoreError",
    "TOKEN_ROLES",
    "TRANSCRIPTION_REQUEST",
    "TYPOGRAPHIC",
    "TYPOGRAPHIC_REQUEST",
    "TraceError",
    "VLM",
    "alignment",
    "answer_kl",
    "caption_prompt",
    "collate",
    "coordinates",
    "fit_gate",
    "forced_beginning",
    "is_text_only",
    "log_probabilities",
    "logprobs_after",
    "open_store",
    "patch",
    "random_basis",
    "read_guard_settings",
    "recovered",
    "run_guards",
    "set_coordinates",
    "stability",
    "text_prompt",
    "to_prompt",
    "to_prompts",
    "trace",
    "transcription_prompt",
    "why_not_together",
]
