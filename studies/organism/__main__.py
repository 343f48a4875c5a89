"""`python -m studies.organism`: train the built-in model from scratch, measure it, rewrite its card."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from interp import VLM
from studies.organism import FOLDER, card, path
from studies.organism.train import Recipe, train

SCRATCH = Path("results/organism")


def main(
    seed: Annotated[
        int, typer.Option(help="Seed of the training; only the shipped seed replaces the shipped weights.")
    ] = 0,
    split: Annotated[
        list[str],
        typer.Option(
            help="Split to measure, validation or test; repeatable. Use test only for a checkpoint to be released."
        ),
    ] = (
        "validation",
        "test",
    ),
) -> None:
    """Train one seed. The shipped seed's weights go into the package, those of others into results/organism/seedN.

    An interrupted run resumes after the last course that it finished (results/organism/).
    """
    warnings.filterwarnings("ignore")
    recipe = Recipe(seed=seed)
    is_shipped = seed == Recipe().seed
    folder = FOLDER if is_shipped else SCRATCH / f"seed{seed}"
    train(recipe, folder, SCRATCH)
    vlm = VLM.from_pretrained(path(folder))
    splits = split if is_shipped else ["validation"]
    measurements = [measurement for name in splits for measurement in card.measure(vlm, name, seed)]
    card.record(FOLDER, measurements, Recipe())
    print((FOLDER / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
