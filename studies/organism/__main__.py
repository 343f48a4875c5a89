"""`python -m studies.organism`: trains the built-in model from nothing, measures it, rewrites its card."""

import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import typer

from interp.vlm import VLM
from studies.organism import FOLDER, card
from studies.organism.train import Recipe, train

SCRATCH = Path("results/organism")


def main(
    seed: Annotated[int, typer.Option(help="Any seed but the shipped one leaves the shipped weights alone.")] = 0,
    split: Annotated[list[str], typer.Option(help="Splits to measure; test only for a checkpoint to be released.")] = (
        "validation",
        "test",
    ),
) -> None:
    """Trains one seed. The shipped seed's weights go into the package; of others only the figures are kept.

    A run that was stopped goes on after the last course that it finished (results/organism/).
    """
    warnings.filterwarnings("ignore")
    recipe = Recipe(seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = FOLDER if seed == Recipe().seed else Path(scratch)
        train(recipe, folder, SCRATCH)
        vlm = VLM.from_pretrained(folder / "vlm")
        splits = split if seed == Recipe().seed else ["validation"]
        found = [m for name in splits for m in card.measure(vlm, name, seed)]
    card.record(FOLDER, found, Recipe())
    print((FOLDER / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
