"""Which layer, rule, gate and strength should a guard have? One prefill ranks all of them, the best ones answer.

This is the only choice of a guard, and it is made on validation: every other study takes the guard that is chosen here.

The column `setting` names the part of the study:

    ranked      every configuration, by its first answer token alone: `refusal_score` of harmful prompts, `kl` of
                harmless ones, and the shares of both whose answer begins with a refusal (`opening_refusal_rate`,
                `opening_over_refusal_rate`); `on_front` marks those that no other configuration beats in all of
                refusal, over-refusal and KL
    finalists   the best of these, and the best single layers, with judged answers
    chosen      the best finalist on the reported split; `optimism`, by `category` (a metric), is validation minus that
                split: the cost of choosing; `random_percentile` and `random_p`, by `category`, say how it compares with
                random changes of the same size

A row without a setting (split `anchors`) has the coverage of the refusal openings that every score relies on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from figures import first_judge
from interp import Prompt
from probes import Measured, difference_interval
from studies.bookkeeping.console import plain_console
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import tidy
from studies.experiment.config import SCALES, Config
from studies.experiment.experiment import Experiment, load_experiment
from studies.experiment.reference_states import read_references
from studies.generation.openings import coverage_row
from studies.guards.anchor_fits import AnchorFits
from studies.guards.choice_rule import Finalist, choose
from studies.guards.configuration import GuardConfiguration
from studies.guards.measures import outcome_rows
from studies.guards.random_directions import n_runs, random_draws
from studies.guards.runner import GuardRunner
from studies.guards.sweep_grid import Grid, GridError, summary_of
from studies.guards.sweep_result import SweepResult
from studies.guards.sweep_runner import SweepRunner, run_columns

_QUICK = Grid(
    layers=(SCALES["quick"].layers,),
    rules=("ablate", "substitute", "add_reference"),
    gates=("sign", "threshold"),
    strengths=(1.0, 2.0),
)
GRIDS = {
    "tiny": Grid(layers=(SCALES["tiny"].layers,)),
    # Brief is for models that others aligned, and nobody knows beforehand how far their states have to be moved.
    "brief": replace(_QUICK, strengths=(1.0, 2.0, 4.0, 8.0)),
    "quick": _QUICK,
    "full": Grid(
        layers=(SCALES["full"].layers, "windows:3", "start-to-end"),
        rules=("ablate", "substitute", "add_reference"),
        gates=("sign", "threshold", "probe"),
        strengths=(1.0, 2.0, 4.0),
    ),
}
TOP = {"tiny": 2, "brief": 8, "quick": 8, "full": 24}
"""Number of finalists, by scale."""
BEST_SINGLE = 2
"""Smallest number of single layers among the finalists: other studies look into the model at one layer."""
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
    grid.check(experiment)
    configurations, left_out = grid.configurations(AnchorFits.on(experiment))
    summary = f"sweep: {len(configurations)} configurations, {', '.join(experiment.sizes.swept)}"
    plain_console(stderr=True).print(f"{summary}{'; ' if left_out else ''}{summary_of(left_out)}", soft_wrap=True)
    # 1. the choice on validation
    found = search(experiment, configurations, top, halving, ray, cpus_per_worker)
    # 2. the choice on the reported split, whose queries had no part in it
    tested, draws = _tested(experiment, found) if config.split != "validation" else ([], [])
    rows = [*found.rows, *tested, coverage_row(experiment.refusal_openings)]
    table, random = (tidy(experiment.labels | row for row in part) for part in (rows, draws))
    return SweepResult(table, found.finalists, found.best, random)


def choice(experiment: Experiment) -> GuardConfiguration:
    """Return the guard that the scale's sweep chooses on validation, without measuring it on the reported split."""
    scale = experiment.config.scale
    configurations, _ = GRIDS[scale].configurations(AnchorFits.on(experiment))
    return search(experiment, configurations, TOP[scale]).best.configuration


@dataclass(frozen=True)
class Search:
    """Configurations that were compared on validation, and the best of them."""

    best: Finalist
    finalists: tuple[Finalist, ...]
    """Configurations with judged answers, from the best by the first token on."""
    rows: tuple[dict, ...] = field(repr=False)
    """Rows of the settings `ranked` and `finalists`."""


