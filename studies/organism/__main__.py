"""`python -m studies.organism`: train the built-in model from scratch, measure it, rewrite its card."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from interp import VLM
from studies.organism import FOLDER, card, controls, path
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
    control: Annotated[
        str | None, typer.Option(help="Train a control from this seed instead: no_gap or blurred.")
    ] = None,
) -> None:
    """Train one seed. The shipped seed's weights go into the package, those of others into results/organism/seedN.

    A control goes into results/organism/CONTROL-seedN; other seeds than the shipped one have to be trained before. An
    interrupted run resumes (results/organism/).

    Args:
        seed: seed of the training.
        split: splits to measure.
        control: name of a control.
    """
    warnings.filterwarnings("ignore")
    if control is not None:
        train_control(control, seed)
        return
    recipe = Recipe(seed=seed)
    is_shipped = seed == Recipe().seed
    folder = FOLDER if is_shipped else SCRATCH / f"seed{seed}"
    train(recipe, folder, SCRATCH)
    vlm = VLM.from_pretrained(path(folder))
    splits = split if is_shipped else ["validation"]
    measurements = [measurement for name in splits for measurement in card.measure(vlm, name, seed)]
    card.record(FOLDER, measurements, Recipe())
    print((FOLDER / "README.md").read_text(encoding="utf-8"))


def train_control(name: str, seed: int) -> None:
    """Train a control from a seed of the built-in model.

    Raises:
        BadParameter: the control does not exist, or the seed has not been trained.
    """
    weights = FOLDER if seed == Recipe().seed else SCRATCH / f"seed{seed}"
    if name not in controls.CONTROLS or not path(weights).is_dir():
        names = ", ".join(controls.CONTROLS)
        raise typer.BadParameter(
            f"{name!r}, seed {seed}: expected one of {names}, and weights in {path(weights)} "
            f"(`python -m studies.organism --seed {seed}`)"
        )
    controls.train(name, seed, weights, SCRATCH / f"{name}-seed{seed}", SCRATCH)


if __name__ == "__main__":
    typer.run(main)
