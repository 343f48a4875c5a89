"""Which reading of the paper works? Every rule, gate scope and sign; everything else one factor at a time.

The published descriptions leave open the sign, whose coordinate is put back, and on which state stage 3 acts. All of it
is measured on validation at the layer that the sweep chose, beside controls and bounds; the best are then answered with
on the reported split. `setting` says which part of the grid a row belongs to:

    factorial   rule x gate scope x sign of the change (the control `sign_flipped`), all with the sign gate
    gate positions source estimator rank token direction_layer layer strength reference
                one factor at a time, from `substitute` at strength 1
    gate x strength
                both at once: the gate says who is changed, the strength how much
    control     what a guard must beat: `random`, `shuffled_labels`, `shuffled_reference` (another prompt's, of the
                same or of the other class); and the bounds `full_state` and `text_verdict`
    finalists   the best of the honest ones, on the reported split
    compared    beside them: stages 2 and 3, stage 2 alone, stage 3 as printed, the sign flipped, controls and bounds
    directions  no guard: how stable a direction is over refits, and how near the directions of other estimators, tokens
                and sources come to it
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import pandas as pd
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from interp.directions import alignment, stability
from interp.guard import Guard
from interp.inputs import Prompt
from interp.projection import delta_norm
from studies.bookkeeping.estimates import mean
from studies.bookkeeping.progress import phase
from studies.bookkeeping.tables import first_judge, tidy
from studies.defences.detours import answer_of_text
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment, load
from studies.experiment.reference_states import Reference, read_references
from studies.generation.cached_model import Outcome
from studies.generation.reference_texts import reference_for
from studies.guards import readings_grid
from studies.guards.anchor_fits import AnchorFits, traced_anchors
from studies.guards.configuration import GuardConfiguration, rows_of
from studies.guards.measures import first_token, gate_rates, harmful_among, judged, measured
from studies.guards.readings_grid import compared_configurations, parts
from studies.guards.selection import judged_selection_metrics, rank

TESTED = ("finalists", "compared")
"""Parts that are measured on the reported split."""
N_FINALISTS = 3


def run(config: Config, material: Experiment | None = None, layer: int | None = None) -> pd.DataFrame:
    """The grid on validation, and its finalists on the reported split.

    Args:
        layer: of the guard; by default the middle.

    Returns:
        By modality: `refusal_score` of harmful prompts, `refusal_score_gain` (guarded - unguarded, the same prompts),
        `kl` of harmless ones, refusal, over-refusal and coherence by the first judge (on the reported split by both),
        `delta_norm` where the change is at the last prompt token, and the gate's rates in the settings `gate` and
        `reference`. On the reported split also `refusal_score_over_random`, against changes of the same size along
        random vectors. `selection_rule` marks the finalists.
    """
    material = material or load(config)
    layer = material.vlm.n_layers // 2 if layer is None else layer
    # 1. all of the grid on validation
    made = _ingredients(material, layer)
    base, grid, rows = _validated(material, made)
    # 2. the best, what the paper prints, controls and bounds, where it counts
    places, rule = choose(tidy(rows), grid)
    finalists = [replace(grid[place], setting="finalists") for place in places]
    rows += _measured(material, config.split, [*finalists, *compared_configurations(base)])
    # 3. the directions themselves
    with phase("directions", len(made.estimators)) as report:
        rows += [{"split": "anchors"} | row for row in _directions(made, config.sizes.n_draws, report)]
    return _marked(tidy(material.labels | row for row in rows), finalists, rule)


def select(material: Experiment, layer: int) -> tuple[pd.DataFrame, GuardConfiguration]:
    """The grid on validation alone, and the best of it: nothing of the test split is looked at."""
    _, grid, rows = _validated(material, _ingredients(material, layer))
    table = tidy(material.labels | row for row in rows)
    (best, *_), _ = choose(table, grid)
    return table, grid[best]


def _ingredients(material: Experiment, layer: int) -> AnchorFits:
    return AnchorFits(traced_anchors(material), layer, material.is_paired)


def _validated(material: Experiment, made: AnchorFits) -> tuple[Guard, list[GuardConfiguration], list[dict]]:
    """The place that the grid begins at, the grid, and its rows."""
    base = Guard(made.direction(), (made.layer,))
    grid = list(readings_grid.readings_grid(material, made, base))
    modalities, n = material.config.sizes.grid_modalities, len(material.queries["validation"])
    n_different = len({one.key(modalities[0]) for one in grid})
    shown = f"{len(grid)} configurations ({parts(grid)}), {n_different} of them different"
    Console(stderr=True).print(f"readings: {shown}; {len(modalities)} modalities, {n} prompts each", soft_wrap=True)
    return base, grid, _measured(material, "validation", grid)


def _measured(material: Experiment, split: str, readings: Sequence[GuardConfiguration]) -> list[dict]:
    """Rows of every reading in every modality."""
    modalities, rows = material.config.sizes.grid_modalities, []
    n_runs = sum(1 + len({one.key(name) for one in readings}) for name in modalities)
    with phase(f"readings, {split}", n_runs * len(material.queries[split])) as report:
        for name in modalities:
            rows += _SplitRunner(material, split, name).measure(readings, report)
    return [{"split": split} | row for row in rows]


class _SplitRunner:
    """A split in one modality, with what every configuration is measured against."""

    def __init__(self, material: Experiment, split: str, modality: str):
        self.material, self.split, self.modality = material, split, modality
        self.prompts: list[Prompt] = material.prompts(split, modality)
        self._read: dict[tuple[str, str], Reference] = {}

    def measure(self, readings: Sequence[GuardConfiguration], report: Callable[[int], None]) -> list[dict]:
        """Rows of every reading; each guard is run once, however many parts of the grid it stands in."""
        states = [self._states(one) for one in readings]
        keys = [one.key(self.modality) for one in readings]
        first = [keys.index(key) for key in dict.fromkeys(keys)]
        unguarded, *found = self.material.asker.ride(
            self.prompts,
            [None, *(readings[i].guard for i in first)],
            [None, *(states[i] for i in first)],
            report,
        )
        by_key = dict(zip(dict.fromkeys(keys), found, strict=True))
        name = reference_for(self.modality)
        texts = self._reference(name, "vlm_text").texts
        verdict = answer_of_text(self.material.asker, self.prompts, texts, self.material.judges[0].refuses)
        setting = "control" if any(one.setting == "control" for one in readings) else "compared"
        bounds = {"unguarded": (unguarded, None), "text_verdict": (verdict, name)}
        rows = [
            {"setting": setting, "defence": defence, "reference": reference} | row
            for defence, (outcome, reference) in bounds.items()
            for row in self._rows(outcome, unguarded, setting)
        ]
        random = [by_key[key] for one, key in zip(readings, keys, strict=True) if one.guard.control == "random"]
        for one, key, read in zip(readings, keys, states, strict=True):
            about = one.about(self.modality)
            found = by_key[key]
            rows += [about | row for row in (*self._rows(found, unguarded, one.setting), *self._extra(one, read))]
            if one.setting in TESTED:
                rows.append(about | self._over_random(found, random))
        return [{"modality": self.modality} | row for row in rows]

    def _reference(self, name: str, source: str) -> Reference:
        if (name, source) not in self._read:
            self._read[name, source] = read_references(self.material, self.prompts, name, source)
        return self._read[name, source]

    def _states(self, one: GuardConfiguration) -> Float[Tensor, "prompt layer d_model"]:
        """Of each prompt's reference, or of the one that it is dealt."""
        states = self._reference(one.reference_in(self.modality), one.source).states
        if one.deal is None:
            return states
        is_harmful = harmful_among(self.prompts)
        dealt = torch.empty(len(states), dtype=torch.long)
        for label in (True, False):
            mine = (is_harmful == label).nonzero()[:, 0]
            theirs = mine.roll(1) if one.deal == "same" else (is_harmful != label).nonzero()[:, 0]
            dealt[mine] = theirs[torch.arange(len(mine)) % len(theirs)]
        return states[dealt]

    def _rows(self, found: Outcome, unguarded: Outcome, setting: str) -> Iterator[dict]:
        """By both judges where it counts."""
        if setting in TESTED:
            yield from measured(self.material, self.prompts, found)
        else:
            yield from judged(self.prompts, found.answers, self.material.judges[0])
            yield from first_token(self.prompts, found)
        gain = (found.refusal_score - unguarded.refusal_score)[harmful_among(self.prompts)]
        yield mean("refusal_score_gain", gain.tolist())

    def _over_random(self, found: Outcome, random: Sequence[Outcome]) -> dict:
        """What the reading gains over changes of the same size along random vectors, on the same harmful prompts."""
        anywhere = torch.stack([one.refusal_score for one in random]).mean(0)
        return mean("refusal_score_over_random", (found.refusal_score - anywhere)[harmful_among(self.prompts)].tolist())

    def _extra(self, one: GuardConfiguration, states: Tensor) -> Iterator[dict]:
        """How far the state moves, on harmful prompts; and the gate as a classifier."""
        guard, (layer,) = one.guard, one.guard.layers
        if guard.positions in ("last_prefill", "last"):
            resid = self._own[:, layer, None]
            everywhere, is_open = torch.ones(len(resid), 1, dtype=torch.bool), guard.opens(states)
            changed = guard.change(resid, layer, states[:, layer], everywhere, is_open)
            yield mean("delta_norm", delta_norm(changed, resid)[harmful_among(self.prompts), 0].tolist())
        if one.setting in ("gate", "reference"):
            yield from gate_rates(guard, self.prompts, states)

    @cached_property
    def _own(self) -> Float[Tensor, "prompt layer d_model"]:
        traced = self.material.activations(self.split, self.modality)
        return torch.from_numpy(traced.resid_post.sel(token="last").values)