def search(
    experiment: Experiment,
    configurations: Sequence[GuardConfiguration],
    top: int,
    halving: bool = False,
    ray: str | None = None,
    cpus_per_worker: int = 1,
) -> Search:
    """Choose the best of any configurations on validation: by their first answer tokens, then by answers of the best.

    Args:
        experiment: model, queries and settings.
        configurations: each is run with its own reference and source.
        top: number of finalists.
        halving: see `run`.
        ray: address of a cluster that the runs are spread over.
        cpus_per_worker: CPUs per worker on a cluster without GPUs.

    Raises:
        GridError: `top` is below 1, there are no configurations, or the columns of two are the same.
    """
    if top < 1:
        raise GridError(f"top {top}; expected one finalist at least")
    n_different = len({configuration.identity for configuration in configurations})
    if not configurations or n_different < len(configurations):
        raise GridError(f"{len(configurations)} configurations, {n_different} different ones; expected each once")
    runner = SweepRunner(experiment, GuardRunner(experiment, ray, cpus_per_worker))
    # 1. every configuration by its first answer token
    ranked, rows = runner.ranked(configurations, halving)
    # 2. the best of them by their answers
    candidates = _finalists(ranked, top)
    outcomes = runner.answered(candidates)
    # 3. the choice
    metrics = [runner.judged_metrics(candidate, outcomes) for candidate in candidates]
    finalists, best = choose(candidates, metrics)
    rows += runner.answer_rows(finalists, outcomes)
    return Search(best, tuple(finalists), tuple(rows))


def _finalists(ranked: Sequence[GuardConfiguration], top: int) -> list[GuardConfiguration]:
    """Select the configurations that answer, best first.

    A guard that acts only on generated tokens can't be ranked by the first one, so it is always among them.
    """
    single = [configuration for configuration in ranked if len(configuration.guard.layers) == 1]
    late = [configuration for configuration in ranked if configuration.acts_late]
    selected = {
        configuration.identity: configuration for configuration in (*ranked[:top], *single[:BEST_SINGLE], *late)
    }
    return [replace(configuration, setting="finalists") for configuration in selected.values()]


def _tested(experiment: Experiment, found: Search) -> tuple[list[dict], list[dict]]:
    """Measure the choice on the reported split.

    Returns:
        Rows of the setting `chosen`; and the rows of the random directions that it is compared with.
    """
    rows, draws = [], []
    split, best = experiment.config.split, found.best
    validated = pd.DataFrame(row for row in found.rows if row.get("selection_rule") == best.mark)
    prompts = {modality: experiment.prompts(split, modality) for modality in experiment.sizes.swept}
    with phase(f"sweep, chosen on {split}", sum(map(n_runs, prompts.values()))) as report:
        for modality, own in prompts.items():
            before = first_judge(validated[validated.modality == modality])
            modality_rows, modality_draws = _tested_in(experiment, best, modality, own, before, report)
            rows += modality_rows
            draws += modality_draws
    return rows, draws


def _tested_in(
    experiment: Experiment,
    best: Finalist,
    modality: str,
    prompts: Sequence[Prompt],
    validated: pd.DataFrame,
    report: Callable[[int], None],
) -> tuple[list[dict], list[dict]]:
    """Measure the choice in one modality, unguarded and among random directions.

    Args:
        experiment: the model.
        best: the choice.
        modality: modality of the prompts.
        prompts: those of the reported split.
        validated: the choice's own rows on validation, by the first judge.
        report: called with the number of prompts times guards finished since the last call.
    """
    configuration, labels = best.configuration, {"setting": "chosen", "split": experiment.config.split}
    guard = configuration.guard
    states = read_references(experiment, prompts, configuration.reference_in(modality), configuration.source).states
    unguarded, guarded = GuardRunner(experiment).answered(prompts, [None, guard], [None, states])
    rows = [run_columns(None, modality) | labels | row for row in outcome_rows(experiment, prompts, unguarded)]
    tested = outcome_rows(experiment, prompts, guarded)
    rows_of_best = [*tested, *_optimism(validated, first_judge(pd.DataFrame(tested)))]
    columns, random = run_columns(configuration, modality) | labels, None
    # A guard that acts on generated tokens alone leaves the first one as it is.
    if not configuration.acts_late:
        random = random_draws(experiment, prompts, guard, states, report=report)
        rows_of_best += random.comparison_rows()
    rows += [columns | {"selection_rule": best.mark} | row for row in rows_of_best]
    return rows, list(random.rows(columns | {"setting": "sweep"})) if random else []


def _optimism(validated: pd.DataFrame, tested: pd.DataFrame) -> Iterator[dict]:
    """Yield validation minus test per metric; the queries differ, so the two estimates are independent."""
    for metric in OPTIMISM:
        before, after = (table[table.metric == metric].iloc[0] for table in (validated, tested))
        gap = difference_interval(*((row.value, row.ci_low, row.ci_high) for row in (before, after)))
        yield Measured("optimism", *gap, n=int(min(before.n, after.n))).row() | {"category": metric}
