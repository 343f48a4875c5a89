"""The form of a preset, and its reader: a misspelt or missing setting is an error that names it."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from interp.whole_files import hash_of
from studies.bookkeeping.suggestions import did_you_mean

FOLDER = Path(__file__).parent
Count = Annotated[int, Field(ge=1)]
ModalityName = Literal["text", "blank", "noise", "scene", "typographic", "typographic_scene"]
Colour = Literal["white", "grey"]
DefenceName = Literal[
    "unguarded",
    "self_reminder",
    "goal_priority",
    "adashield_s",
    "safety_prompt",
    "ecso",
    "caption_only",
    "text_verdict",
    "text_score_verdict",
    "shift_dc",
    "cmrm",
    "infer_aligner",
    "astra",
    "arditi_ablation",
]


class PresetError(ValueError):
    """There is no such preset, or its file is invalid; the message says where."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelShape(_Spec):
    """Sizes of the model, from its published configuration: what can be said before its weights are there."""

    parameters: Count
    layers: Count
    width: Count
    kv_width: Count
    """Width of the keys of a layer: key-value heads times their size."""
    mlp_width: Count
    vocabulary: Count
    picture_tokens: int = Field(0, ge=0)
    """Tokens of a picture; 0 for a model of text alone."""


class ModelSpec(_Spec):
    """The model, as `studies.experiment.model_loading.load_model` takes it."""

    name: str
    revision: str
    """Commit, tag or branch on the hub."""
    template: str = ""
    """Chat template, for a tokenizer that comes without one."""
    revision_note: str = ""
    dtype: Literal["bfloat16", "float16", "float32"]
    licence: str
    needs_code: bool = False
    """True if the checkpoint only runs with its own Python code, which the user has to allow."""
    shape: ModelShape

    def loading(self, typed: Mapping[str, str | bool | None]) -> dict[str, str | bool]:
        """Return the arguments that this checkpoint is loaded with: the published ones, unless others were typed."""
        published = {"dtype": self.dtype, "revision": self.revision}
        published |= {"chat_template": self.template} if self.template else {}
        return published | {name: value for name, value in typed.items() if value not in (None, "auto")}


class DataSpec(_Spec):
    """A file that the user gets, since the project ships none."""

    name: str
    benchmark: str = ""
    """Name among the benchmarks of `vlm-guard data list`; empty for other files, such as saved directions."""
    file: str
    """Path below the folder of data."""
    sha256: str = ""
    """Hash of the file that the published numbers were measured on; empty if it is unknown."""
    rows: int = 0
    """Rows of the benchmark; 0 for other files."""
    get: str
    """How to get it, in a sentence."""
    is_published: bool = True
    """False for data of the user's own in place of what was not published: nothing is reproduced on it."""


class AnswersSpec(_Spec):
    """Answers to benchmarks: which data, how they are shown, and which defences answer."""

    data: tuple[str, ...]
    modalities: tuple[ModalityName, ...] = ("text",)
    blank: Colour = "white"
    """Colour of the picture of modality `blank`."""
    defences: tuple[DefenceName, ...] = ("unguarded",)
    anchors: str = ""
    """Data that defences are fitted on, if they need any."""
    max_new_tokens: Count
    judges: tuple[str, ...] = ("xstest", "keywords")


class DirectionsSpec(_Spec):
    """Mean differences of pairs as text and with a blank picture, layer by layer."""

    data: str
    blank: Colour = "white"
    layers: tuple[int, ...]


class RefusalDirectionSpec(_Spec):
    """Difference of means after Arditi et al. (arXiv:2406.11717): anchors, place, and the file it is compared with."""

    harmful: str
    harmless: str
    n: Count = 128
    seed: int = 42
    refusal_tokens: tuple[int, ...]
    """Tokens with which the model opens refusals: anchors that it answers otherwise are left out."""
    position: int
    """Position of the token, negative from the end of the prompt."""
    layer: Count
    published: str
    """Name of the data set that holds `mean_diffs.pt`, of shape (position, layer, width)."""


class DetectionSetSpec(_Spec):
    """Requests to detect: one labelled set, or harmful ones of one set against harmless ones of another."""

    name: str
    harmful: str
    harmless: str


class DetectionSpec(_Spec):
    """HiddenDetect (arXiv:2502.14744): its layers, refusal words and sets."""

    sets: tuple[DetectionSetSpec, ...]
    layers: tuple[int, ...]
    words: tuple[str, ...]


