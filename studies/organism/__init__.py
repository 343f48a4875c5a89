"""The built-in model: a small LLaVA that shows the effect on a laptop. See `train.py` for how it is made."""

from pathlib import Path

ALIAS = "organism"
"""Name of the built-in model wherever a model is named."""
FOLDER = Path(__file__).parent / "model"


def path() -> Path:
    """Return the folder of the vision-language model, in Hugging Face format."""
    return FOLDER / "vlm"


def llm_path() -> Path:
    """Return the folder of its aligned LLM, as it was before it saw a picture."""
    return FOLDER / "llm"
