"""Which reading of the paper works? Every rule, gate scope and sign; everything else one factor at a time.

The published descriptions leave open the sign, whose coordinate is put back, and on which state stage 3 acts. All of
these readings are measured on validation around the guard that the layer sweep chose, at its layers, with controls and
bounds; nothing is chosen here. Some of them then answer on the reported split. The column `setting` names the part of
the study:

    factorial   rule x gate scope x sign of the change (the control `sign_flipped`), all with the sign gate
    gate positions source estimator rank token direction_layer layer strength reference
                one factor at a time, starting from `substitute` at strength 1
    gate x strength
                two factors at once: the gate decides which prompts are changed, the strength by how much
    control     controls that a guard must beat: `random` (the mean and the range of 95 % of random directions, by the
                first token), `shuffled_labels`, `shuffled_reference` (another prompt's, of the same or of the other
                class); and the bounds `full_state` and `text_verdict`
    compared    on the reported split: the chosen guard, which `selection_rule` marks; and without a mark, stages 2 and
                3, stage 2 alone, stage 3 as described, the sign flipped, and bounds. `random_percentile` and
                `random_p`, by `category`, say how the chosen guard, `substitute` and `add_reference` compare with
                random directions
    directions  no guard: how stable a direction is over refits, and how close the directions of other estimators,
                tokens and sources come to it

A row without a setting (split `anchors`) has the coverage of the refusal openings that every score relies on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp import Guard, Prompt, alignment, stability
from interp.projection import RULES, delta_norm
from probes import Measured
from studies import layer_sweep
from studies.bookkeeping.console import plain_console
from studies.bookkeeping.estimates import mean
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.defences.detours import answer_of_text
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.experiment.reference_states import Reference, read_references
from studies.generation.cached_model import Outcome
from studies.generation.openings import coverage_row
from studies.generation.reference_texts import reference_for
from studies.guards.anchor_fits import AnchorFits
from studies.guards.configuration import GuardConfiguration
from studies.guards.measures import AnswerVerdicts, first_token_rows, gate_rows, harmful_mask, judged_rows, outcome_rows
from studies.guards.random_directions import RandomDraws, n_runs, random_draws
from studies.guards.readings_grid import compared_configurations, part_sizes, readings_grid
from studies.guards.runner import GuardRunner

COMPARED = "compared"
"""Setting that is measured on the reported split."""
CHOSEN_BY = "layer_sweep"
"""Value of `selection_rule` in rows of the chosen guard: the study that chose it."""


@dataclass(frozen=True, eq=False)
class ReadingsResult:
    """A finished grid of readings."""

    table: pd.DataFrame = field(repr=False)
    random: pd.DataFrame = field(repr=False)
    """Guards on the reported split and every random direction that they are compared with, by the first token."""


def run(
    config: Config, experiment: Experiment | None = None, chosen: GuardConfiguration | None = None
) -> ReadingsResult:
    """Measure the grid on validation, and some readings on the reported split.

    Args:
        config: settings of the run.
        experiment: loaded from the settings by default.
        chosen: the guard around which readings are explored; by default the layer sweep chooses it.

    Returns:
        A table with, by modality: `refusal_score` of harmful prompts, `refusal_score_gain` (guarded - unguarded, on the
        same prompts), `kl` of harmless ones, refusal, over-refusal and coherence by the first judge (on the reported
        split by both), `delta_norm` where a single layer is changed at the last prompt token, and the gate's rates in
        the settings `gate` and `reference`.
    """
    experiment = experiment or load_experiment(config)
    chosen = chosen or layer_sweep.run(config, experiment).chosen
    fits = AnchorFits.on(experiment)
    base = Guard(fits.direction(), chosen.guard.layers)
    # 1. the whole grid on validation, and random directions
    rows = _measure(experiment, "validation", _announced(experiment, list(readings_grid(experiment, fits, base))))
    rows += _control_rows(experiment, GuardConfiguration("control", base))
    # 2. the chosen guard, readings of the paper, controls and bounds on the reported split
    configurations = [replace(chosen, setting=COMPARED), *compared_configurations(base)]
    rows += _measure(experiment, config.split, configurations, chosen=0)
    compared, draws = _compared_with_random(experiment, configurations)
    # 3. the directions themselves
    with phase("directions", len(fits.estimators)) as report:
        directions = [{"split": "anchors"} | row for row in _direction_rows(fits, experiment.sizes.n_draws, report)]
    rows = [*rows, *compared, *directions, coverage_row(experiment.refusal_openings)]
    return ReadingsResult(*(tidy(experiment.labels | row for row in part) for part in (rows, draws)))


def _announced(experiment: Experiment, grid: list[GuardConfiguration]) -> list[GuardConfiguration]:
    """Print the size of the grid, and return it."""
    modalities = experiment.sizes.grid_modalities
    n = len(_SplitRunner(experiment, "validation", modalities[0]).prompts)
    n_different = len({configuration.key(modalities[0]) for configuration in grid})
    summary = f"{len(grid)} configurations ({part_sizes(grid)}), {n_different} of them different"
    plain_console(stderr=True).print(
        f"readings: {summary}; {len(modalities)} modalities, {n} prompts each", soft_wrap=True
    )
    return grid


def _measure(
    experiment: Experiment, split: str, configurations: Sequence[GuardConfiguration], chosen: int | None = None
) -> list[dict]:
    """Measure every configuration in every modality.

    Args:
        experiment: model and settings.
        split: split of the prompts.
        configurations: what is measured.
        chosen: place of the chosen guard, whose rows are marked.
    """
    runners, rows = [_SplitRunner(experiment, split, name) for name in experiment.sizes.grid_modalities], []
    total = 0
    for runner in runners:
        total += (1 + len({each.key(runner.modality) for each in configurations})) * len(runner.prompts)
    with phase(f"readings, {split}", total) as report:
        for runner in runners:
            for place, row in runner.measure(configurations, report):
                rows.append(_marked({"split": split} | row, place is not None and place == chosen))
    return rows


def _marked(row: dict, is_chosen: bool) -> dict:
    return row | ({"selection_rule": CHOSEN_BY} if is_chosen else {})


def _control_rows(experiment: Experiment, base: GuardConfiguration) -> list[dict]:
    """Summarise random directions on validation in every modality."""
    rows, split = [], "validation"
    for modality, (draws,) in _draws(experiment, split, [base], harmless=True):
        columns = base.columns(modality) | {"split": split, "modality": modality, "control": "random"}
        rows += [columns | row for row in draws.summary_rows()]
    return rows


def _compared_with_random(
    experiment: Experiment, configurations: Sequence[GuardConfiguration]
) -> tuple[list[dict], list[dict]]:
    """Compare guards that are no controls with random directions on the reported split.

    Args:
        experiment: model and settings.
        configurations: the chosen guard is the first.

    Returns:
        Rows that place each guard among the draws, and rows of the draws themselves.
    """
    split, rows, random_rows = experiment.config.split, [], []
    places = [place for place, each in enumerate(configurations) if _is_compared_with_random(place, each)]
    compared = [configurations[place] for place in places]
    for modality, own_draws in _draws(experiment, split, compared):
        written = set()
        for place, configuration, draws in zip(places, compared, own_draws, strict=True):
            columns = configuration.columns(modality) | {"split": split, "modality": modality}
            rows += [_marked(columns | row, place == 0) for row in draws.comparison_rows()]
            # The chosen guard may be one of the paper's readings.
            if configuration.key(modality) not in written:
                random_rows += draws.rows(columns | {"setting": "readings"})
            written.add(configuration.key(modality))
    return rows, random_rows


def _is_compared_with_random(place: int, configuration: GuardConfiguration) -> bool:
    """Tell whether a guard is the chosen one or puts back the reference's coordinate, and acts on the first token."""
    is_reading = configuration.guard.control is None and "reference" in RULES[configuration.guard.rule].needs
    return (place == 0 or is_reading) and not configuration.acts_late


