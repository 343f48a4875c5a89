"""Sets that detectors are fitted on and applied to: the run's own queries, and files of the user."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from interp import TYPOGRAPHIC, Prompt
from studies.bookkeeping.console import plain_console
from studies.datasets import CAVEAT, Leakage, QueryFileError, find_leakage, split_queries
from studies.defences.attack_sets import attack_sets
from studies.defences.benchmark_sets import BenchmarkOptions, prompt_sets_of
from studies.defences.prompt_sets import PromptSet
from studies.experiment.config import ConfigError
from studies.experiment.experiment import Experiment


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """Prompts of one data set, setting and modality: what detectors are applied to, and what they are fitted on."""

    applied: PromptSet
    """Prompts on which detectors are reported."""
    anchors: tuple[Prompt, ...] = ()
    """Prompts that detectors are fitted on; none where nothing can be fitted."""
    validation: tuple[Prompt, ...] = ()
    """Prompts on which layers are chosen and thresholds set."""

    @property
    def name(self) -> str:
        """Data set and modality, which identify what a detector was fitted on."""
        return f"{self.applied.dataset}, {self.applied.modality}"


def own_sets(experiment: Experiment) -> list[DetectionSet]:
    """Return the queries of a run in every modality and setting of its scale.

    Detectors are fitted on plain requests; jailbreaks, and harmless requests that only look dangerous, are new to them.
    """
    found = []
    for applied in attack_sets(experiment):
        if applied.right:  # questions of ability: nothing to detect
            continue
        is_plain = applied.setting == ("multimodal" if applied.modality in TYPOGRAPHIC else "plain")
        parts = (tuple(experiment.prompts(split, applied.modality)) for split in ("anchors", "validation"))
        found.append(DetectionSet(applied, *parts) if is_plain else DetectionSet(applied))
    return found


def sets_of_files(options: BenchmarkOptions, picture_size: int, seed: int) -> Iterator[DetectionSet]:
    """Yield the sets of files, each divided into anchors, validation and the prompts that are reported.

    A set of one class, or one too small to be divided, is applied whole: nothing is fitted on it.

    Args:
        options: the files, and how their requests are shown.
        picture_size: size of drawn pictures.
        seed: seed of the division.
    """
    for whole in prompt_sets_of(options, picture_size):
        if whole.right:
            continue
        prompt_set = _without_caveats(whole)
        try:
            yield _divided(prompt_set, seed)
        except QueryFileError as error:
            label = f"{prompt_set.dataset}, {prompt_set.modality}"
            plain_console(stderr=True).print(f"{label}: nothing is fitted on it ({error})", soft_wrap=True)
            yield DetectionSet(prompt_set)


def check_sets(sets: Sequence[DetectionSet]) -> None:
    """Check that detectors can be fitted on a set, and that no two sets share their name and setting.

    Raises:
        ConfigError: they can't, or two do.
    """
    fitted = [own for own in sets if own.anchors]
    for own in fitted:
        for split, prompts in (("anchors", own.anchors), ("validation", own.validation)):
            n = sum(prompt.query.harmful for prompt in prompts)
            if n in (0, len(prompts)):
                raise ConfigError(
                    f"{own.name}: the {split} hold {n} harmful and {len(prompts) - n} harmless prompts; a detector is "
                    "fitted on both classes"
                )
    if not fitted:
        raise ConfigError("no set with both classes; detectors are fitted on harmful and on harmless requests")
    keys = [(own.name, own.applied.setting) for own in sets]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ConfigError(f"{twice[0]} ({twice[1]}) is there twice; expected each set once, under a name of its own")


def leaks(sets: Sequence[DetectionSet]) -> Iterator[Leakage]:
    """Yield what recurs of the prompts that one data set is fitted on among those that another is applied to.

    Within a data set, copies are in one split.
    """
    for own in sets:
        others = [other for other in sets if other.applied.dataset != own.applied.dataset]
        fitted = [prompt.query.text for other in others for prompt in (*other.anchors, *other.validation)]
        applied = [prompt.query.text for prompt in own.applied.prompts]
        if fitted:
            found = find_leakage(list(dict.fromkeys(fitted)), applied, applied, "fitted", own.name)
            if len(found.rows):
                yield found


def _without_caveats(prompt_set: PromptSet) -> PromptSet:
    """Leave out rows that expect a warning, which are of neither class."""
    kept = [i for i, label in enumerate(prompt_set.expected) if label != CAVEAT]
    return _rows(prompt_set, kept) if prompt_set.expected else prompt_set


def _rows(prompt_set: PromptSet, kept: Sequence[int]) -> PromptSet:
    def chosen(values: tuple) -> tuple:
        return tuple(values[i] for i in kept) if values else ()

    fields = ("prompts", "rows", "stand_ins", "expected")
    return replace(prompt_set, **{name: chosen(getattr(prompt_set, name)) for name in fields})


def _divided(prompt_set: PromptSet, seed: int) -> DetectionSet:
    """Divide a set by the pairs and copies of its queries.

    Raises:
        QueryFileError: a class is empty, or too small.
    """
    place = {id(prompt.query): i for i, prompt in enumerate(prompt_set.prompts)}
    splits = split_queries([prompt.query for prompt in prompt_set.prompts], seed)
    rows = {name: sorted(place[id(query)] for query in part) for name, part in splits.items()}
    parts = (tuple(prompt_set.prompts[i] for i in rows[name]) for name in ("anchors", "validation"))
    return DetectionSet(_rows(prompt_set, rows["test"]), *parts)
