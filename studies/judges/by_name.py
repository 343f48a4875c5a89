"""Judges by name: `xstest`, `llama_guard=meta-llama/Llama-Guard-3-8B`, `wildguard=my-model@http://...`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from studies.bookkeeping.suggestions import did_you_mean
from studies.judges import (
    EXACT,
    KEYWORDS,
    KEYWORDS_1,
    PUBLISHED,
    RUBRICS,
    ClassifierJudge,
    EndpointJudge,
    Judge,
    ModelJudge,
    Replies,
    Rubric,
    RuleJudge,
)

CLASSIFIER = "classifier"
KEY_FROM = "OPENAI_API_KEY"
VERSIONED = {judge.name: judge for judge in (EXACT, KEYWORDS_1, KEYWORDS, *PUBLISHED.values())}
"""Every judge by rule by its full name, earlier versions as well."""


class JudgeNameError(ValueError):
    """No judge has this name, or it has no such option; the message says what was expected."""


@dataclass(frozen=True)
class JudgeOptions:
    """How judges that need a model are loaded and asked."""

    loading: Mapping = field(default_factory=dict)
    """Arguments for loading models and classifiers: `dtype`, `device_map`, `trust_remote_code`, `revision`."""
    settings: Mapping = field(default_factory=dict)
    """Request parameters for endpoints, see `EndpointJudge.settings`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Meanings of a classifier's labels, see `ClassifierJudge.from_pretrained`."""


def rule_judges() -> dict[str, RuleJudge]:
    """Return the judges that need no model, by name without version; this project's own comes first and decides.

    `exact` is not among them: it is for the built-in model only.
    """
    return {judge.name.split("@")[0]: judge for judge in (KEYWORDS, *PUBLISHED.values())}


def is_keyword_judge(name: str) -> bool:
    """Return whether a judge of this full name only looks for words."""
    return name in VERSIONED and name != EXACT.name


def with_keywords(judges: Sequence[Judge]) -> list[Judge]:
    """Return the judges, and this project's keywords after them if all of them are models.

    Where the two differ, one of them should be read: models share mistakes that keywords don't make.
    """
    by_model = all(judge.name not in VERSIONED for judge in judges)
    return [*judges, KEYWORDS] if by_model else list(judges)


def judges_named(names: Sequence[str], folder: Path, options: JudgeOptions | None = None) -> list[Judge]:
    """Return judges that are ready to be asked; the first one decides.

    Args:
        names: see `judge_named`.
        folder: where replies of models are kept.
        options: how models are loaded and asked.

    Raises:
        JudgeNameError: a judge or rubric does not exist, is named twice or shares its name with another, or there are
            settings or labels but no judge that uses them.
        ModelError, EndpointError: a model can't be loaded, or an endpoint not used.
    """
    options = options or JudgeOptions()
    if options.settings and not any("@http" in name for name in names):
        settings = ", ".join(options.settings)
        raise JudgeNameError(f"settings {settings} are for endpoints; expected a judge RUBRIC=MODEL@URL")
    if options.labels and not any(name.startswith(f"{CLASSIFIER}=") for name in names):
        labels = ", ".join(options.labels)
        raise JudgeNameError(f"labels {labels} are for classifiers; expected a judge {CLASSIFIER}=MODEL")
    judges = [judge_named(name, folder, options) for name in names]
    _check_different(names, judges)
    return judges


def judge_named(name: str, folder: Path, options: JudgeOptions) -> Judge:
    """Return one judge.

    Args:
        name: `NAME` of a rule judge, or `exact` for answers of the built-in model; `RUBRIC=MODEL`, a folder or hub id;
            `RUBRIC=MODEL@URL` of an OpenAI-compatible endpoint, whose key is in the environment (`OPENAI_API_KEY`);
            `classifier=MODEL`.
        folder: where replies of models are kept.
        options: how models are loaded and asked.

    Raises:
        JudgeNameError: the judge or its rubric does not exist.
        ModelError, EndpointError: its model can't be loaded, or its endpoint not used.
    """
    kind, _, model = name.partition("=")
    if not model:
        return _rule_judge(kind)
    if kind == CLASSIFIER:
        return ClassifierJudge.from_pretrained(model, options.labels or None, **options.loading)
    rubrics = _rubrics()
    if kind not in rubrics:
        suggestion = did_you_mean(kind, [*rubrics, CLASSIFIER])
        raise JudgeNameError(f"rubric {kind!r} does not exist; expected {_model_judge_names()}{suggestion}")
    replies = Replies(folder / f"replies-{kind}.jsonl")
    model, _, address = model.partition("@http")
    if address:
        url, settings = f"http{address}", options.settings
        return EndpointJudge.connect(rubrics[kind], model, url, KEY_FROM, replies=replies, settings=settings)
    return ModelJudge.from_pretrained(model, rubrics[kind], replies, **options.loading)


def _rule_judge(name: str) -> RuleJudge:
    """Return a judge by its name, with or without version; without, it is the newest."""
    judges = rule_judges() | {"exact": EXACT}
    judge = judges.get(name) or VERSIONED.get(name)
    if judge is None:
        suggestion = did_you_mean(name.partition("@")[0], [*judges, *_model_judges()])
        raise JudgeNameError(
            f"judge {name!r} does not exist; expected {', '.join(judges)}, or {_model_judge_names()}{suggestion}"
        )
    return judge


def _rubrics() -> dict[str, Rubric]:
    return {rubric.name.split("@")[0]: rubric for rubric in RUBRICS.values()}


def _model_judges() -> list[str]:
    return [f"{kind}=MODEL" for kind in (*_rubrics(), CLASSIFIER)]


def _model_judge_names() -> str:
    *rubrics, classifier = _model_judges()
    return f"{', '.join(rubrics)} or {classifier}, or RUBRIC=MODEL@URL of an endpoint"


def _check_different(names: Sequence[str], judges: Sequence[Judge]) -> None:
    """Raise a JudgeNameError if two judges have one name, by which their verdicts are kept."""
    seen: dict[str, tuple[str, Judge]] = {}
    for name, judge in zip(names, judges, strict=True):
        if judge.name not in seen:
            seen[judge.name] = name, judge
            continue
        first_name, first = seen[judge.name]
        if first.identity == judge.identity:
            raise JudgeNameError(f"judge {judge.name} is named twice; expected each once")
        raise JudgeNameError(
            f"judges {first_name!r} ({first.identity}) and {name!r} ({judge.identity}) would both be called "
            f"{judge.name}; expected one of them, or folders of different names"
        )
