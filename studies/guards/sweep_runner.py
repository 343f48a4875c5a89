"""Run configurations of a guard on validation: by their first answer token, then by judged answers; and rank them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from figures import first_judge
from interp import Prompt
from probes import Measured
from studies.bookkeeping.estimates import rate
from studies.bookkeeping.progress import phase
from studies.experiment.experiment import Experiment
from studies.experiment.reference_states import Reference, read_references
from studies.generation.cached_model import Outcome
from studies.guards.choice_rule import Finalist, judged_selection_metrics, pareto_front, rank, selection_metrics
from studies.guards.configuration import GuardConfiguration, guard_columns
from studies.guards.measures import first_token_rows, harmful_mask, outcome_rows
from studies.guards.runner import GuardRun, GuardRunner, RunBatch

HALVINGS = (0.25, 0.5, 1.0)
"""Shares of the prompts; after each but the last, half of the configurations are dropped."""
Outcomes = Mapping[tuple, Outcome]
"""Outcomes by key of the configuration (None if unguarded) and modality."""


@dataclass(frozen=True)
class SweepRunner:
    """Runs configurations on validation in every modality, and measures them."""

    experiment: Experiment
    guard_runner: GuardRunner
    references: dict[tuple[str, str, str], Reference] = field(default_factory=dict)
    """References of the validation prompts by modality, kind and source: pictures are read once."""
    judged: dict[tuple, list[dict]] = field(default_factory=dict)
    """Rows of whole answers by configuration and modality: they are judged once."""

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.experiment.sizes.swept

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        return {modality: self.experiment.prompts("validation", modality) for modality in self.modalities}

    def reference(self, modality: str, name: str, source: str) -> Reference:
        key = modality, name, source
        if key not in self.references:
            self.references[key] = read_references(self.experiment, self.prompts[modality], name, source)
        return self.references[key]

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
            dropped = [configuration for configuration in remaining[n_kept:] if not configuration.acts_late]
            for configuration in dropped:
                rows += self._opening_rows(configuration, outcomes, indices)
            remaining = remaining[:n_kept] + [each for each in remaining[n_kept:] if each.acts_late]
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
        batches = []
        for modality in self.modalities:
            kinds = [each and (each.reference_in(modality), each.source) for each in configurations]
            # Shared by all runs: a copy per run would not fit into memory.
            states = {kind: self.reference(modality, *kind).states[indices] for kind in set(kinds) - {None}}
            runs = [
                GuardRun(configuration.guard, states[kind]) if configuration else GuardRun(None, None)
                for configuration, kind in zip(configurations, kinds, strict=True)
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
            columns = run_columns(configuration, modality) | {"setting": "ranked", "split": "validation"}
            for row in (*first_token_rows(prompts, outcome), *opening_rates(prompts, outcome)):
                yield columns | row

    def judged_metrics(self, candidate: GuardConfiguration, outcomes: Outcomes) -> dict:
        """Return the metrics that finalists are ranked by, as the first judge sees them."""
        guarded, unguarded = (
            pd.DataFrame(
                {"modality": modality} | row
                for modality in self.modalities
                for row in self.judged_rows(configuration, modality, outcomes)
            )
            for configuration in (candidate, None)
        )
        return judged_selection_metrics(first_judge(guarded), first_judge(unguarded))

    def judged_rows(self, configuration: GuardConfiguration | None, modality: str, outcomes: Outcomes) -> list[dict]:
        key = _key(configuration), modality
        if key not in self.judged:
            rows = outcome_rows(self.experiment, self.prompts[modality], outcomes[key])
            self.judged[key] = [{"category": None, "judge": None} | row for row in rows]
        return self.judged[key]

    def answer_rows(self, finalists: Sequence[Finalist], outcomes: Outcomes) -> Iterator[dict]:
        """Yield rows of the unguarded model and of every finalist on validation."""
        marks = [(None, None), *((finalist.configuration, finalist.mark) for finalist in finalists)]
        for configuration, mark in marks:
            labels = {"setting": "finalists", "split": "validation", "selection_rule": mark}
            for modality in self.modalities:
                columns = run_columns(configuration, modality) | labels
                yield from (columns | row for row in self.judged_rows(configuration, modality, outcomes))


def _key(configuration: GuardConfiguration | None) -> tuple | None:
    """Return a key that is the same in every modality."""
    return configuration and configuration.identity


def run_columns(configuration: GuardConfiguration | None, modality: str) -> dict:
    columns = guard_columns(None, "") if configuration is None else configuration.columns(modality)
    return columns | {"modality": modality}


def _first_of_each_class(prompts: Sequence[Prompt], share: float) -> list[int]:
    """Return the indices of the first share of each class; these are representative, since queries are stratified."""
    is_harmful = harmful_mask(prompts).numpy()
    by_class = [np.flatnonzero(is_harmful == label) for label in (True, False)]
    return sorted(np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in by_class]).tolist())


def opening_rates(prompts: Sequence[Prompt], outcome: Outcome) -> list[dict]:
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
    values, n = {"refusal": [], "over_refusal": [], "unguarded": [], "kl": []}, 0
    for modality, all_prompts in prompts.items():
        own, outcome = [all_prompts[i] for i in indices], outcomes[_key(configuration), modality]
        refusal, over_refusal = opening_rates(own, outcome)
        values["refusal"].append(refusal["value"])
        values["over_refusal"].append(over_refusal["value"])
        values["unguarded"].append(opening_rates(own, outcomes[_key(None), modality])[1]["value"])
        values["kl"].append(outcome.kl[~harmful_mask(own)].mean().item())
        n += refusal["n"]
    series = {name: pd.Series(by_modality) for name, by_modality in values.items()}
    coherence = pd.Series([1.0] * len(prompts))
    rates = [series[name] for name in ("refusal", "over_refusal", "unguarded")]
    metrics = selection_metrics(*rates, coherence, series["kl"], n)
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
