"""Measure the variants of a model that is built, one after the other, and keep its card up to date."""

from pathlib import Path

from interp import LLM, VLM
from studies.llava_qwen import build, card, evaluation
from studies.llava_qwen.built_model import BuiltModel
from studies.llava_qwen.evaluation import BASE


def measure(
    model: BuiltModel, texts: card.CardTexts, recipe, variants: list[str], split: str, base: Path | None
) -> None:
    """Measure variants, and the LLM before them if they share one; the card is rewritten after each.

    Args:
        model: the model.
        texts: what its card says beside the measurements.
        recipe: the recipe that trained it.
        variants: names of its variants.
        split: the split.
        base: file of the LLM, if it is at hand.
    """
    folders = {variant: build.get(model, variant, base) for variant in variants}
    done = {(rate.variant, rate.split) for rate in card.read_rates(model.weights)}
    for variant, folder in folders.items():
        llm = LLM.from_pretrained(model.llm_path(variant))
        if not model.own_alignment and (BASE, split) not in done:
            card.record(model, texts, evaluation.measure(BASE, llm, llm, split), recipe)
            done.add((BASE, split))
        card.record(model, texts, evaluation.measure(variant, VLM.from_pretrained(folder), llm, split), recipe)
