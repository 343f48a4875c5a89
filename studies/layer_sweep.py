"""Where and how to apply the projection, chosen on validation: one prefill for all, answers for the best.

`setting` tells apart:

    ranked      every configuration, by the first answer token alone: `refusal_score` of harmful prompts, `kl` of
                harmless ones, and the shares of both that begin with a refusal (`opening_refusal_rate`,
                `opening_over_refusal_rate`); `on_front` marks those that no other beats in all of refusal, over-refusal
                and KL
    finalists   the best of them by the rule that then chooses among them, and the best single layers: judged answers
    chosen      the best finalist on the reported split; `optimism`, by `category` (a metric), is validation less
                that split, which is what choosing costs
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from rich.console import Console

from interp.inputs import Prompt
from probes import difference_interval
from studies.bookkeeping.estimates import rate
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import first_judge, tidy
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load
from studies.experiment.reference_states import Reference, read_references
from studies.generation.cached_model import Outcome
from studies.generation.reference_texts import reference_for
from studies.guards.anchor_fits import AnchorFits, traced_anchors
from studies.guards.configuration import GuardConfiguration, rows_of
from studies.guards.measures import describe, first_token, harmful_among, measured
from studies.guards.runner import GuardRun, GuardRunner, RunBatch
from studies.guards.selection import judged_selection_metrics, pareto_front, rank, selection_metrics
from studies.guards.sweep_grid import Grid, GridError, counted

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
"""Finalists, by scale."""
SINGLE = ", single layer"
"""Behind the rule by which the best single layer was chosen, where the best of all is none."""
BEST_SINGLE = 2
"""Single layers among the finalists at least: what other studies build on acts at one layer."""
HALVINGS = (0.25, 0.5, 1.0)
"""Shares of the prompts; after each but the last, half of the configurations go on."""
OPTIMISM = ("refusal_rate", "over_refusal_rate", "refusal_score", "kl")


def run(
    config: Config,
    material: Experiment | None = None,
    grid: Grid | None = None,
    top: int | None = None,
    halving: bool = False,
    ray: str | None = None,
    cpus_per_worker: int = 1,
) -> pd.DataFrame:
    """The sweep. Rows of the best finalist, and of the best single layer, are marked in the column `selection_rule`.

    Args:
        grid: by default that of the scale.
        top: how many finalists answer.
        halving: ranks on a quarter of the prompts first, and drops half of the configurations (successive halving).
        ray: address of a cluster that configurations are spread over.
        cpus_per_worker: of a cluster without GPUs.

    Raises:
        GridError: a grid with nothing in it, or layers that do not exist.
    """
    material = material or load(config)
    grid, top = grid or GRIDS[config.scale], TOP[config.scale] if top is None else top
    if top < 1:
        raise GridError(f"top {top}; expected one finalist at least")
    grid.check(material)
    made = AnchorFits(traced_anchors(material), is_paired=material.is_paired)
    configurations, left_out = grid.configurations(made)
    told = f"sweep: {len(configurations)} configurations, {', '.join(config.sizes.swept)}"
    Console(stderr=True).print(f"{told}{'; ' if left_out else ''}{counted(left_out)}", soft_wrap=True)
    sweep = _Sweep(material, GuardRunner(material, ray, cpus_per_worker))
    # 1. all of them by the first token, 2. the best by their answers
    survivors, rows = sweep.ranked(configurations, halving)
    finalists = _finalists(survivors, top)
    answered = sweep.answered(finalists)
    # 3. the choice, and what it is worth where nothing was chosen
    standings = list(sweep.judged_standings(finalists, answered))
    order, rule = rank(standings)
    best, marks = finalists[order.place.iloc[0]], {}
    if single := [one for one in standings if len(finalists[one["place"]].guard.layers) == 1]:
        # By a choice of their own: beyond the limits, perhaps, where a window is within them.
        first, its_rule = rank(single)
        marks[finalists[first.place.iloc[0]].key("")] = f"{its_rule}{SINGLE}"
    marks[best.key("")] = rule
    rows += sweep.answer_rows(finalists, answered, marks)
    rows += sweep.tested(best, rule, rows)
    return tidy(material.labels | row for row in rows)


def _finalists(survivors: Sequence[GuardConfiguration], top: int) -> list[GuardConfiguration]:
    """From the best on. What acts on generated tokens alone can't be ranked by the first one, and always goes on."""
    single = [one for one in survivors if len(one.guard.layers) == 1]
    late = [one for one in survivors if _is_late(one)]
    chosen = {one.key(""): one for one in (*survivors[:top], *single[:BEST_SINGLE], *late)}
    return [replace(one, setting="finalists") for one in chosen.values()]


def _is_late(one: GuardConfiguration) -> bool:
    """Whether it leaves the first token as it is."""
    return one.guard.positions == "generated"


