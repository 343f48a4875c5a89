"""Settings of a run: scales, splits and the output folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile

from interp import MODALITIES
from studies import organism
from studies.datasets import Columns
from studies.experiment.built_models import built_model
from studies.generation.generate import Generation

SPLITS = ("anchors", "validation", "test")
TRAINED = "train"
"""Split of the built-in queries that the built-in model was trained on: shown alongside the others, never reported
alone."""
SWEPT = ("blank", "scene", "typographic")
"""Modalities that a choice should rest on at least: an empty picture, a scene, the request itself."""
BUILT_IN = organism.ALIAS
"""Name of the built-in model, and of its own queries."""
WIDEST_LDA = 2048
"""Largest `d_model` for which LDA is fitted: beyond it a fit, which inverts d_model x d_model, takes half a minute."""


class ConfigError(ValueError):
    """A setting of the run does not exist or can't be used."""


@dataclass(frozen=True)
class Scale:
    """How much is measured. Counts are per class."""

    n_anchors: int
    n_evaluated: int
    """Queries of the validation split, and of the test split."""
    modalities: tuple[str, ...]
    layers: str
    """Single layers that guards are tried at, as a word of `studies.guards.sweep_grid.Grid.layers`."""
    swept: tuple[str, ...]
    """Modalities of the layer sweep."""
    n_patched: int
    """Harmful prompts per modality that activations are patched into."""
    grid_modalities: tuple[str, ...]
    """Modalities of the grid of readings, and of the random directions that readings are compared with."""
    n_draws: int
    """Bootstrap refits that estimate the stability of a direction."""
    rivals: bool = False
    """True measures every defence, with utility, and tunes those that can be tuned; False measures only those that the
    claims are about."""
    n_costed: int = 20
    """Prompts of which the costs are measured, one by one; 0 to leave them out."""
    n_grid: int | None = None
    """Queries of the validation split that the grid of readings is measured on, the first ones; None for all."""

    def within(self, limit: int) -> "Scale":
        """Return sizes of which no count of queries is above a limit."""
        counts = ("n_anchors", "n_evaluated", "n_patched", "n_costed")
        return replace(self, **{name: min(getattr(self, name), limit) for name in counts})


_QUICK = Scale(
    n_anchors=121,
    n_evaluated=60,
    modalities=("text", *SWEPT),
    layers="spread:8",
    swept=SWEPT,
    n_patched=16,
    grid_modalities=("blank", "typographic"),
    n_draws=10,
)
SCALES = {
    "tiny": Scale(
        n_anchors=22,
        n_evaluated=11,
        modalities=("text", "blank", "typographic"),
        layers="every:4",
        swept=("blank", "typographic"),
        n_patched=3,
        grid_modalities=("blank", "typographic"),
        n_draws=2,
        n_costed=0,
    ),
    # As quick where claims are decided, and less around them: for models on which an answer takes a tenth of a second.
    "brief": replace(_QUICK, n_patched=4, grid_modalities=("blank",), n_costed=10, n_grid=20),
    "quick": _QUICK,
    "full": Scale(
        n_anchors=121,
        n_evaluated=60,
        modalities=tuple(MODALITIES),
        layers="single",
        swept=tuple(MODALITIES)[1:],
        n_patched=60,
        grid_modalities=tuple(MODALITIES),
        n_draws=20,
        rivals=True,
    ),
}


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    model: str = BUILT_IN
    """Folder in Hugging Face format, hub id, or `organism` (the built-in model)."""
    queries: str | None = None
    """Table with text,harmful[,category,pair,picture]; by default the built-in model's own queries."""
    scale: str = "quick"
    """One of `SCALES`."""
    out: str = "results/repro"
    """Folder for tables, figures and traces."""
    split: str = "test"
    """Split that is reported; `validation` while a recipe is being developed."""
    seed: int = 0
    generation: Generation = field(default=None)
    """Settings for generating answers; by default what suits the model: 32 tokens on models that are built."""
    loading: Mapping[str, str | bool | None] = field(default_factory=dict)
    """Arguments of `load_model`, apart from the name."""
    weights: str | None = None
    """Folder with another training of the built-in model (`vlm` and `llm` in it); by default the one that ships."""
    columns: Columns | None = None
    """Columns and labels of the queries, if they have others than `text` and `harmful`."""
    limit: int | None = None
    """At most this many queries of each class in every split; None for as many as the scale says."""

    def __post_init__(self):
        if self.generation is None:
            is_built = built_model(self.model) is not None
            object.__setattr__(self, "generation", Generation(max_new_tokens=32) if is_built else Generation())

    @property
    def sizes(self) -> Scale:
        """The scale's sizes, within the limit."""
        sizes = SCALES[self.scale]
        return sizes if self.limit is None else sizes.within(self.limit)


def writable_folder(path: str | Path) -> Path:
    """Return the folder, which can be created and written to; what writes into it creates it.

    Raises:
        ConfigError: it can't be created or written to.
    """
    folder = Path(path)
    # Nothing is created yet: a command that fails on its other arguments leaves no empty folders.
    parent = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"output folder {str(path)!r} can't be written to: {error.strerror}; give another --out"
        ) from None
    return folder