def choose(table: pd.DataFrame, grid: Sequence[GuardConfiguration]) -> tuple[list[int], str]:
    """Places in the grid of the best honest readings on validation, one of each rule; and how chosen.

    Raises:
        LookupError: none was measured as a whole.
    """
    table, standings = first_judge(table), []
    for place, one in enumerate(grid):
        if one.is_honest:
            standings.append({"place": place, "rule": one.guard.rule} | judged_selection_metrics(rows_of(table, one)))
    ranked, rule = rank(standings)
    return ranked.drop_duplicates("rule").place[:N_FINALISTS].tolist(), rule


def _marked(table: pd.DataFrame, finalists: Sequence[GuardConfiguration], rule: str) -> pd.DataFrame:
    marks = pd.Series(None, index=table.index, dtype=object)
    for place, one in enumerate(finalists):
        marks[rows_of(table, one).index] = f"{rule}, finalist {place + 1}"
    return tidy(table.assign(selection_rule=marks).to_dict("records"))


def chosen_reading(table: pd.DataFrame, material: Experiment) -> GuardConfiguration:
    """The first finalist of a finished study, made again.

    Raises:
        LookupError: the table marks none.
    """
    marked = table[table.selection_rule.fillna("").str.endswith("finalist 1")]
    made = _ingredients(material, int(table[table.setting == "control"].layer.dropna().iloc[0]))
    for one in readings_grid.readings_grid(material, made, Guard(made.direction(), (made.layer,))):
        if one.is_honest and len(rows_of(marked, replace(one, setting="finalists"))):
            return one
    raise LookupError("the table marks no finalist that its grid holds; run the study again")


