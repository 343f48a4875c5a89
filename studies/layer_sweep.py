"""Which layer, rule, gate and strength should a guard have? One prefill ranks all of them, the best ones answer.

Everything is chosen on validation.

The column `setting` names the part of the study:

    ranked      every configuration, by its first answer token alone: `refusal_score` of harmful prompts, `kl` of
                harmless ones, and the shares of both whose answer begins with a refusal (`opening_refusal_rate`,
                `opening_over_refusal_rate`); `on_front` marks those that no other configuration beats in all of
                refusal, over-refusal and KL
    finalists   the best of these, and the best single layers, with judged answers
    chosen      the best finalist on the reported split; `optimism`, by `category` (a metric), is validation minus that
                split: the cost of choosing
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
from rich.console import Console

from figures import first_judge
from interp import Prompt
from probes import Measured, difference_interval
from studies.bookkeeping.estimates import rate
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.experiment.reference_states import Reference, read_references
from studies.generation.cached_model import Outcome
from studies.generation.reference_texts import reference_for
from studies.guards.anchor_fits import AnchorFits
from studies.guards.choice_rule import Finalist, choose, judged_selection_metrics, pareto_front, rank, selection_metrics
from studies.guards.configuration import GuardConfiguration, guard_columns
from studies.guards.measures import first_token_rows, harmful_mask, outcome_rows
from studies.guards.runner import GuardRun, GuardRunner, RunBatch
from studies.guards.sweep_grid import Grid, GridError, summary_of
from studies.guards.sweep_result import SweepResult

GRIDS = {
    "tiny": Grid(layers=("every:4",)),
    "quick": Grid(),
    "full": Grid(
        layers=("single", "windows:3", "start-to-end"),
        rules=("ablate", "substitute", "add_reference"),
        gates=("sign", "threshold"),
        strengths=(1.0, 2.0, 4.0),
    ),
}
TOP = {"tiny": 2, "quick": 8, "full": 24}
"""Number of finalists, by scale."""
BEST_SINGLE = 2
"""Smallest number of single layers among the finalists: other studies build on a guard at one layer."""
HALVINGS = (0.25, 0.5, 1.0)
"""Shares of the prompts; after each but the last, half of the configurations are dropped."""
OPTIMISM = ("refusal_rate", "over_refusal_rate", "refusal_score", "kl")


def run(
    config: Config,
    experiment: Experiment | None = None,
    grid: Grid | None = None,
    top: int | None = None,
    halving: bool = False,
    ray: str | None = None,
    cpus_per_worker: int = 1,
) -> SweepResult:
    """Rank every configuration of the grid, have the best of them answer, and choose one.

    Args:
        config: settings of the run.
        experiment: loaded from the settings by default.
        grid: the configurations; by default those of the scale.
        top: number of finalists; by default that of the scale.
        halving: rank on a quarter of the prompts first and drop half of the configurations (successive halving).
        ray: address of a cluster that the runs are spread over.
        cpus_per_worker: CPUs per worker on a cluster without GPUs.

    Raises:
        GridError: nothing is left of the grid, a layer does not exist, or `top` is below 1.
    """
    experiment = experiment or load_experiment(config)
    grid, top = grid or GRIDS[config.scale], TOP[config.scale] if top is None else top
    if top < 1:
        raise GridError(f"top {top}; expected one finalist at least")
    grid.check(experiment)
    configurations, left_out = grid.configurations(AnchorFits.on(experiment))
    summary = f"sweep: {len(configurations)} configurations, {', '.join(config.sizes.swept)}"
    Console(stderr=True).print(f"{summary}{'; ' if left_out else ''}{summary_of(left_out)}", soft_wrap=True)
    runner = _SweepRunner(experiment, GuardRunner(experiment, ray, cpus_per_worker))
    # 1. every configuration by its first answer token
    ranked, rows = runner.ranked(configurations, halving)
    # 2. the best of them by their answers
    candidates = _finalists(ranked, top)
    outcomes = runner.answered(candidates)
    # 3. the choice
    metrics = [runner.judged_metrics(candidate, outcomes) for candidate in candidates]
    finalists, best = choose(candidates, metrics)
    rows += runner.answer_rows(finalists, outcomes)
    # 4. the choice on the reported split, whose queries had no part in it
    rows += runner.tested_rows(best, outcomes)
    return SweepResult(tidy(experiment.labels | row for row in rows), tuple(finalists), best)


def _finalists(ranked: Sequence[GuardConfiguration], top: int) -> list[GuardConfiguration]:
    """Select the configurations that answer, best first.

    A guard that acts only on generated tokens can't be ranked by the first one, so it is always among them.
    """
    single = [configuration for configuration in ranked if len(configuration.guard.layers) == 1]
    late = [configuration for configuration in ranked if _acts_late(configuration)]
    selected = {configuration.key(""): configuration for configuration in (*ranked[:top], *single[:BEST_SINGLE], *late)}
    return [replace(configuration, setting="finalists") for configuration in selected.values()]


def _acts_late(configuration: GuardConfiguration) -> bool:
    """Tell whether the guard leaves the first answer token unchanged."""
    return configuration.guard.positions == "generated"


Outcomes = Mapping[tuple, Outcome]
"""Outcomes by key of the configuration (None if unguarded) and modality."""


@dataclass(frozen=True)
class _SweepRunner:
    """Runs configurations on validation in every modality, and measures them."""

    experiment: Experiment
    guard_runner: GuardRunner
    references: dict[tuple[str, str], Reference] = field(default_factory=dict)
    """References of the validation prompts by modality and source: pictures are read once."""

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.experiment.config.sizes.swept

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        return {modality: self.experiment.prompts("validation", modality) for modality in self.modalities}

    def reference(self, modality: str, source: str) -> Reference:
        if (modality, source) not in self.references:
            prompts, name = self.prompts[modality], reference_for(modality)
            self.references[modality, source] = read_references(self.experiment, prompts, name, source)
        return self.references[modality, source]

    def ranked(
        self, configurations: Sequence[GuardConfiguration], halving: bool
    ) -> tuple[list[GuardConfiguration], list[dict]]:
        """Return the configurations best first, and the rows of all of them on the prompts that they last ran on."""
        rows, remaining = [], list(configurations)
        for share in HALVINGS if halving else HALVINGS[-1:]:
            indices = _first_of_each_class(self.prompts[self.modalities[0]], share)
            outcomes = self._run([None, *remaining], indices, 1, f"sweep, first token of {len(indices)}")
            candidate_metrics = [
                _opening_metrics(place, configuration, outcomes, self.prompts, indices)
                for place, configuration in enumerate(remaining)
            ]
            places = _ranked_places(candidate_metrics)
            remaining, candidate_metrics = [remaining[i] for i in places], [candidate_metrics[i] for i in places]
            if share == HALVINGS[-1]:
                break
            n_kept = -(-len(remaining) // 2)
            dropped = [configuration for configuration in remaining[n_kept:] if not _acts_late(configuration)]
            for configuration in dropped:
                rows += self._opening_rows(configuration, outcomes, indices)
            remaining = remaining[:n_kept] + list(filter(_acts_late, remaining[n_kept:]))
        for configuration in [None, *remaining]:
            rows += self._opening_rows(configuration, outcomes, indices)
        return remaining, rows + list(_front_rows(remaining, candidate_metrics))

    def answered(self, candidates: Sequence[GuardConfiguration]) -> Outcomes:
        """Return the outcomes of whole answers, the unguarded model's included."""
        all_prompts = list(range(len(self.prompts[self.modalities[0]])))
        max_new_tokens = self.experiment.config.generation.max_new_tokens
        return self._run([None, *candidates], all_prompts, max_new_tokens, "sweep, answers")

    def _run(
        self, configurations: Sequence[GuardConfiguration | None], indices: list[int], max_new_tokens: int, title: str
    ) -> Outcomes:
        batches, sources = [], {configuration.source for configuration in configurations if configuration}
        for modality in self.modalities:
            # Shared by all runs: a copy per run would not fit into memory.
            states = {source: self.reference(modality, source).states[indices] for source in sources}
            runs = [
                GuardRun(configuration.guard, states[configuration.source]) if configuration else GuardRun(None, None)
                for configuration in configurations
            ]
            batches.append(RunBatch([self.prompts[modality][i] for i in indices], runs, max_new_tokens))
        with phase(title, len(configurations) * len(indices) * len(self.modalities)) as report:
            outcomes = self.guard_runner.run(batches, report)
        keys = [(_key(configuration), modality) for modality in self.modalities for configuration in configurations]
        return dict(zip(keys, outcomes, strict=True))

    def _opening_rows(
        self, configuration: GuardConfiguration | None, outcomes: Outcomes, indices: list[int]
    ) -> Iterator[dict]:
        for modality in self.modalities:
            prompts = [self.prompts[modality][i] for i in indices]
            outcome = outcomes[_key(configuration), modality]
            columns = _columns(configuration, modality) | {"setting": "ranked", "split": "validation"}
            for row in (*first_token_rows(prompts, outcome), *_opening_rates(prompts, outcome)):
                yield columns | row

    def judged_metrics(self, candidate: GuardConfiguration, outcomes: Outcomes) -> dict:
        """Return the metrics that finalists are ranked by, as the first judge sees them."""
        rows = [row for modality in self.modalities for row in self._judged(candidate, modality, outcomes)]
        return judged_selection_metrics(first_judge(pd.DataFrame(rows)))

    def _judged(self, configuration: GuardConfiguration | None, modality: str, outcomes: Outcomes) -> list[dict]:
        rows = outcome_rows(self.experiment, self.prompts[modality], outcomes[_key(configuration), modality])
        return [{"category": None, "judge": None} | row for row in rows]

    def answer_rows(self, finalists: Sequence[Finalist], outcomes: Outcomes) -> Iterator[dict]:
        """Yield rows of the unguarded model and of every finalist on validation."""
        marks = [(None, None), *((finalist.configuration, finalist.mark) for finalist in finalists)]
        for configuration, mark in marks:
            labels = {"setting": "finalists", "split": "validation", "selection_rule": mark}
            for modality in self.modalities:
                columns = _columns(configuration, modality) | labels
                yield from (columns | row for row in self._judged(configuration, modality, outcomes))

    def tested_rows(self, best: Finalist, outcomes: Outcomes) -> Iterator[dict]:
        """Yield rows of the choice on the reported split, and its optimism; nothing if validation is reported."""
        split, configuration = self.experiment.config.split, best.configuration
        if split == "validation":
            return
        labels = {"setting": "chosen", "split": split}
        for modality in self.modalities:
            prompts = self.experiment.prompts(split, modality)
            states = read_references(self.experiment, prompts, reference_for(modality), configuration.source).states
            unguarded, guarded = self.experiment.cached_model.run_guards(prompts, [None, configuration.guard], states)
            columns = _columns(None, modality) | labels
            yield from (columns | row for row in outcome_rows(self.experiment, prompts, unguarded))
            columns = _columns(configuration, modality) | labels | {"selection_rule": best.mark}
            tested = outcome_rows(self.experiment, prompts, guarded)
            validated = pd.DataFrame(self._judged(configuration, modality, outcomes))
            gaps = _optimism(first_judge(validated), first_judge(pd.DataFrame(tested)))
            yield from (columns | row for row in (*tested, *gaps))