def _draws(
    experiment: Experiment, split: str, configurations: Sequence[GuardConfiguration], harmless: bool = False
) -> Iterator[tuple[str, list[RandomDraws]]]:
    """Yield the random directions of each configuration, modality by modality.

    Args:
        experiment: model and settings.
        split: split of the prompts.
        configurations: guards that they are compared with.
        harmless: also run harmless prompts.
    """
    runners = [_SplitRunner(experiment, split, modality) for modality in experiment.sizes.grid_modalities]
    total = sum(n_runs(runner.prompts, harmless) for runner in runners) * len(configurations)
    with phase(f"random directions, {split}", total) as report:
        for runner in runners:
            yield (
                runner.modality,
                [
                    random_draws(
                        experiment,
                        runner.prompts,
                        configuration.guard,
                        runner.states(configuration),
                        report=report,
                        harmless=harmless,
                    )
                    for configuration in configurations
                ],
            )


class _SplitRunner:
    """The prompts of a split in one modality, with everything that configurations are compared with."""

    def __init__(self, experiment: Experiment, split: str, modality: str):
        self.experiment, self.split, self.modality = experiment, split, modality
        n = experiment.sizes.n_grid if split == "validation" else None
        self.prompts: list[Prompt] = experiment.prompts(split, modality, n)
        self._references: dict[tuple[str, str], Reference] = {}

    def measure(
        self, configurations: Sequence[GuardConfiguration], report: Callable[[int], None]
    ) -> list[tuple[int | None, dict]]:
        """Return the rows of the unguarded model and the text verdict, then those of every configuration by place.

        A guard runs once, in however many parts of the grid it occurs.
        """
        states = [self.states(configuration) for configuration in configurations]
        unguarded, outcomes = self._outcomes(configurations, states, report)
        has_controls = any(configuration.setting == "control" for configuration in configurations)
        placed_rows = [(None, row) for row in self._bound_rows(unguarded, "control" if has_controls else COMPARED)]
        for place, (configuration, outcome) in enumerate(zip(configurations, outcomes, strict=True)):
            columns = configuration.columns(self.modality)
            rows = (
                *self._rows(outcome, unguarded, configuration.setting),
                *self._guard_rows(configuration, states[place]),
            )
            placed_rows += [(place, columns | row) for row in rows]
        return [(place, {"modality": self.modality} | row) for place, row in placed_rows]

    def _outcomes(
        self, configurations: Sequence[GuardConfiguration], states: Sequence[Tensor], report: Callable[[int], None]
    ) -> tuple[Outcome, list[Outcome]]:
        """Return the outcome of the unguarded model, and of each configuration."""
        keys = [configuration.key(self.modality) for configuration in configurations]
        first = [keys.index(key) for key in dict.fromkeys(keys)]
        guards = [None, *(configurations[i].guard for i in first)]
        references = [None, *(states[i] for i in first)]
        unguarded, *outcomes = GuardRunner(self.experiment).answered(self.prompts, guards, references, report)
        by_key = dict(zip(dict.fromkeys(keys), outcomes, strict=True))
        return unguarded, [by_key[key] for key in keys]

    def _bound_rows(self, unguarded: Outcome, setting: str) -> Iterator[dict]:
        """Yield rows of the unguarded model, and of the text verdict, which answers as the text alone would."""
        reference, model = reference_for(self.modality), self.experiment.cached_model
        texts = self._reference(reference, "vlm_text").texts
        verdict = answer_of_text(model, self.prompts, texts, self.experiment.judges[0].refuses)
        for defence, outcome, read in (("unguarded", unguarded, None), ("text_verdict", verdict, reference)):
            columns = {"setting": setting, "defence": defence, "reference": read}
            yield from (columns | row for row in self._rows(outcome, unguarded, setting))

    def _reference(self, name: str, source: str) -> Reference:
        if (name, source) not in self._references:
            self._references[name, source] = read_references(self.experiment, self.prompts, name, source)
        return self._references[name, source]

    def states(self, configuration: GuardConfiguration) -> Float[Tensor, "prompt layer d_model"]:
        """Return the states of each prompt's reference, or of the one assigned to it."""
        states = self._reference(configuration.reference_in(self.modality), configuration.source).states
        if configuration.reference_from is None:
            return states
        is_harmful = harmful_mask(self.prompts)
        donors, is_same = torch.empty(len(states), dtype=torch.long), configuration.reference_from == "same"
        for label in (True, False):
            recipients = (is_harmful == label).nonzero()[:, 0]
            # The next prompt of the same class, or the prompts of the other class in turn.
            others = recipients.roll(1) if is_same else (is_harmful != label).nonzero()[:, 0]
            donors[recipients] = others[torch.arange(len(recipients)) % len(others)]
        return states[donors]

    def _rows(self, outcome: Outcome, unguarded: Outcome, setting: str) -> Iterator[dict]:
        """Yield the measures of an outcome, by all judges on the reported split and by the first one elsewhere."""
        if setting == COMPARED:
            yield from outcome_rows(self.experiment, self.prompts, outcome)
        else:
            judge = self.experiment.judges[0]
            yield from judged_rows(AnswerVerdicts.of(self.prompts, outcome.answers, judge), judge.name)
            yield from first_token_rows(self.prompts, outcome)
        gain = (outcome.refusal_score - unguarded.refusal_score)[harmful_mask(self.prompts)]
        yield mean("refusal_score_gain", gain.tolist())

    def _guard_rows(self, configuration: GuardConfiguration, states: Tensor) -> Iterator[dict]:
        """Yield how far the states of harmful prompts move, and the rates of the gate."""
        guard, layer = configuration.guard, configuration.guard.layers[0]
        # Later layers of a window see states that the first one has changed, which the unguarded run does not have.
        if len(guard.layers) == 1 and guard.positions in ("last_prefill", "last"):
            resid = self._resid[:, layer, None]
            mask, is_open = torch.ones(len(resid), 1, dtype=torch.bool), guard.opens(states)
            changed = guard.change(resid, layer, states[:, layer], mask, is_open)
            yield mean("delta_norm", delta_norm(changed, resid)[harmful_mask(self.prompts), 0].tolist())
        if configuration.setting in ("gate", "reference"):
            yield from gate_rows(guard, self.prompts, states)

    @cached_property
    def _resid(self) -> Float[Tensor, "prompt layer d_model"]:
        """Last-token states of the prompts, unguarded."""
        traced = self.experiment.traced(self.prompts, f"trace {self.split}, {self.modality}")
        return torch.from_numpy(traced.resid_post.sel(token="last").values)


