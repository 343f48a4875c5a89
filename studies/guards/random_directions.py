"""Is a guard's direction better than any other? Changes of the same size along random directions, by the first token.

One random direction is not a control: some restore refusal and some don't. So a guard is compared with the distribution
over `N_DRAWS` of them, on the same prefill. A draw moves each state that the guard changes by the length of the guard's
change; where its gate is closed neither moves anything.

The p-value is one-sided, (1 + number of draws at or above the guard) / (1 + number of draws), so a random direction has
one of at most 0.05 in 10 of 201 cases. Shares of prompts have ties, which count against the guard: theirs is smaller
less often. "More than random" is therefore decided by `DECISIVE`, which has none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import Guard, Prompt, SafetyDirection, collate
from interp.batches import batches
from probes import Measured
from studies.experiment.experiment import Experiment
from studies.guards.measures import harmful_mask
from studies.guards.runner import RANKED_TOGETHER, GuardRun, GuardRunner, RunBatch

N_DRAWS = 200
"""Random directions that a guard is compared with."""
STATISTICS = ("refusal_score_gain", "opening_refusal_rate")
"""Metrics of harmful prompts: their mean gain over unguarded, and the share whose answer begins with a refusal."""
DECISIVE = STATISTICS[0]
"""The statistic whose p-value decides."""
SIGNIFICANT = 0.05
"""Largest p-value of a guard that does more than random directions."""
KEPT = "dataset setting split modality layer last_layer layers rule reference gate strength defence".split()
"""Columns that the rows of draws take over from those of the guard."""
DIGITS = 4
"""Decimals that are compared: the last bits depend on the batch, and must not separate equal effects."""


@dataclass(frozen=True, eq=False)
class RandomDraws:
    """First-token scores of the same prompts unguarded, under a guard, and under random directions."""

    unguarded: Float[Tensor, " prompt"]
    """Refusal scores of the unguarded model."""
    guarded: Float[Tensor, " prompt"]
    """Refusal scores under the guard."""
    refusal_score: Float[Tensor, "draw prompt"]
    kl: Float[Tensor, "draw prompt"]
    """KL of each draw from the unguarded model."""
    is_harmful: Bool[Tensor, " prompt"]

    def values(self, statistic: str) -> Float[Tensor, " draw"]:
        """Return one of `STATISTICS` for each draw."""
        return self._statistic(statistic, self.refusal_score)

    def guard_value(self, statistic: str) -> float:
        """Return one of `STATISTICS` for the guard; NaN without harmful prompts."""
        return self._statistic(statistic, self.guarded[None])[0].item()

    def percentile(self, statistic: str) -> float:
        """Return the share of draws with a smaller value than the guard's; NaN without harmful prompts."""
        value, draws = self.guard_value(statistic), self.values(statistic)
        return float("nan") if np.isnan(value) else (draws < value).double().mean().item()

    def p_value(self, statistic: str = DECISIVE) -> float:
        """Return the one-sided p-value of the guard among the draws; NaN without harmful prompts."""
        value, draws = self.guard_value(statistic), self.values(statistic)
        return float("nan") if np.isnan(value) else (1 + (draws >= value).sum().item()) / (1 + len(draws))

    def _statistic(self, statistic: str, scores: Float[Tensor, "row prompt"]) -> Float[Tensor, " row"]:
        harmful = scores[:, self.is_harmful].double()
        if statistic == "opening_refusal_rate":
            return (harmful > 0).double().mean(1)
        return (harmful - self.unguarded[self.is_harmful].double()).mean(1).round(decimals=DIGITS)

    def comparison_rows(self) -> list[dict]:
        """Return the rows `random_percentile` and `random_p` of each statistic, which `category` names."""
        rows = []
        for statistic in STATISTICS:
            for metric, measure in (("random_percentile", self.percentile), ("random_p", self.p_value)):
                row = Measured(metric, measure(statistic), n=len(self.refusal_score)).row()
                rows.append(row | {"category": statistic})
        return rows

    def summary_rows(self) -> list[dict]:
        """Return the mean over draws of each first-token metric, with the range of 95 % of the draws as interval."""
        by_metric = {"refusal_score": self.refusal_score[:, self.is_harmful].mean(1)}
        by_metric |= {statistic: self.values(statistic) for statistic in STATISTICS}
        by_metric["kl"] = self.kl[:, ~self.is_harmful].mean(1)
        label = {"interval": f"2.5-97.5 % of {len(self.refusal_score)} random directions"}
        return [_summary(metric, values) | label for metric, values in by_metric.items()]

    def rows(self, columns: Mapping[str, object]) -> Iterator[dict]:
        """Yield each statistic under the guard, and under each draw with its seed.

        Args:
            columns: those of the guard; `KEPT` of them are kept.
        """
        kept = {name: columns[name] for name in KEPT if name in columns}
        for metric in STATISTICS:
            yield kept | {"control": None, "seed": None, "metric": metric, "value": self.guard_value(metric)}
            for seed, value in enumerate(self.values(metric).tolist()):
                yield kept | {"control": "random", "seed": seed, "metric": metric, "value": value}


