"""The descent on pixels, on planted losses and on models."""

import numpy as np
import pytest
import torch

from interp.inputs import to_prompts
from studies.attacks.pictures import (
    EPSILON,
    PixelGradient,
    descend,
    pixels_of,
    read_descent,
    with_pixels,
    write_descent,
)
from studies.attacks.search import AttackSetupError
from studies.attacks.target import AttackTarget, expected_refusal
from studies.bookkeeping.checkpoints import Checkpoints
from studies.defences.defence import unguarded
from studies.generation.cached_model import CachedModel
from studies.generation.openings import Opening, RefusalOpenings

START = np.full((8, 8, 3), 128, dtype=np.uint8)
GOAL = torch.from_numpy(np.random.default_rng(0).integers(100, 156, (3, 8, 8))).float() / 255


def planted(pixels, step):
    """The loss falls to 0 where the pixels are those of a hidden picture."""
    return ((pixels - GOAL) ** 2).sum().item(), 2 * (pixels - GOAL)


def test_a_planted_weakness_is_found_within_the_bounds():
    found = descend(planted, START, 50)
    reachable = GOAL.clamp((128 - EPSILON) / 255, (128 + EPSILON) / 255)
    left = ((reachable - GOAL) ** 2).sum().item()
    # A step of two levels leaves each pixel within two levels of where it wants to be.
    assert found.trace[0].score > 4 * found.trace[-1].score
    assert found.trace[-1].score <= left + GOAL.numel() * 2 * (2 / 255) * (28 / 255)
    for step in found.trace:
        assert np.abs(step.candidate.astype(int) - 128).max() <= EPSILON and step.candidate.dtype == np.uint8


def test_a_loss_that_nothing_changes_is_not_lowered():
    found = descend(lambda pixels, step: (1.0, torch.zeros_like(pixels)), START, 20)
    assert len(found.trace) == 1 and np.array_equal(found.best, START)


def test_a_picture_stays_a_picture_at_its_limits():
    white = np.full((8, 8, 3), 255, dtype=np.uint8)
    found = descend(lambda pixels, step: (-pixels.sum().item(), -torch.ones_like(pixels)), white, 5)
    assert np.array_equal(found.best, white)


def test_a_stopped_descent_resumes_where_it_was(tmp_path):
    checkpoints, steps = Checkpoints(tmp_path, {}), []

    def stops(pixels, step):
        if step == 21:
            raise KeyboardInterrupt
        return planted(pixels, step)

    def counted(pixels, step):
        steps.append(step)
        return planted(pixels, step)

    def save(descent):
        write_descent(descent, checkpoints, "picture")

    with pytest.raises(KeyboardInterrupt):
        descend(stops, START, 40, save=save)
    resumed = descend(counted, START, 40, read_descent(checkpoints, "picture"), save)
    whole = descend(planted, START, 40)
    assert steps[0] == 20 and [step.n_queries for step in resumed.trace] == [step.n_queries for step in whole.trace]
    assert np.array_equal(resumed.best, whole.best)


@pytest.fixture
def model(tiny_vlm):
    return CachedModel(tiny_vlm, openings=RefusalOpenings((Opening((40,)), Opening((41,)))))


def test_the_loss_is_the_objective_and_its_gradient_that_of_finite_differences(model, queries):
    prompts = to_prompts(queries, "blank", model.vlm.picture_size)
    target, start = AttackTarget(unguarded()), pixels_of(prompts[0])
    noisy = np.random.default_rng(0).integers(60, 200, start.shape).astype(np.uint8)
    gradient = PixelGradient.of(target, model, prompts, start)
    pixels = torch.from_numpy(noisy.transpose(2, 0, 1)).float() / 255
    loss, slope = gradient(pixels, 0)
    attacked = [with_pixels(prompt, noisy) for prompt in prompts]
    assert loss == pytest.approx(expected_refusal(target.margins(model, attacked)).mean().item(), rel=1e-4)
    direction = slope / slope.norm()
    changes = [gradient(pixels + size * direction, 0)[0] for size in (-0.05, 0.05)]
    assert (changes[1] - changes[0]) / 0.1 == pytest.approx(slope.norm().item(), rel=0.05)


def test_a_model_without_gradients_is_an_error(model, queries):
    prompts = to_prompts(queries, "blank", model.vlm.picture_size)
    gradient = PixelGradient.of(AttackTarget(unguarded()), model, prompts, pixels_of(prompts[0]))
    pixels = torch.zeros(3, *pixels_of(prompts[0]).shape[:2])

    def without_gradient(module, args, output):
        output.logits = output.logits.detach()

    assert gradient(pixels, 0)[1].abs().max() > 0
    handle = model.vlm.model.register_forward_hook(without_gradient)
    try:
        with pytest.raises(AttackSetupError, match="gives no gradient at its pixels"):
            gradient(pixels, 0)
    finally:
        handle.remove()


def test_a_processor_that_does_more_than_scale_is_an_error(model, queries):
    prompts = to_prompts(queries, "blank", 2 * model.vlm.picture_size)
    with pytest.raises(AttackSetupError, match="does more to a picture"):
        PixelGradient.of(AttackTarget(unguarded()), model, prompts, pixels_of(prompts[0]))
