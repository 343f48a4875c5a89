"""The model: what we read from it, and what we do to it.

    VLM, LLM                            load a model; one name per part (`vlm.py`)
    Query, Prompt, to_prompts           requests and the ways in which they reach a model (`queries.py`,
                                        `inputs.py`)
    trace, open_store                   activations, in memory or on disk (`trace.py`, `tracing/`, `activations.py`)
    SafetyDirection, ESTIMATORS         the safety steering direction (`directions.py`, `estimators.py`)
    RULES, coordinates, set_coordinates the formula that a guard applies (`projection.py`)
    Guard, run_guards                   a guard on a model; many guards on one prefill (`guard.py`, `guard_batches.py`)
    Sampling                            answers drawn at a temperature (`sampling.py`)
    ForcedScore, logprobs_after         answers whose first tokens are given (`forced.py`)
    Lens, patch, recovered              where the safety signal is written and lost (`lens.py`, `patching.py`)

Only requests and prompts (`queries.py`) are imported with the package; everything else is when it is first used, so
that data files can be read without the libraries that run models.

These modules are public too; their `__all__` lists what they offer: `batches`, `display`, `errors`, `identity`, `lens`,
`picture_maps`, `pictures`, `projection`, `related_directions`, `related_methods`, `stage_times`, `tracing.cluster`,
`typography`, `verify`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from interp.queries import Prompt, Query

# For type checkers and editors, which don't call `__getattr__`.
if TYPE_CHECKING:
    from interp.everything import (
        ALL_TOKENS,
        CAPTION_REQUEST,
        DECODER_SITES,
        ESTIMATORS,
        GUARD_SETTINGS,
        IMAGE_AUGMENTED,
        LLM,
        MODALITIES,
        POSITIONS,
        REFERENCES,
        RULES,
        SOURCES,
        TOKEN_ROLES,
        TRANSCRIPTION_REQUEST,
        TYPOGRAPHIC,
        TYPOGRAPHIC_REQUEST,
        VLM,
        AnchorError,
        ForcedScore,
        Guard,
        GuardBatchError,
        GuardFileError,
        GuardRuns,
        GuardScore,
        Lens,
        ModelError,
        PictureError,
        ProbeGate,
        PromptsLeftOut,
        References,
        SafetyDirection,
        Sampling,
        SharingDisabled,
        Store,
        StoreError,
        TraceError,
        alignment,
        answer_kl,
        caption_prompt,
        collate,
        coordinates,
        fit_gate,
        forced_beginning,
        is_text_only,
        log_probabilities,
        logprobs_after,
        open_store,
        patch,
        random_basis,
        read_guard_settings,
        recovered,
        run_guards,
        set_coordinates,
        stability,
        text_prompt,
        to_prompt,
        to_prompts,
        trace,
        transcription_prompt,
        why_not_together,
    )

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
    "Prompt",
    "PromptsLeftOut",
    "Query",
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


# Called for names that are not bound yet, see PEP 562.
def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("interp.everything"), name)


class _Door(ModuleType):
    """The package. Its function `trace` is found even after the module of the same name has been imported."""

    @property
    def trace(self) -> object:
        return import_module("interp.everything").trace

    @trace.setter
    def trace(self, module: ModuleType) -> None:
        """Ignore the module, which the import system would put in place of the function."""


# The import system sets the attribute `trace` to the module, and would hide the function from whoever comes later.
sys.modules[__name__].__class__ = _Door