def _key(configuration: GuardConfiguration | None) -> tuple | None:
    """Return a key that is the same in every modality."""
    return configuration and configuration.key("")


def _columns(configuration: GuardConfiguration | None, modality: str) -> dict:
    columns = guard_columns(None, "") if configuration is None else configuration.columns(modality)
    return columns | {"modality": modality}


def _first_of_each_class(prompts: Sequence[Prompt], share: float) -> list[int]:
    """Return the indices of the first share of each class; these are representative, since queries are stratified."""
    is_harmful = harmful_mask(prompts).numpy()
    by_class = [np.flatnonzero(is_harmful == label) for label in (True, False)]
    return sorted(np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in by_class]).tolist())


def _opening_rates(prompts: Sequence[Prompt], outcome: Outcome) -> list[dict]:
    """Measure the shares of prompts whose answer is more likely than not to begin with a refusal."""
    is_harmful, refuses = harmful_mask(prompts), outcome.refusal_score > 0
    by_metric = {"opening_refusal_rate": refuses[is_harmful], "opening_over_refusal_rate": refuses[~is_harmful]}
    return [rate(metric, hits.tolist()) for metric, hits in by_metric.items()]


def _opening_metrics(
    place: int,
    configuration: GuardConfiguration,
    outcomes: Outcomes,
    prompts: Mapping[str, Sequence[Prompt]],
    indices: list[int],
) -> dict:
    """Return the metrics that a configuration is ranked by at the first token.

    No answer has been judged yet, so all of them count as coherent.
    """
    values, n = {"refusal": [], "over_refusal": [], "kl": []}, 0
    for modality, all_prompts in prompts.items():
        own, outcome = [all_prompts[i] for i in indices], outcomes[_key(configuration), modality]
        refusal, over_refusal = _opening_rates(own, outcome)
        values["refusal"].append(refusal["value"])
        values["over_refusal"].append(over_refusal["value"])
        values["kl"].append(outcome.kl[~harmful_mask(own)].mean().item())
        n += refusal["n"]
    series = {name: pd.Series(by_modality) for name, by_modality in values.items()}
    coherence = pd.Series([1.0] * len(prompts))
    metrics = selection_metrics(series["refusal"], series["over_refusal"], coherence, series["kl"], n)
    return {"place": place, "over_refusal": series["over_refusal"].max()} | metrics