def _directions(made: AnchorFits, n_draws: int, report: Callable[[int], None]) -> Iterator[dict]:
    """Bootstrap stability of each estimator, and cosines to the paper's direction, layer by layer."""
    base, anchors = made.direction(), made.anchors["vlm_text"]
    n = {"n": anchors.sizes["prompt"]}
    for estimator in made.estimators:
        about = {"setting": "directions", "token": "last", "source": "vlm_text", "estimator": estimator, "rank": 1} | n
        yield from _by_layer(about, "stability", stability(anchors, estimator, n_draws=n_draws))
        yield from _by_layer(about, "cosine", alignment(made.direction(estimator).basis, base.basis))
        report(1)
    about = {"setting": "directions", "source": "vlm_text", "estimator": made.estimator, "rank": 1} | n
    instruction = made.direction(token="instruction")
    yield from _by_layer(about | {"token": "instruction"}, "cosine", alignment(instruction.basis, base.basis))
    if "llm" in made.anchors:
        told = about | {"token": "last", "source": "llm"}
        yield from _by_layer(told, "cosine", alignment(made.direction(source="llm").basis, base.basis))
    for layer, explained in enumerate(base.explained[:, 0].tolist()):
        yield about | {"token": "last", "layer": layer, "metric": "explained_variance", "value": explained}


def _by_layer(about: dict, metric: str, values: Tensor) -> Iterator[dict]:
    for layer, value in enumerate(values.tolist()):
        yield about | {"layer": layer, "metric": metric, "value": value}