def _summary(metric: str, values: Float[Tensor, " draw"]) -> dict:
    low, high = np.quantile(values.numpy(), [0.025, 0.975]).tolist()
    return Measured(metric, values.mean().item(), low, high, n=len(values)).row()


def random_draws(
    experiment: Experiment,
    prompts: Sequence[Prompt],
    guard: Guard,
    states: Float[Tensor, "prompt layer d_model"] | None,
    n: int | None = None,
    report: Callable[[int], None] = lambda n_runs: None,
    harmless: bool = False,
) -> RandomDraws:
    """Score the first answer token under a guard and under random changes of the same size.

    Args:
        experiment: model and settings; finished runs in its folder are reused.
        prompts: run once for up to 64 directions, if the guard allows it.
        guard: what the draws are compared with; it acts on the last prompt token at least.
        states: reference states of the prompts; None if the guard needs none.
        n: number of draws, `N_DRAWS` by default.
        report: called with the number of prompts times guards finished since the last call.
        harmless: also run harmless prompts, which only `kl` needs.
    """
    n, is_kept = N_DRAWS if n is None else n, harmful_mask(prompts) | harmless
    prompts = [prompt for prompt, keep in zip(prompts, is_kept.tolist(), strict=True) if keep]
    states = None if states is None else states[is_kept]
    runner = GuardRunner(experiment)
    runs = [GuardRun(None, None), GuardRun(guard, states)]
    unguarded, guarded = runner.run([RunBatch(prompts, runs, 1)], report)
    # At later layers of a window the guard finds states that it has changed already, and changes them less; a random
    # direction leaves the coordinate where it was. So sizes are measured on the guard.
    is_window = len(guard.layers) > 1 and guard.positions in ("last_prefill", "last")
    sizes, random = change_sizes(experiment, prompts, guard, states) if is_window else None, []
    for start in range(0, n, RANKED_TOGETHER):
        seeds = range(start, min(start + RANKED_TOGETHER, n))
        runs = [_random_run(guard, states, sizes, seed) for seed in seeds]
        random += runner.run([RunBatch(prompts, runs, 1)], report)
    scores, kl = (torch.stack([getattr(outcome, name) for outcome in random]) for name in ("refusal_score", "kl"))
    return RandomDraws(unguarded.refusal_score, guarded.refusal_score, scores, kl, harmful_mask(prompts))


def n_runs(prompts: Sequence[Prompt], harmless: bool = False) -> int:
    """Return how many prompts times guards `random_draws` reports in all."""
    return int((harmful_mask(prompts) | harmless).sum()) * (N_DRAWS + 2)


def _random_run(guard: Guard, states: Tensor | None, sizes: Tensor | None, seed: int) -> GuardRun:
    """Return a run along a random direction, whose changes have the guard's size, or the given one if there is one."""
    control = replace(guard, control="random", control_seed=seed)
    if sizes is None:
        return GuardRun(control, states)
    basis = torch.stack([control.random_direction(layer) for layer in range(sizes.shape[1])])
    direction = SafetyDirection(basis[:, None], "random")
    # The rule adds the reference's coordinate, which is the size.
    adding = Guard(direction, guard.layers, "add_reference", "always", guard.positions)
    return GuardRun(adding, sizes[..., None] * basis)


@dataclass(frozen=True)
class _MeasuringGuard(Guard):
    """A guard that records the size of its changes at the last position."""

    sizes: dict[int, list[Tensor]] = field(default_factory=dict, compare=False)

    def change(self, resid: Tensor, layer: int, *args, **kwargs) -> Tensor:
        """Return the changed states, as `Guard.change` does."""
        changed = super().change(resid, layer, *args, **kwargs)
        size = (changed[:, -1].float() - resid[:, -1].float()).norm(dim=-1)
        self.sizes.setdefault(layer, []).append(size.cpu())
        return changed


@torch.no_grad()
def change_sizes(
    experiment: Experiment, prompts: Sequence[Prompt], guard: Guard, states: Tensor | None
) -> Float[Tensor, "prompt layer"]:
    """Measure how far a guard moves the last prompt token at each layer; 0 at layers that it does not change.

    Args:
        experiment: the model.
        prompts: prompts that the guard acts on.
        guard: measured while it acts, so that its later layers see the changes of the earlier ones.
        states: reference states of the prompts; None if the guard needs none.
    """
    vlm, sizes = experiment.vlm, torch.zeros(len(prompts), experiment.vlm.n_layers)
    settings = {name: getattr(guard, name) for name in Guard.__dataclass_fields__}
    for rows in batches(prompts, experiment.config.generation.batch_size):
        measuring = _MeasuringGuard(**settings)
        with measuring.on(vlm, None if states is None else states[rows]):
            vlm.model(**collate(vlm, [prompts[row] for row in rows]), use_cache=False, logits_to_keep=1)
        for layer, (size,) in measuring.sizes.items():
            sizes[rows, layer] = size
    return sizes
