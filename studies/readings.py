"""Which reading of the paper works? Every rule, gate scope and sign; everything else one factor at a time.

The published descriptions leave open the sign, whose coordinate is put back, and on which state stage 3 acts. All of
these readings are measured on validation at the layer that the sweep chose, with controls and bounds; the best of them
then answer on the reported split. The column `setting` names the part of the study:

    factorial   rule x gate scope x sign of the change (the control `sign_flipped`), all with the sign gate
    gate positions source estimator rank token direction_layer layer strength reference
                one factor at a time, starting from `substitute` at strength 1
    gate x strength
                two factors at once: the gate decides which prompts are changed, the strength by how much
    control     controls that a guard must beat: `random`, `shuffled_labels`, `shuffled_reference` (another prompt's, of
                the same or of the other class); and the bounds `full_state` and `text_verdict`
    finalists   the best readings that may be chosen, on the reported split
    compared    on the same split: stages 2 and 3, stage 2 alone, stage 3 as printed, the sign flipped, controls and
                bounds
    directions  no guard: how stable a direction is over refits, and how close the directions of other estimators,
                tokens and sources come to it
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from figures import first_judge
from interp import Guard, Prompt, alignment, stability
from interp.projection import delta_norm
from probes import Measured
from studies.bookkeeping.estimates import mean
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.defences.detours import answer_of_text
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.experiment.reference_states import Reference, read_references
from studies.generation.cached_model import Outcome
from studies.generation.reference_texts import reference_for
from studies.guards.anchor_fits import AnchorFits
from studies.guards.choice_rule import judged_selection_metrics, rank
from studies.guards.configuration import GuardConfiguration
from studies.guards.measures import first_token_rows, gate_rows, harmful_mask, judged_rows, outcome_rows
from studies.guards.readings_grid import compared_configurations, part_sizes, readings_grid

TESTED = ("finalists", "compared")
"""Settings that are measured on the reported split."""
N_FINALISTS = 3


@dataclass(frozen=True, eq=False)
class ReadingsResult:
    """A finished grid of readings: the table, and the best reading."""

    table: pd.DataFrame = field(repr=False)
    chosen: GuardConfiguration
    validation: pd.DataFrame = field(repr=False)
    """The chosen reading's rows on validation, sorted by modality."""


def run(config: Config, experiment: Experiment | None = None, layer: int | None = None) -> ReadingsResult:
    """Measure the grid on validation, and its finalists on the reported split.

    Args:
        config: settings of the run.
        experiment: loaded from the settings by default.
        layer: layer of the guard; by default the middle one.

    Returns:
        A table with, by modality: `refusal_score` of harmful prompts, `refusal_score_gain` (guarded - unguarded, on the
        same prompts), `kl` of harmless ones, refusal, over-refusal and coherence by the first judge (on the reported
        split by both), `delta_norm` where the change is at the last prompt token, and the gate's rates in the settings
        `gate` and `reference`. On the reported split also `refusal_score_over_random`, compared with changes of the
        same size along random vectors. `selection_rule` marks the finalists.
    """
    experiment = experiment or load_experiment(config)
    layer = experiment.vlm.n_layers // 2 if layer is None else layer
    fits = AnchorFits.on(experiment)
    base = Guard(fits.direction(), (layer,))
    # 1. the whole grid on validation
    grid, measured = _validated(experiment, fits, base)
    # 2. the best readings, those of the paper, controls and bounds on the reported split
    places, rule = choose(grid, measured.by_place)
    finalists = [replace(grid[place], setting="finalists") for place in places]
    tested = _measure(experiment, config.split, [*finalists, *compared_configurations(base)])
    marks = {place: f"{rule}, finalist {place + 1}" for place in range(len(finalists))}
    rows = measured.rows() + tested.rows(marks)
    # 3. the directions themselves
    with phase("directions", len(fits.estimators)) as report:
        rows += [{"split": "anchors"} | row for row in _direction_rows(fits, config.sizes.n_draws, report)]
    return _result(experiment, rows, measured, grid, places[0])


def select(experiment: Experiment, layer: int) -> ReadingsResult:
    """Measure the grid on validation only, and choose from it; the test split stays untouched."""
    fits = AnchorFits.on(experiment)
    grid, measured = _validated(experiment, fits, Guard(fits.direction(), (layer,)))
    places, _ = choose(grid, measured.by_place)
    return _result(experiment, measured.rows(), measured, grid, places[0])


@dataclass(frozen=True)
class _MeasuredRows:
    """Rows of a table, each with the place of its configuration; None for rows of the unguarded model and bounds."""

    placed_rows: Sequence[tuple[int | None, dict]]

    @property
    def by_place(self) -> dict[int, list[dict]]:
        """Rows of each configuration, sorted by modality: sums do not depend on the order of the scale."""
        by_place: dict[int, list[dict]] = {}
        for place, row in sorted(self.placed_rows, key=lambda placed: placed[1]["modality"]):
            if place is not None:
                by_place.setdefault(place, []).append(row)
        return by_place

    def rows(self, marks: Mapping[int, str] | None = None) -> list[dict]:
        """Return all rows, those of marked configurations with their mark in `selection_rule`."""
        marks = marks or {}
        return [row | ({"selection_rule": marks[place]} if place in marks else {}) for place, row in self.placed_rows]


def _result(
    experiment: Experiment, rows: Sequence[dict], measured: _MeasuredRows, grid: Sequence[GuardConfiguration], best: int
) -> ReadingsResult:
    """Collect the result; the rows of the grid come first in `rows`."""
    table = tidy(experiment.labels | row for row in rows)
    is_best = [i for i, (place, _) in enumerate(measured.placed_rows) if place == best]
    return ReadingsResult(table, grid[best], table.iloc[is_best].sort_values("modality", kind="stable"))


