"""`python -m studies.llava_qwen`: train what `llava-qwen-0.5b` adds to its LLM."""

from pathlib import Path
from typing import Annotated

import typer

from studies import llava_qwen
from studies.llava_qwen import base_model, build
from studies.llava_qwen.train import VisualRecipe, train

SCRATCH = Path("results/llava_qwen")


def main(
    base: Annotated[Path | None, typer.Option(help="File of the LLM; downloaded by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training; only seed 0 replaces the weights that ship.")] = 0,
) -> None:
    """Train all variants; an interrupted run resumes (results/llava_qwen/)."""
    llm, tokenizer = build.dequantised(base_model.find(llava_qwen.cache() / llava_qwen.ALIAS, base))
    tokenizer.padding_side = "left"
    folder = llava_qwen.WEIGHTS if seed == VisualRecipe().seed else SCRATCH / f"seed{seed}"
    train(VisualRecipe(seed=seed), llm, tokenizer, folder, SCRATCH)


if __name__ == "__main__":
    typer.run(main)
