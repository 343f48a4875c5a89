"""Our counterparts of a preset's published numbers, measured on a model that is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from interp import LLM, VLM, Prompt, trace
from interp.detectors import first_tokens, hidden_detect
from interp.related_methods import arditi_ablation
from probes import auroc_interval
from studies import benchmarks
from studies.bookkeeping.progress import phase
from studies.defences.defence import NEIGHBOUR, Defence
from studies.defences.guarded import guarded
from studies.experiment.shipped_models import shipped_model
from studies.generation.generate import Generation
from studies.judges import Judge
from studies.presets.directions import compare_directions
from studies.presets.plan import seconds_for
from studies.presets.preset import Answers, Target
from studies.presets.refusal_direction import (
    as_direction,
    cosine_at,
    drawn_anchors,
    mean_differences,
    read_published,
    told_apart,
)
from studies.presets.reproduction import ABLATION, Reproduction
from studies.presets.verdicts import Result

RATES = ("asr", "harm_rate")
Place = tuple[str | int | None, ...]
"""Where a number belongs: for a rate its data, metric, modality, defence, category and judge; for others data, measure
and layer."""


@dataclass(frozen=True)
class Measuring:
    """A preset's measurements on a model."""

    reproduction: Reproduction
    model: VLM | LLM

    def directions(self) -> dict[Place, Result]:
        """Compare the direction as text with the one with a blank picture."""
        part = self.reproduction.preset.directions
        if part is None or not self.reproduction.has(part.data):
            return {}
        pairs = self.reproduction.queries(part.data)
        layers = [layer for layer in part.layers if layer < self.model.n_layers]
        with phase("directions", 2 * len(pairs)) as report:
            blank = self.reproduction.blank(part.blank)
            found = compare_directions(self.model, pairs, layers, blank, report) if layers else {}
        return {(part.data, measure, layer): result for (measure, layer), result in found.items()}

    def refusal_direction(self) -> tuple[dict[Place, Result], tuple[Defence, ...]]:
        """Compare the refusal direction with the published one; return the model without it as a defence, too."""
        part, reproduction = self.reproduction.preset.refusal_direction, self.reproduction
        if part is None or not reproduction.has(part.harmful, part.harmless):
            return {}, ()
        classes = ([record.query for record in reproduction.records(name)] for name in (part.harmful, part.harmless))
        anchors = drawn_anchors(*classes, min(part.n, reproduction.n_requests or part.n), part.seed)
        generation = Generation(1, reproduction.batch_size)
        kept = told_apart(self.model, anchors, part.refusal_tokens, generation)
        with phase("refusal direction", len(kept)) as report:
            differences = mean_differences(self.model, kept, part.position, report)
        layer = min(part.layer, self.model.n_layers - 1)
        guard = arditi_ablation(as_direction(differences[layer], self.model.n_layers), layer)
        defences = (guarded(guard, "prompt_text", name=ABLATION, kind=NEIGHBOUR),)
        if not reproduction.has(part.published) or part.layer >= self.model.n_layers:
            return {}, defences
        theirs = read_published(reproduction.path(part.published), part, self.model.n_layers, self.model.d_model)
        value = cosine_at(part.layer, differences, theirs)
        return {(part.published, "cosine", part.layer): Result(value, value, value, len(kept))}, defences

    def detection(self) -> dict[Place, Result]:
        """Measure how well HiddenDetect tells the classes of each set apart."""
        part, results = self.reproduction.preset.detection, {}
        for each in part.sets if part else ():
            if not self.reproduction.has(each.harmful, each.harmless):
                continue
            prompts = [*self._published(each.harmful, harmful=True), *self._published(each.harmless, harmful=False)]
            layers = [layer for layer in part.layers if layer < self.model.n_layers]
            if len(layers) < 2:
                continue
            with phase(f"detection, {each.name}", len(prompts)) as report:
                states = trace(self.model, prompts, layers=layers, advance=report)
            scores = hidden_detect(self.model, states, first_tokens(self.model, part.words), layers)
            interval = auroc_interval(states.harmful.values.astype(bool), scores)
            results[each.name, "auroc", None] = Result(*interval, n=len(scores))
        return results

    def _published(self, name: str, harmful: bool) -> list[Prompt]:
        """Return the prompts of one class of a set, as they are published."""
        records = [record for record in self.reproduction.records(name) if record.query.harmful == harmful]
        return [record.prompt() for record in records[: self.reproduction.n_requests]]

    def answers(
        self, part: Answers, judges: Sequence[Judge], defences: Sequence[Defence], console: Console
    ) -> dict[Place, Result]:
        """Measure the rates of a part's answers, and say first how long they take at most."""
        reproduction, options = self.reproduction, self.reproduction.benchmarks(part)
        if options is None:
            return {}
        options, generation = options.for_model(self.model), reproduction.generation(part)
        groups = benchmarks.prompts_by_kind(options, self.model.picture_size)
        seconds = seconds_for(self.model, groups, generation) * len(part.defences)
        console.print(f"answers: at most {seconds / 60:.1f} minutes, from a timed batch of each kind", soft_wrap=True)
        own = shipped_model(reproduction.model)
        weights = benchmarks.checkpoint_identity(self.model, str(own.vlm) if own else reproduction.model)
        anchors = reproduction.queries(part.anchors) if part.anchors and reproduction.has(part.anchors) else ()
        extra = [defence for defence in defences if defence.name in part.defences]
        folder = reproduction.answer_folder(part)
        found = benchmarks.run(self.model, weights, options, judges, folder, generation, anchors=anchors, extra=extra)
        names = {reproduction.preset.dataset(name).benchmark or name: name for name in part.data}
        results = {}
        for row in found.table[found.table.metric.isin(RATES)].itertuples():
            category = row.category if isinstance(row.category, str) else ""
            place = (names.get(row.dataset, row.dataset), row.metric, row.modality, row.defence, category)
            if row.n:
                result = Result(row.value, row.ci_low, row.ci_high, int(row.n), row.judge)
                results[*place, row.judge.split("@")[0]] = result
        return results


def counterpart(target: Target, results: Mapping[Place, Result]) -> Result | None:
    """Return our counterpart of a published number, by the same judge if it has judged; None if there is none."""
    if target.measure != "rate":
        return results.get((target.data, target.measure, target.layer))
    place = (target.modality, target.defence, target.category)
    # What judges call harmful stands apart from attack success only where it can be another number.
    by_judge = {}
    for metric in ("asr", target.metric):
        by_judge |= {key[-1]: each for key, each in results.items() if key[:-1] == (target.data, metric, *place)}
    return by_judge.get(target.judge) or next(iter(by_judge.values()), None)