def choose(grid: Sequence[GuardConfiguration], by_place: Mapping[int, Sequence[Mapping]]) -> tuple[list[int], str]:
    """Choose the best selectable readings on validation, one of each rule.

    Args:
        grid: all configurations.
        by_place: the rows of each configuration, by its place in the grid.

    Returns:
        Places in the grid, best first, and the name of the selection rule.

    Raises:
        LookupError: no reading has all of its metrics.
    """
    candidate_metrics = []
    for place, configuration in enumerate(grid):
        if configuration.is_selectable:
            metrics = judged_selection_metrics(first_judge(pd.DataFrame(by_place[place])))
            candidate_metrics.append({"place": place, "rule": configuration.guard.rule} | metrics)
    ranked, rule = rank(candidate_metrics)
    return ranked.drop_duplicates("rule").place[:N_FINALISTS].tolist(), rule


def _validated(experiment: Experiment, fits: AnchorFits, base: Guard) -> tuple[list[GuardConfiguration], _MeasuredRows]:
    """Measure the grid around a guard on validation."""
    grid = list(readings_grid(experiment, fits, base))
    modalities, n = experiment.config.sizes.grid_modalities, len(experiment.queries["validation"])
    n_different = len({configuration.key(modalities[0]) for configuration in grid})
    summary = f"{len(grid)} configurations ({part_sizes(grid)}), {n_different} of them different"
    Console(stderr=True).print(f"readings: {summary}; {len(modalities)} modalities, {n} prompts each", soft_wrap=True)
    return grid, _measure(experiment, "validation", grid)


def _measure(experiment: Experiment, split: str, configurations: Sequence[GuardConfiguration]) -> _MeasuredRows:
    """Measure every configuration in every modality."""
    modalities, placed_rows = experiment.config.sizes.grid_modalities, []
    n_runs = sum(1 + len({configuration.key(name) for configuration in configurations}) for name in modalities)
    with phase(f"readings, {split}", n_runs * len(experiment.queries[split])) as report:
        for modality in modalities:
            placed_rows += _SplitRunner(experiment, split, modality).measure(configurations, report)
    return _MeasuredRows([(place, {"split": split} | row) for place, row in placed_rows])


class _SplitRunner:
    """The prompts of a split in one modality, with everything that configurations are compared with."""

    def __init__(self, experiment: Experiment, split: str, modality: str):
        self.experiment, self.split, self.modality = experiment, split, modality
        self.prompts: list[Prompt] = experiment.prompts(split, modality)
        self._references: dict[tuple[str, str], Reference] = {}

    def measure(
        self, configurations: Sequence[GuardConfiguration], report: Callable[[int], None]
    ) -> list[tuple[int | None, dict]]:
        """Return the rows of the unguarded model and the text verdict, then those of every configuration by place.

        A guard runs once, in however many parts of the grid it occurs.
        """
        states = [self._states(configuration) for configuration in configurations]
        unguarded, outcomes = self._outcomes(configurations, states, report)
        has_controls = any(configuration.setting == "control" for configuration in configurations)
        setting = "control" if has_controls else "compared"
        placed_rows = [(None, row) for row in self._bound_rows(unguarded, setting)]
        random = [
            outcome
            for configuration, outcome in zip(configurations, outcomes, strict=True)
            if configuration.guard.control == "random"
        ]
        for place, (configuration, outcome) in enumerate(zip(configurations, outcomes, strict=True)):
            columns = configuration.columns(self.modality)
            rows = [
                *self._rows(outcome, unguarded, configuration.setting),
                *self._guard_rows(configuration, states[place]),
            ]
            if configuration.setting in TESTED:
                rows.append(self._over_random(outcome, random))
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
        unguarded, *outcomes = self.experiment.cached_model.run_guards(self.prompts, guards, references, report)
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

    def _states(self, configuration: GuardConfiguration) -> Float[Tensor, "prompt layer d_model"]:
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
        if setting in TESTED:
            yield from outcome_rows(self.experiment, self.prompts, outcome)
        else:
            yield from judged_rows(self.prompts, outcome.answers, self.experiment.judges[0])
            yield from first_token_rows(self.prompts, outcome)
        gain = (outcome.refusal_score - unguarded.refusal_score)[harmful_mask(self.prompts)]
        yield mean("refusal_score_gain", gain.tolist())

    def _over_random(self, outcome: Outcome, random: Sequence[Outcome]) -> dict:
        """Measure the gain over changes of the same size along random vectors, on the same harmful prompts."""
        average = torch.stack([control.refusal_score for control in random]).mean(0)
        gain = (outcome.refusal_score - average)[harmful_mask(self.prompts)]
        return mean("refusal_score_over_random", gain.tolist())

    def _guard_rows(self, configuration: GuardConfiguration, states: Tensor) -> Iterator[dict]:
        """Yield how far the states of harmful prompts move, and the rates of the gate."""
        guard, (layer,) = configuration.guard, configuration.guard.layers
        if guard.positions in ("last_prefill", "last"):
            resid = self._resid[:, layer, None]
            mask, is_open = torch.ones(len(resid), 1, dtype=torch.bool), guard.opens(states)
            changed = guard.change(resid, layer, states[:, layer], mask, is_open)
            yield mean("delta_norm", delta_norm(changed, resid)[harmful_mask(self.prompts), 0].tolist())
        if configuration.setting in ("gate", "reference"):
            yield from gate_rows(guard, self.prompts, states)

    @cached_property
    def _resid(self) -> Float[Tensor, "prompt layer d_model"]:
        """Last-token states of the prompts, unguarded."""
        traced = self.experiment.activations(self.split, self.modality)
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
