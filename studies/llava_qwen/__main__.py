"""`python -m studies.llava_qwen`: train what `llava-qwen-0.5b` adds to its LLM, and measure it."""

from pathlib import Path
from typing import Annotated

import typer

from interp import LLM, VLM
from studies import llava_qwen
from studies.llava_qwen import base_model, build, card, evaluation
from studies.llava_qwen.train import VisualRecipe, train

SCRATCH = Path("results/llava_qwen")


def main(
    base: Annotated[Path | None, typer.Option(help="File of the LLM; downloaded by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training; only seed 0 replaces the weights that ship.")] = 0,
    variant: Annotated[
        list[str], typer.Option(help="Variant to measure; repeatable. By default all that are trained.")
    ] = (),
    split: Annotated[str, typer.Option(help="Split to measure: validation, or test for a release.")] = "validation",
    only_measure: Annotated[bool, typer.Option(help="Measure the weights that are there; train nothing.")] = False,
) -> None:
    """Train all variants, measure them, and rewrite the card; an interrupted run resumes (results/llava_qwen/).

    Args:
        base: see its help, as for the others.
        seed: seed of the training.
        variant: variants to measure.
        split: split to measure.
        only_measure: whether training is left out.
    """
    recipe, is_shipped = VisualRecipe(seed=seed), seed == VisualRecipe().seed
    folder = llava_qwen.WEIGHTS if is_shipped else SCRATCH / f"seed{seed}"
    if not only_measure:
        llm, tokenizer = build.dequantised(base_model.find(llava_qwen.cache() / llava_qwen.ALIAS, base))
        tokenizer.padding_side = "left"
        train(recipe, llm, tokenizer, folder, SCRATCH)
    if is_shipped:
        measure(recipe, variant or llava_qwen.VARIANTS, split, base)


def measure(recipe: VisualRecipe, variants: list[str] | tuple[str, ...], split: str, base: Path | None) -> None:
    """Measure variants and the untouched LLM, one after the other, and rewrite the card after each.

    Args:
        recipe: the recipe that trained them.
        variants: their names.
        split: the split.
        base: file of the LLM, if it is at hand.
    """
    folders = {variant: build.get(base, variant) for variant in variants}
    llm, done = LLM.from_pretrained(llava_qwen.llm_path()), card.read_rates(llava_qwen.WEIGHTS)
    if not any((rate.variant, rate.split) == (evaluation.BASE, split) for rate in done):
        card.record(llava_qwen.WEIGHTS, evaluation.measure(evaluation.BASE, llm, llm, split), recipe)
    for variant, built in folders.items():
        rates = evaluation.measure(variant, VLM.from_pretrained(built), llm, split)
        card.record(llava_qwen.WEIGHTS, rates, recipe)


if __name__ == "__main__":
    typer.run(main)