def _ranked_places(candidate_metrics: Sequence[Mapping]) -> list[int]:
    """Return the places best first; configurations beyond the limits follow, ordered by how far beyond they are."""
    order, _ = rank(candidate_metrics)
    within = order.place.tolist()
    beyond = [row for row in candidate_metrics if row["place"] not in set(within)]
    return within + [row["place"] for row in sorted(beyond, key=lambda row: (row["excess"], -row["refusal"]))]


def _front_rows(configurations: Sequence[GuardConfiguration], candidate_metrics: Sequence[Mapping]) -> Iterator[dict]:
    is_on_front = pareto_front(pd.DataFrame(candidate_metrics))
    for configuration, on_front in zip(configurations, is_on_front, strict=True):
        columns = configuration.columns("") | {"setting": "ranked", "split": "validation", "reference": None}
        yield columns | Measured("on_front", float(on_front)).row()


def _optimism(validated: pd.DataFrame, tested: pd.DataFrame) -> Iterator[dict]:
    """Yield validation minus test per metric; the queries differ, so the two estimates are independent."""
    for metric in OPTIMISM:
        before, after = (table[table.metric == metric].iloc[0] for table in (validated, tested))
        gap = difference_interval(*((row.value, row.ci_low, row.ci_high) for row in (before, after)))
        yield Measured("optimism", *gap, n=int(min(before.n, after.n))).row() | {"category": metric}
