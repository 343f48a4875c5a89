"""Checks of what was typed, before anything large is imported: names and paths that do not exist are said at once.

The names are those of registries that take seconds to import; a test compares them.
"""

from collections.abc import Callable
from pathlib import Path

from studies.bookkeeping.suggestions import did_you_mean

SCALES = ("tiny", "brief", "quick", "full")
SPLITS = ("validation", "test")
DTYPES = ("auto", "float32", "bfloat16", "float16")
STORED_AS = ("float32", "float16")
MODALITIES = ("text", "blank", "noise", "scene", "typographic", "typographic_scene")
DECODER_SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")
SITES = (*DECODER_SITES, "vision_resid_post", "projector_out")
PROBES = ("logistic", "lda", "ridge", "svm", "mean_difference")
ATTACKS = ("prefix_injection", "refusal_suppression", "role_play", "style_injection", "distractor")
RULES = (
    "ablate",
    "substitute",
    "add_reference",
    "amplify",
    "class_mean",
    "steer",
    "adaptive",
    "adaptive_mirror",
)
GATES = ("always", "sign", "threshold", "probe")
SCOPES = ("change", "target")
ESTIMATORS = ("paired_svd", "mean_diff", "pca", "lda", "logistic")
REFERENCES = ("prompt_text", "transcription", "caption", "prompt_text+transcription", "prompt_text+caption")
TOKENS = ("last", "instruction")
SOURCES = ("vlm_text", "llm")
POSITIONS = ("last_prefill", "generated", "last", "text", "all")


class ArgumentError(ValueError):
    """Something that was typed does not exist."""


def one_of(what: str, names: tuple[str, ...]) -> Callable[[str | None], str | None]:
    """Return a callback that accepts one of some names, or nothing."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise ArgumentError(_unknown(what, value, names))
        return value

    return check


def some_of(what: str, names: tuple[str, ...]) -> Callable[[str | None], str | None]:
    """Return a callback that accepts some names, separated by commas, or nothing."""

    def check(value: str | None) -> str | None:
        for word in filter(None, map(str.strip, (value or "").split(","))):
            if word not in names:
                raise ArgumentError(_unknown(what, word, names))
        return value

    return check


def existing(what: str) -> Callable[[Path | list[Path] | None], Path | list[Path] | None]:
    """Return a callback that accepts paths which exist, or nothing."""

    def check(value: Path | list[Path] | None) -> Path | list[Path] | None:
        for path in value if isinstance(value, (list, tuple)) else filter(None, [value]):
            if not path.exists():
                raise ArgumentError(f"{what} {str(path)!r} does not exist")
        return value

    return check


def model(value: str) -> str:
    """Accept the name of a model; one that can only be a folder has to exist."""
    if value.startswith(("/", "./", "../", "~")) and not Path(value).expanduser().is_dir():
        raise ArgumentError(f"model folder {value!r} does not exist")
    return value


def _unknown(what: str, name: str, names: tuple[str, ...]) -> str:
    return f"{what} {name!r} does not exist; expected one of {', '.join(names)}{did_you_mean(name, names)}"
