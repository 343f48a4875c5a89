"""A LLaVA on an LLM that others aligned: Qwen2.5-Coder-0.5B-Instruct, with eyes that were trained here.

`base_model.py` gets the LLM, `build.py` joins it with the weights that ship, `train.py` is how those were made,
`evaluation.py` what they can do.
"""

from pathlib import Path

from platformdirs import user_cache_path

ALIAS = "llava-qwen-0.5b"
"""Name of the model wherever a model is named; a variant is named behind a colon."""
WEIGHTS = Path(__file__).parent / "weights"
"""Vision tower, projector and low-rank updates, as they ship."""
EYES = "eyes.safetensors"
"""File with vision tower and projector; each variant has a file of its own with the updates of the LLM."""
VARIANTS = ("b", "c1", "c2", "c3", "d")
"""Trainings of the LLM's own weights: none; on its own answers, at three doses; on short answers."""
DEFAULT = "d"


def cache() -> Path:
    """Return the user's folder for downloads and built models."""
    return user_cache_path("vlm-guard", appauthor=False)


def is_meant(name: str) -> bool:
    """Return whether a name means this model, in whatever variant."""
    return name.partition(":")[0] == ALIAS


def variant_of(name: str) -> str | None:
    """Return the variant that a name means; None if it does not name this model.

    Raises:
        ValueError: the variant does not exist.
    """
    if not is_meant(name):
        return None
    if (variant := name.partition(":")[2] or DEFAULT) not in VARIANTS:
        raise ValueError(f"{name!r}: variant {variant!r} does not exist; expected one of {', '.join(VARIANTS)}")
    return variant


def path(variant: str = DEFAULT) -> Path:
    """Return the folder of a built variant, in Hugging Face format; it may not exist yet."""
    return cache() / ALIAS / variant


def llm_path() -> Path:
    """Return the folder of the untouched LLM; it may not exist yet."""
    return cache() / ALIAS / "llm"
