"""Measure the variants of a model that is built, one after the other, and keep its card up to date."""

from pathlib import Path

from interp import LLM, VLM
from studies.llava_qwen import base_model, build, card, evaluation
from studies.llava_qwen.built_model import BuiltModel
from studies.llava_qwen.evaluation import BASE


def measure(
    model: BuiltModel, texts: card.CardTexts, recipe, variants: list[str], split: str, base: Path | None
) -> None:
    """Measure the LLM as it came, then variants; the card is rewritten after each.

    Args:
        model: the model.
        texts: the card's texts around the measurements.
        recipe: the recipe that trained it.
        variants: names of its variants.
        split: the split.
        base: file of the LLM, if it is at hand.

    Raises:
        ValueError: a variant does not exist.
    """
    folders = {variant: build.get(model, model.variant_of(f"{model.alias}:{variant}"), base) for variant in variants}
    if not any((rate.variant, rate.split) == (BASE, split) for rate in card.read_rates(model.weights)):
        llm = LLM(*build.dequantised(base_model.find(model.folder, model.base, base)), BASE)
        card.record(model, texts, evaluation.measure(BASE, llm, llm, split), recipe)
    for variant, folder in folders.items():
        llm = LLM.from_pretrained(model.llm_path(variant))
        card.record(model, texts, evaluation.measure(variant, VLM.from_pretrained(folder), llm, split), recipe)
