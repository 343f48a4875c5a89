"""`python -m studies.llava_qwen`: train what `llava-qwen-0.5b` adds to its LLM, and measure it."""

from pathlib import Path
from typing import Annotated

import typer

from studies.llava_qwen import QWEN, base_model, build, measured
from studies.llava_qwen.card_texts import TEXTS
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
    folder = QWEN.weights if is_shipped else SCRATCH / f"seed{seed}"
    if not only_measure:
        llm, tokenizer = build.dequantised(base_model.find(QWEN.folder, QWEN.base, base))
        train(recipe, llm, tokenizer, folder, SCRATCH)
    if is_shipped:
        measured.measure(QWEN, TEXTS, recipe, list(variant or QWEN.variants), split, base)


if __name__ == "__main__":
    typer.run(main)
