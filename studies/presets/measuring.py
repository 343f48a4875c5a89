"""Our counterparts of a preset's published numbers, measured on a model that is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from interp import LLM, VLM, Prompt, trace
from interp.detectors import first_tokens, hidden_detect
from interp.related_methods import arditi_ablation
from probes import auroc_interval
from studies.bookkeeping.progress import phase
from studies.defences.defence import NEIGHBOUR, Defence
from studies.defences.guarded import guarded
from studies.generation.generate import Generation
from studies.presets.directions import compare_directions
from studies.presets.preset import PublishedTarget
from studies.presets.refusal_direction import (
    as_direction,
    cosine_at,
    drawn_anchors,
    keep_by_refusal,
    mean_differences,
    read_published,
)
from studies.presets.reproduction import ABLATION, Reproduction
from studies.presets.verdicts import OurResult

Place = tuple[str | int | None, ...]
"""Key of a number: for a rate its data, metric, modality, defence, category and judge; else data, measure and layer."""


@dataclass(frozen=True)
class Measuring:
    """A preset's measurements on a model."""

    reproduction: Reproduction
    model: VLM | LLM

    def directions(self) -> dict[Place, OurResult]:
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

    def refusal_direction(self) -> tuple[dict[Place, OurResult], tuple[Defence, ...]]:
        """Compare the refusal direction with the published one; return the model without it as a defence, too."""
        part, reproduction = self.reproduction.preset.refusal_direction, self.reproduction
        if part is None or not reproduction.has(part.harmful, part.harmless):
            return {}, ()
        classes = ([record.query for record in reproduction.records(name)] for name in (part.harmful, part.harmless))
        anchors = drawn_anchors(*classes, min(part.n, reproduction.n_requests or part.n), part.seed)
        generation = Generation(1, reproduction.batch_size)
        # On another model their tokens mean nothing: all anchors stay, and nothing is compared.
        own = not reproduction.other_model
        kept = keep_by_refusal(self.model, anchors, part.refusal_tokens, generation) if own else anchors
        with phase("refusal direction", len(kept)) as report:
            differences = mean_differences(self.model, kept, part.position, report)
        layer = min(part.layer, self.model.n_layers - 1)
        guard = arditi_ablation(as_direction(differences[layer], self.model.n_layers), layer)
        defences = (guarded(guard, "prompt_text", name=ABLATION, kind=NEIGHBOUR),)
        if not reproduction.has(part.published) or part.layer >= self.model.n_layers:
            return {}, defences
        theirs = read_published(reproduction.path(part.published), part, self.model.n_layers, self.model.d_model)
        value = cosine_at(part.layer, differences, theirs)
        return {(part.published, "cosine", part.layer): OurResult(value, value, value, len(kept))}, defences

    def detection(self) -> dict[Place, OurResult]:
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
                store = self.reproduction.out / "states" / each.name.replace(" ", "_")
                states = trace(self.model, prompts, layers=layers, out=store, advance=report)
            scores = hidden_detect(self.model, states, first_tokens(self.model, part.words), layers)
            interval = auroc_interval(states.harmful.values.astype(bool), scores)
            results[each.name, "auroc", None] = OurResult(*interval, n=len(scores))
        return results

    def _published(self, name: str, harmful: bool) -> list[Prompt]:
        """Return the prompts of one class of a set, as they are published."""
        records = [record for record in self.reproduction.records(name) if record.query.harmful == harmful]
        return [record.prompt() for record in records[: self.reproduction.n_requests]]


def counterpart(target: PublishedTarget, results: Mapping[Place, OurResult]) -> OurResult | None:
    """Return our counterpart of a published number, by the same judge if it has judged; None if there is none."""
    if target.measure != "rate":
        return results.get((target.data, target.measure, target.layer))
    place = (target.modality, target.defence, target.category)
    # What judges call harmful stands apart from attack success only where it can be another number.
    by_judge = {}
    for metric in ("asr", target.metric):
        by_judge |= {key[-1]: each for key, each in results.items() if key[:-1] == (target.data, metric, *place)}
    return by_judge.get(target.judge) or next(iter(by_judge.values()), None)
