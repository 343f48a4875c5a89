"""Settings of a run: scales, splits and where results go."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from interp.inputs import MODALITIES
from studies.generation.generate import Generation

SPLITS = ("anchors", "validation", "test")
TRAINED = "train"
"""Split of the built-in queries that the built-in model has seen: beside the others, never chosen or reported alone."""
SWEPT = ("blank", "scene", "typographic")
"""What a choice should rest on at least: nothing in the picture, something, the request itself."""
BUILT_IN = "organism"
"""Name of the built-in model, and of its own queries."""
WIDEST_LDA = 2048
"""Beyond this width a single fit of LDA takes half a minute, for it inverts d_model x d_model."""


class ConfigError(ValueError):
    """A setting of the run that does not exist, or can't be used."""


@dataclass(frozen=True)
class Scale:
    """How much is measured. Sizes are of each class."""

    n_anchors: int
    n_evaluated: int
    """Of validation, and of test."""
    modalities: tuple[str, ...]
    layer_step: int
    """Grids of readings take every `layer_step`-th layer."""
    swept: tuple[str, ...]
    """In which the sweep is run."""
    n_patched: int
    """Harmful prompts of each modality that activations are patched into."""
    grid_modalities: tuple[str, ...]
    """In which the grid of readings is run."""
    n_draws: int
    """Bootstrap refits by which the stability of a direction is judged."""
    rivals: bool = False
    """Whether every defence is measured, with utility and costs, or those alone that the claims are about."""


SCALES = {
    "tiny": Scale(
        22, 11, ("text", "blank", "typographic"), 4, ("blank", "typographic"), 3, ("blank", "typographic"), 2
    ),
    "quick": Scale(121, 60, tuple(MODALITIES), 1, SWEPT, 16, ("blank", "typographic"), 10),
    "full": Scale(121, 60, tuple(MODALITIES), 1, tuple(MODALITIES)[1:], 60, tuple(MODALITIES), 20, rivals=True),
}


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    model: str = "organism"
    """Folder in Hugging Face format, hub id, or `organism` (the built-in model)."""
    queries: str | None = None
    """CSV with text,harmful[,category,pair]; by default the built-in model's own queries."""
    scale: str = "quick"
    """`tiny`, `quick` or `full`."""
    out: str = "results/repro"
    """Folder for tables, figures and traces."""
    split: str = "test"
    """What is reported. Recipes are developed with `validation` here."""
    seed: int = 0
    generation: Generation = field(default_factory=Generation)
    loading: Mapping[str, str | bool | None] = field(default_factory=dict)
    """How a model of the user's is loaded: some of `load_model`'s arguments."""

    @property
    def sizes(self) -> Scale:
        return SCALES[self.scale]


def writable_folder(path: str | Path) -> Path:
    """The folder, made if need be.

    Raises:
        ConfigError: it can't be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"output folder {str(path)!r} can't be written to: {error.strerror}; give another --out"
        ) from None
    return folder
