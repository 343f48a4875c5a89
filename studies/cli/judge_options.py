"""Options of judges typed as `NAME=VALUE` and `LABEL=MEANING`."""

import json
from collections.abc import Sequence

from studies.judges.by_name import JudgeNameError, JudgeOptions
from studies.judges.classifiers import MEANINGS


def judge_options(settings: Sequence[str] | None, labels: Sequence[str] | None, loading: dict) -> JudgeOptions:
    """Return the options of judges from what was typed.

    Raises:
        JudgeNameError: a setting or a label can't be read.
    """
    return JudgeOptions(loading, endpoint_settings(settings or ()), classifier_labels(labels or ()))


def endpoint_settings(pairs: Sequence[str]) -> dict:
    """Read request parameters: `NAME=VALUE`, where the value is a number, `true`, JSON or a word.

    Returns:
        Values by name; `NAME=` stands for None, which leaves a parameter out.

    Raises:
        JudgeNameError: a text is not such a pair.
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise JudgeNameError(f"setting {pair!r}; expected NAME=VALUE, or NAME= to leave it out")
        try:
            settings[name] = json.loads(value) if value else None
        except ValueError:
            settings[name] = value
    return settings


def classifier_labels(pairs: Sequence[str]) -> dict[str, str]:
    """Read what the labels of a classifier mean: `LABEL=MEANING`.

    Raises:
        JudgeNameError: a text is not such a pair, or there is no such meaning.
    """
    labels = {}
    for pair in pairs:
        label, _, meaning = pair.rpartition("=")
        if not label or meaning not in MEANINGS:
            raise JudgeNameError(f"label {pair!r}; expected NAME= and one of {', '.join(MEANINGS)}")
        labels[label] = meaning
    return labels