@dataclass(frozen=True)
class _Sweep:
    material: Experiment
    sweeper: GuardRunner

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.material.config.sizes.swept

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        return {name: self.material.prompts("validation", name) for name in self.modalities}

    @cached_property
    def _references(self) -> dict[tuple[str, str], Reference]:
        return {}

    def reference(self, modality: str, source: str) -> Reference:
        """Pictures are read once."""
        if (modality, source) not in self._references:
            name = reference_for(modality)
            found = read_references(self.material, self.prompts[modality], name, source)
            self._references[modality, source] = found
        return self._references[modality, source]

    def ranked(
        self, configurations: Sequence[GuardConfiguration], halving: bool
    ) -> tuple[list[GuardConfiguration], list[dict]]:
        """Configurations from the best on, and rows of all of them, on the prompts that they were last shown."""
        rows, left = [], list(configurations)
        for share in HALVINGS if halving else HALVINGS[-1:]:
            shown = _first_of_each_class(self.prompts[self.modalities[0]], share)
            found = self._run([None, *left], shown, 1, f"sweep, first token of {len(shown)}")
            standings = [_opening_standing(i, one, found, self.prompts, shown) for i, one in enumerate(left)]
            places = _places(standings)
            left, standings = [left[i] for i in places], [standings[i] for i in places]
            if share == HALVINGS[-1]:
                break
            n_kept = -(-len(left) // 2)
            late = [one for one in left[n_kept:] if _is_late(one)]
            for one in left[n_kept:]:
                rows += [] if _is_late(one) else self._opening_rows(one, found, shown)
            left = left[:n_kept] + late
        for one in [None, *left]:
            rows += self._opening_rows(one, found, shown)
        return left, rows + list(_front_rows(left, standings))

    def answered(self, finalists: Sequence[GuardConfiguration]) -> dict[tuple, Outcome]:
        every = list(range(len(self.prompts[self.modalities[0]])))
        return self._run([None, *finalists], every, self.material.config.generation.max_new_tokens, "sweep, answers")

    def _run(
        self, readings: Sequence[GuardConfiguration | None], shown: list[int], n_new: int, title: str
    ) -> dict[tuple, Outcome]:
        """Outcomes by key and modality."""
        batches, sources = [], {one.source for one in readings if one}
        for name in self.modalities:
            # Once for all runs: a copy for each would fill any memory.
            states = {source: self.reference(name, source).states[shown] for source in sources}
            runs = [GuardRun(one.guard, states[one.source]) if one else GuardRun(None, None) for one in readings]
            batches.append(RunBatch([self.prompts[name][i] for i in shown], runs, n_new))
        with phase(title, len(readings) * len(shown) * len(self.modalities)) as report:
            found = self.sweeper.work(batches, report)
        keys = [(_key(one), name) for name in self.modalities for one in readings]
        return dict(zip(keys, found, strict=True))

    def _opening_rows(self, one: GuardConfiguration | None, found: Mapping, shown: list[int]) -> Iterator[dict]:
        for name in self.modalities:
            prompts, outcome = [self.prompts[name][i] for i in shown], found[_key(one), name]
            for row in (*first_token(prompts, outcome), *_openings(prompts, outcome)):
                yield _about(one, name) | {"setting": "ranked", "split": "validation"} | row

    def judged_standings(self, finalists: Sequence[GuardConfiguration], answered: Mapping) -> Iterator[dict]:
        for place, one in enumerate(finalists):
            rows = [row for name in self.modalities for row in self._judged(one, name, answered)]
            yield {"place": place} | judged_selection_metrics(first_judge(pd.DataFrame(rows)))

    def _judged(self, one: GuardConfiguration | None, modality: str, answered: Mapping) -> list[dict]:
        rows = measured(self.material, self.prompts[modality], answered[_key(one), modality])
        return [{"category": None, "judge": None} | row for row in rows]

    def answer_rows(
        self, finalists: Sequence[GuardConfiguration], answered: Mapping, marks: Mapping[tuple, str]
    ) -> Iterator[dict]:
        for one in [None, *finalists]:
            mark = marks.get(_key(one)) if one else None
            for name in self.modalities:
                about = _about(one, name) | {"setting": "finalists", "split": "validation", "selection_rule": mark}
                yield from (about | row for row in self._judged(one, name, answered))

    def tested(self, best: GuardConfiguration, rule: str, rows: Sequence[dict]) -> Iterator[dict]:
        """The choice on the reported split, and what was lost on the way there."""
        split = self.material.config.split
        if split == "validation":
            return
        validated = pd.DataFrame(rows)
        for name in self.modalities:
            prompts = self.material.prompts(split, name)
            states = read_references(self.material, prompts, reference_for(name), best.source).states
            unguarded, found = self.material.asker.ride(prompts, [None, best.guard], states)
            for one, outcome in ((None, unguarded), (best, found)):
                about = _about(one, name) | {"setting": "chosen", "split": split}
                about |= {"selection_rule": rule} if one else {}
                told = measured(self.material, prompts, outcome)
                yield from (about | row for row in told)
                if one:
                    mine = (validated.setting == "finalists") & (validated.selection_rule == rule)
                    before = first_judge(validated[mine & (validated.modality == name)])
                    yield from (about | row for row in _optimism(before, first_judge(pd.DataFrame(told))))


def _key(one: GuardConfiguration | None) -> tuple | None:
    """The same in every modality."""
    return one and one.key("")


def _about(one: GuardConfiguration | None, modality: str) -> dict:
    if one is None:
        return {"modality": modality} | describe(None, "")
    return one.about(modality) | {"modality": modality}


def _first_of_each_class(prompts: Sequence[Prompt], share: float) -> list[int]:
    """Places of the first so many of each class: queries are stratified from the beginning."""
    is_harmful = harmful_among(prompts).numpy()
    places = [np.flatnonzero(is_harmful == label) for label in (True, False)]
    return sorted(np.concatenate([some[: max(1, round(share * len(some)))] for some in places]).tolist())


def _openings(prompts: Sequence[Prompt], outcome: Outcome) -> list[dict]:
    """Shares of prompts whose answer begins with a refusal more likely than not."""
    is_harmful, refuses = harmful_among(prompts), outcome.refusal_score > 0
    rates = {"opening_refusal_rate": refuses[is_harmful], "opening_over_refusal_rate": refuses[~is_harmful]}
    return [rate(name, some.tolist()) for name, some in rates.items()]


def _opening_standing(place: int, one: GuardConfiguration, found: Mapping, prompts: Mapping, shown: list[int]) -> dict:
    """By the first token: no answer has been judged, so all count as coherent."""
    values, n = {"refusal": [], "over_refusal": [], "kl": []}, 0
    for name, all_of_them in prompts.items():
        some, outcome = [all_of_them[i] for i in shown], found[_key(one), name]
        refused, over_refused = _openings(some, outcome)
        values["refusal"].append(refused["value"])
        values["over_refusal"].append(over_refused["value"])
        values["kl"].append(outcome.kl[~harmful_among(some)].mean().item())
        n += refused["n"]
    series = {name: pd.Series(some) for name, some in values.items()}
    coherence = pd.Series([1.0] * len(prompts))
    found_there = selection_metrics(series["refusal"], series["over_refusal"], coherence, series["kl"], n)
    return {"place": place, "over_refusal": series["over_refusal"].max()} | found_there


def _places(standings: Sequence[Mapping]) -> list[int]:
    """From the best on; those beyond the limits behind, by how far."""
    order, _ = rank(standings)
    within = order.place.tolist()
    is_within = set(within)
    beyond = [one for one in standings if one["place"] not in is_within]
    return within + [one["place"] for one in sorted(beyond, key=lambda one: (one["excess"], -one["refusal"]))]


def _front_rows(configurations: Sequence[GuardConfiguration], standings: Sequence[Mapping]) -> Iterator[dict]:
    is_on = pareto_front(pd.DataFrame(standings))
    for one, on_front in zip(configurations, is_on, strict=True):
        about = one.about("") | {"setting": "ranked", "split": "validation", "reference": None}
        yield about | {"metric": "on_front", "value": float(on_front)}


def _optimism(before: pd.DataFrame, after: pd.DataFrame) -> Iterator[dict]:
    """Validation less test: other queries, so independent."""
    for name in OPTIMISM:
        (_, one), (_, other) = (next(some[some.metric == name].iterrows()) for some in (before, after))
        gap, low, high = difference_interval(*((row.value, row.ci_low, row.ci_high) for row in (one, other)))
        row = {"metric": "optimism", "value": gap, "ci_low": low, "ci_high": high, "n": min(one.n, other.n)}
        yield row | {"category": name}


def _marked(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of what was chosen, on validation."""
    return table[(table.setting == "finalists") & table.selection_rule.notna()]


def best_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the best finalist, on validation.

    Raises:
        LookupError: the table marks none.
    """
    marked = _marked(table)
    best = marked[~marked.selection_rule.astype(str).str.endswith(SINGLE)]
    if best.empty:
        raise LookupError("the table marks no choice; run the sweep again")
    return best


def chosen(table: pd.DataFrame, material: Experiment, grid: Grid | None = None) -> GuardConfiguration:
    """The configuration that a finished sweep has marked, made again.

    Args:
        table: of `run`.
        material: of the same run.
        grid: of the same run; by default that of the scale.

    Raises:
        LookupError: none is marked that the grid holds.
    """
    best = best_rows(table).head(1)
    made = AnchorFits(traced_anchors(material), is_paired=material.is_paired)
    configurations, _ = (grid or GRIDS[material.config.scale]).configurations(made)
    for one in configurations:
        if len(rows_of(best, replace(one, setting="finalists"))):
            return one
    raise LookupError("the grid does not hold the configuration that the table marks; pass the grid of that sweep")


def chosen_layer(table: pd.DataFrame) -> int:
    """The best single layer: what other studies build on.

    Raises:
        LookupError: the table marks none.
    """
    marked = _marked(table)
    if "last_layer" in marked:
        marked = marked[marked.last_layer.isna()]
    if marked.empty:
        raise LookupError("the sweep marks no single layer; run it with single layers in its grid")
    return int(marked.layer.iloc[0])
