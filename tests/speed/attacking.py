"""Cost of a picture attack: one gradient step, compared with the forward pass that it needs anyway."""

import torch

from studies.attacks.pictures import ROWS, PixelGradient, pixels_of
from studies.attacks.target import AttackTarget
from studies.defences.defence import unguarded
from studies.generation.cached_model import CachedModel
from studies.generation.openings import Opening, RefusalOpenings
from tests.speed.model import Load, bench_guard, bench_vlm
from tests.speed.timing import by_turns, quartiles


def measure(rounds: int) -> list[dict]:
    """Measure how many times as long as a forward pass of the same prompts a gradient step takes, with a guard."""
    vlm = bench_vlm()
    prompts = Load(ROWS, 1).prompts(vlm)
    model = CachedModel(vlm, openings=RefusalOpenings((Opening((40,)),)))
    guard = bench_guard(vlm)

    def states(model: CachedModel, prompts: list) -> torch.Tensor:
        return model.text_states([prompt.text for prompt in prompts])

    start = pixels_of(prompts[0])
    target = AttackTarget(unguarded(), guards=(guard,), states=states)
    gradient = PixelGradient.of(target, model, prompts, start)
    pixels = torch.from_numpy(start.transpose(2, 0, 1)).float() / 255

    def forward() -> None:
        with torch.no_grad():
            gradient.loss(pixels, prompts, 0)

    seconds = by_turns({"forward": forward, "step": lambda: gradient(pixels, 0)}, rounds)
    labels = {
        "model": vlm.name,
        "n_prompts": ROWS,
        "pictures": "one shared",
        "contender": "picture attack",
        "n": rounds,
    }
    ratio = {"measure": "gradient_step_times_as_long_as_forward"}
    return [labels | ratio | quartiles(seconds["step"] / seconds["forward"])]
