"""The built-in model: a small LLaVA that shows the effect on a laptop. See `train.py` for how it is made."""

from pathlib import Path

ALIAS = "organism"
"""Name of the built-in model wherever a model is named."""
FOLDER = Path(__file__).parent / "model"


def path(weights: str | Path | None = None) -> Path:
    """Return the folder of the vision-language model, in Hugging Face format.

    Args:
        weights: folder of another training of the recipe; by default the one that ships.
    """
    return Path(weights or FOLDER) / "vlm"


def llm_path(weights: str | Path | None = None) -> Path:
    """Return the folder of its aligned LLM, as it was before it saw a picture; `weights` as in `path`."""
    return Path(weights or FOLDER) / "llm"