def _direction_rows(fits: AnchorFits, n_draws: int, report: Callable[[int], None]) -> Iterator[dict]:
    """Yield bootstrap stability of each estimator, and cosines to the paper's direction, layer by layer."""
    base, anchors = fits.direction(), fits.anchors["vlm_text"]
    shared = {"setting": "directions", "token": "last", "source": "vlm_text", "rank": 1, "n": anchors.sizes["prompt"]}
    for estimator in fits.estimators:
        columns = shared | {"estimator": estimator}
        yield from _by_layer(columns, "stability", stability(anchors, estimator, n_draws=n_draws))
        yield from _by_layer(columns, "cosine", alignment(fits.direction(estimator).basis, base.basis))
        report(1)
    columns = shared | {"estimator": fits.estimator}
    instruction = fits.direction(token="instruction")
    yield from _by_layer(columns | {"token": "instruction"}, "cosine", alignment(instruction.basis, base.basis))
    if "llm" in fits.anchors:
        llm = fits.direction(source="llm")
        yield from _by_layer(columns | {"source": "llm"}, "cosine", alignment(llm.basis, base.basis))
    for layer, explained in enumerate(base.explained[:, 0].tolist()):
        yield columns | {"layer": layer} | Measured("explained_variance", explained).row()


def _by_layer(columns: dict, metric: str, values: Tensor) -> Iterator[dict]:
    for layer, value in enumerate(values.tolist()):
        yield columns | {"layer": layer} | Measured(metric, value).row()
