"""Judges by what is typed: `xstest`, `llama_guard=meta-llama/Llama-Guard-3-8B`, `wildguard=my-model@http://...`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.judges import (
    EXACT,
    KEYWORDS,
    PUBLISHED,
    RUBRICS,
    ClassifierJudge,
    EndpointJudge,
    Judge,
    ModelJudge,
    Replies,
    RuleJudge,
)
from studies.judges.classifiers import MEANINGS

CLASSIFIER = "classifier"
KEY_FROM = "OPENAI_API_KEY"


class JudgeNameError(ValueError):
    """No judge is called so, or asked so; says what was expected."""


def rule_judges() -> dict[str, RuleJudge]:
    """Judges that need no model, by name without version: the project's own first, which decides.

    `exact`, which is for the built-in model alone, is not among them.
    """
    return {judge.name.split("@")[0]: judge for judge in (KEYWORDS, *PUBLISHED.values())}


def settings_typed(words: Sequence[str]) -> dict:
    """What an endpoint is asked with: `NAME=VALUE`, a number, `true`, JSON or words; `NAME=` leaves one out (None).

    Raises:
        JudgeNameError: no such pair.
    """
    told = {}
    for word in words:
        name, is_pair, value = word.partition("=")
        if not name or not is_pair:
            raise JudgeNameError(f"setting {word!r}; expected NAME=VALUE, or NAME= to leave it out")
        try:
            told[name] = json.loads(value) if value else None
        except ValueError:
            told[name] = value
    return told


def labels_typed(words: Sequence[str]) -> dict[str, str]:
    """What labels of a classifier stand for: `LABEL=MEANING`.

    Raises:
        JudgeNameError: no such pair, or no such meaning.
    """
    told = {}
    for word in words:
        label, _, meaning = word.rpartition("=")
        if not label or meaning not in MEANINGS:
            raise JudgeNameError(f"label {word!r}; expected NAME= and one of {', '.join(MEANINGS)}")
        told[label] = meaning
    return told


def judges_named(
    names: Sequence[str],
    folder: Path,
    loading: dict | None = None,
    settings: Mapping | None = None,
    labels: Mapping[str, str] | None = None,
) -> list[Judge]:
    """The judges, ready to be asked; the first one decides.

    Args:
        names: `NAME` of a judge by rule, or `exact` for answers of the built-in model; `RUBRIC=MODEL` (folder or hub
            id); `RUBRIC=MODEL@URL` of an OpenAI-compatible endpoint, whose key is in the environment
            (`OPENAI_API_KEY`); `classifier=MODEL`.
        folder: where replies of models are kept.
        loading: how judges by model and classifiers are loaded: `dtype`, `device_map`, `trust_remote_code`, `revision`.
        settings: of endpoints: see `EndpointJudge.settings`.
        labels: what those of classifiers stand for: see `ClassifierJudge.from_pretrained`.

    Raises:
        JudgeNameError: there is no such judge or rubric, one stands there twice or shares its name with another, or
            there are settings or labels and no judge that has any.
        ModelError, EndpointError: its model can't be loaded, or reached.
    """
    if settings and not any("@http" in name for name in names):
        raise JudgeNameError(f"settings {', '.join(settings)} are for endpoints; expected a judge RUBRIC=MODEL@URL")
    if labels and not any(name.startswith(f"{CLASSIFIER}=") for name in names):
        raise JudgeNameError(f"labels {', '.join(labels)} are for classifiers; expected a judge {CLASSIFIER}=MODEL")
    found = [_judge(name, folder, loading or {}, settings or {}, labels or None) for name in names]
    _check_names(names, found)
    return found


def _check_names(typed: Sequence[str], found: Sequence[Judge]) -> None:
    """Raises:
    JudgeNameError: verdicts are kept by name, and two of these judges have the same.
    """
    known: dict[str, tuple[str, Judge]] = {}
    for name, judge in zip(typed, found, strict=True):
        if judge.name not in known:
            known[judge.name] = name, judge
            continue
        before, other = known[judge.name]
        if other.identity == judge.identity:
            raise JudgeNameError(f"judge {judge.name} is named twice; expected each once")
        raise JudgeNameError(
            f"judges {before!r} ({other.identity}) and {name!r} ({judge.identity}) would both be called {judge.name}; "
            "expected one of them, or folders of different names"
        )


def _judge(name: str, folder: Path, loading: dict, settings: Mapping, labels: Mapping[str, str] | None) -> Judge:
    kind, _, model = name.partition("=")
    if not model:
        known = rule_judges() | {"exact": EXACT}
        if kind.split("@")[0] not in known or kind not in (known[kind.split("@")[0]].name, kind.split("@")[0]):
            raise JudgeNameError(f"judge {name!r} does not exist; expected {', '.join(known)}, or {_with_models()}")
        return known[kind.split("@")[0]]
    if kind == CLASSIFIER:
        return ClassifierJudge.from_pretrained(model, labels, **loading)
    rubrics = {rubric.split("@")[0]: told for rubric, told in RUBRICS.items()}
    if kind not in rubrics:
        raise JudgeNameError(f"rubric {kind!r} does not exist; expected {_with_models()}")
    replies = Replies(folder / f"replies-{kind}.jsonl")
    model, _, url = model.partition("@http")
    if url:
        return EndpointJudge.connect(rubrics[kind], model, f"http{url}", KEY_FROM, replies=replies, settings=settings)
    return ModelJudge.from_pretrained(model, rubrics[kind], replies, **loading)


def _with_models() -> str:
    names = ", ".join(f"{rubric.split('@')[0]}=MODEL" for rubric in RUBRICS)
    return f"{names} or {CLASSIFIER}=MODEL, or RUBRIC=MODEL@URL of an endpoint"
