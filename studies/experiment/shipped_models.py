"""Models that the project provides under a name, each with its aligned LLM and its own queries."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interp import Query
from studies import organism
from studies.experiment.built_models import built_model
from studies.experiment.config import BUILT_IN, SPLITS, TRAINED, ConfigError
from studies.llava_qwen import requests
from studies.llava_qwen.built_model import BuiltModel, is_made_of
from studies.organism import language


@dataclass(frozen=True)
class ShippedModel:
    """A model by its folders and its queries."""

    vlm: Path
    """Folder of the VLM, in Hugging Face format."""
    llm: Path
    """Folder of its aligned LLM, as it was before it saw a picture."""
    dataset: str
    """Name of its own queries."""
    splits: tuple[str, ...]
    queries: Callable[[str], tuple[Query, ...]]
    """The queries of a split."""


def shipped_model(name: str, weights: str | Path | None = None) -> ShippedModel | None:
    """Return the model of this name; None for any other.

    Args:
        name: `organism`, or a model that is built and perhaps one of its variants, as in `llava-qwen-0.5b:c1`.
        weights: folder with another training of the built-in model.

    Raises:
        ConfigError: the variant does not exist, has no weights in this version, or has not been built.
    """
    if name == BUILT_IN:
        folders = organism.path(weights), organism.llm_path(weights)
        return ShippedModel(*folders, BUILT_IN, (*SPLITS, TRAINED), language.queries)
    built = built_model(name)
    if built is None:
        return None
    variant = variant_of(built, name)
    folders = built.path(variant), built.llm_path(variant)
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise ConfigError(f"{name!r} is not built yet ({missing[0]} does not exist); run `vlm-guard model get {name}`")
    try:
        ingredients = built.made_of(variant)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from None
    if not is_made_of(folders[0], ingredients):
        raise ConfigError(
            f"{name!r} was built from other weights than those that ship; run `vlm-guard model get {name}`"
        )
    return ShippedModel(*folders, requests.NAME, requests.SPLITS, requests.queries)


def variant_of(model: BuiltModel, name: str) -> str:
    """Return the variant that a name of a model means.

    Raises:
        ConfigError: the variant does not exist.
    """
    try:
        return model.variant_of(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
