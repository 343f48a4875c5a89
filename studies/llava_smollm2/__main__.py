"""`python -m studies.llava_smollm2`: align the LLM, train what `llava-smollm2-135m` adds to it, and measure both."""

from pathlib import Path
from typing import Annotated

import typer

from studies.llava_qwen import base_model, build, measured
from studies.llava_smollm2 import SMOLLM2
from studies.llava_smollm2.card_texts import TEXTS
from studies.llava_smollm2.train import SecondRecipe, train

SCRATCH = Path("results/llava_smollm2")


def main(
    base: Annotated[Path | None, typer.Option(help="File of the LLM; downloaded by default.")] = None,
    variant: Annotated[
        list[str], typer.Option(help="Variant to measure; repeatable. By default all that are trained.")
    ] = (),
    split: Annotated[str, typer.Option(help="Split to measure: validation, or test for a release.")] = "validation",
    only_measure: Annotated[bool, typer.Option(help="Measure the weights that are there; train nothing.")] = False,
) -> None:
    """Train both variants, measure them, and rewrite the card; an interrupted run resumes (results/llava_smollm2/).

    Args:
        base: see its help, as for the others.
        variant: variants to measure.
        split: split to measure.
        only_measure: whether training is left out.
    """
    recipe = SecondRecipe()
    if not only_measure:
        llm, tokenizer = build.dequantised(base_model.find(SMOLLM2.folder, SMOLLM2.base, base))
        train(recipe, llm, tokenizer, SMOLLM2.tower, SMOLLM2.weights, SCRATCH)
    measured.measure(SMOLLM2, TEXTS, recipe, list(variant or SMOLLM2.variants), split, base)


if __name__ == "__main__":
    typer.run(main)
