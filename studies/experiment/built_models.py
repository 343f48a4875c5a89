"""The models that are built on the user's machine, by their names."""

from studies.llava_qwen import QWEN
from studies.llava_qwen.built_model import BuiltModel
from studies.llava_smollm2 import SMOLLM2

BUILT_MODELS = (QWEN, SMOLLM2)

PROVIDED = tuple(model.alias for model in BUILT_MODELS if model.shipped)
"""Names of the models whose weights are part of this version."""


def built_model(name: str) -> BuiltModel | None:
    """Return the model that a name means, perhaps with a variant behind a colon; None for any other model."""
    return next((model for model in BUILT_MODELS if model.is_meant(name)), None)