class QuickSpec(_Spec):
    """The variant that finds mistakes before a long run; its numbers are not held to the targets' sizes."""

    prompts: Count = 50
    max_new_tokens: Count = 32


class PublishedTarget(_Spec):
    """A published number, and where in our results its counterpart is."""

    id: str
    measure: Literal["rate", "cosine", "ratio", "auroc"]
    data: str
    """The data that it was measured on; for AUROC the name of a set of `detection`."""
    value: float
    n: int = Field(0, ge=0)
    """Observations behind a rate."""
    judge: str = ""
    """Their judge, by our name for it if we have it; a rate under another judge is not the same number."""
    judge_model: str = ""
    """Their judge's model, for a judge by model."""
    judge_note: str = ""
    source: str
    read_in: Literal["P", "S"]
    """P: in the primary source. S: in somebody else's notes of it."""
    caveat: str = ""
    differs: str = ""
    """Why ours is another measurement whatever it gives; such a number is shown, and not compared."""
    metric: Literal["asr", "harm_rate"] = "asr"
    modality: ModalityName = "text"
    defence: DefenceName = "unguarded"
    category: str = ""
    layer: int | None = None
    at_least: float | None = None
    """For a cosine with a published direction: the least that counts as the same direction."""

    @model_validator(mode="after")
    def _check(self) -> "PublishedTarget":
        if self.measure == "rate" and not (0 <= self.value <= 1 and self.n and self.judge):
            raise ValueError("a rate needs a value from 0 to 1, n and judge")
        return self


class Preset(_Spec):
    """A published experiment on a named model."""

    name: str
    title: str
    about: str
    model: ModelSpec
    data: tuple[DataSpec, ...]
    answers: tuple[AnswersSpec, ...] = ()
    directions: DirectionsSpec | None = None
    refusal_direction: RefusalDirectionSpec | None = None
    detection: DetectionSpec | None = None
    targets: tuple[PublishedTarget, ...]
    quick: QuickSpec = QuickSpec()
    sha256: str = ""
    """Hash of the file: tables and reports carry it."""

    @model_validator(mode="after")
    def _check(self) -> "Preset":
        names = [data.name for data in self.data]
        used = [name for answers in self.answers for name in (*answers.data, *filter(None, [answers.anchors]))]
        sets = {each.name: each for each in self.detection.sets} if self.detection else {}
        used += [name for each in sets.values() for name in (each.harmful, each.harmless)]
        used += [target.data for target in self.targets if target.data not in sets]
        if self.directions:
            used.append(self.directions.data)
        if self.refusal_direction:
            part = self.refusal_direction
            used += [part.harmful, part.harmless, part.published]
        unknown = [name for name in used if name not in names]
        if unknown:
            raise ValueError(f"data {unknown[0]!r} is not described{did_you_mean(unknown[0], names)}")
        if len({target.id for target in self.targets}) < len(self.targets):
            raise ValueError("two targets have one id")
        return self

    def needs(self, target: PublishedTarget) -> tuple[str, ...]:
        """Return the names of the data that a target is tested with."""
        sets = self.detection.sets if self.detection else ()
        detected = next((each for each in sets if each.name == target.data), None)
        if detected:
            return detected.harmful, detected.harmless
        needed = [part.anchors for part in self.answers if target.data in part.data and target.defence != "unguarded"]
        part = self.refusal_direction
        if part and (target.defence == "arditi_ablation" or target.data == part.published):
            needed += [part.harmful, part.harmless]
        return (target.data, *filter(None, needed))

    def dataset(self, name: str) -> DataSpec:
        """Return a data set by its name."""
        return next(data for data in self.data if data.name == name)


def preset_names() -> list[str]:
    """Return the names of the presets that ship, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_preset(name: str) -> Preset:
    """Read a preset that ships, by name, or a file of your own.

    Raises:
        PresetError: there is no such preset, or a setting is missing, unknown or invalid.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        content = path.read_bytes()
    except OSError:
        known = preset_names()
        raise PresetError(
            f"preset {name!r} does not exist; expected {', '.join(known)}, or a .toml file{did_you_mean(name, known)}"
        ) from None
    try:
        settings = tomllib.loads(content.decode("utf-8"))
        return Preset(**settings | {"name": path.stem, "sha256": hash_of(content)[:16]})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PresetError(f"{path}: not TOML ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the preset"
        raise PresetError(f"{path}: {where}: {first['msg']} ({error.error_count()} mistakes in all)") from None
