"""A picture attack: projected gradient descent on the pixels, bounded in every one of them.

What is changed is the picture itself, in steps of 8 bits, so that the attacked picture is an ordinary file that goes
through the model's own processor.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from interp import LLM, Prompt, collate, log_probabilities
from interp.pictures import open_picture
from studies.attacks.search import Advance, AttackSetupError, Found, Improvement, check_budget
from studies.attacks.target import AttackTarget, expected_refusal
from studies.bookkeeping.checkpoints import Checkpoints
from studies.generation.cached_model import CachedModel
from studies.generation.first_token import refusal_scores
from studies.generation.openings import Opening, RefusalOpenings

Pixels = UInt8[np.ndarray, "height width 3"]
Gradient = Callable[[Float[Tensor, "3 height width"], int], tuple[float, Float[Tensor, "3 height width"]]]
"""The loss of pixels from 0 to 1 and its gradient, given the number of the step."""
LEVELS = 255
EPSILON = 16
"""Largest change of a pixel, in 8-bit levels, as in Qi et al. (arXiv:2306.13213)."""
STEP = 2
"""Change of a pixel in one step, in the same levels."""
N_RECORDS = 20
"""States that are kept of a search: it resumes from them, and success is reported after as many queries at best."""
ROWS = 8
"""Prompts whose gradient is computed together; the states of all layers are kept until it is."""
SAME_PIXELS = 1e-2
"""Largest difference of the processor's pixel values from ours."""


@dataclass(frozen=True)
class Descent:
    """The state of a descent."""

    pixels: Pixels
    """The picture at which the next step is taken."""
    trace: tuple[Improvement[Pixels], ...]
    """The best pixels so far at every record."""
    n_queries: int
    """Gradients computed; each is a query."""


def descend(
    gradient: Gradient,
    start: Pixels,
    budget: int,
    resumed: Descent | None = None,
    save: Callable[[Descent], None] = lambda descent: None,
    advance: Advance = lambda n_queries: None,
    epsilon: int = EPSILON,
) -> Found[Pixels]:
    """Lower a loss by signed gradient steps within `epsilon` levels of the start (PGD, Madry et al. 2017, eq. 2).

    Args:
        gradient: one call is a query.
        start: the picture.
        budget: number of steps.
        resumed: the state of a descent that was stopped.
        save: called with every record.
        advance: progress callback.
        epsilon: largest change of a pixel, in 8-bit levels.

    Raises:
        AttackSetupError: the budget is 0.
    """
    check_budget(budget)
    low, high = (np.clip(start.astype(int) + sign * epsilon, 0, LEVELS) for sign in (-1, 1))
    state = resumed or Descent(start, (), 0)
    advance(min(state.n_queries, budget))
    best = state.trace[-1] if state.trace else None
    for step in range(state.n_queries, budget):
        own = state.pixels
        loss, slope = gradient(torch.from_numpy(own.transpose(2, 0, 1)).float() / LEVELS, step)
        if best is None or loss < best.score:
            best = Improvement(step + 1, own, loss)
        change = STEP * slope.sign().int().cpu().numpy().transpose(1, 2, 0)
        state = replace(state, pixels=np.clip(own - change, low, high).astype(np.uint8), n_queries=step + 1)
        if step == 0 or (step + 1) % max(1, budget // N_RECORDS) == 0 or step + 1 == budget:
            state = replace(state, trace=(*state.trace, best))
            save(state)
        advance(1)
    return Found(_without_repetitions(state.trace), budget)


def _without_repetitions(trace: Sequence[Improvement[Pixels]]) -> tuple[Improvement[Pixels], ...]:
    return tuple({step.n_queries: step for step in trace}.values())


def write_descent(descent: Descent, checkpoints: Checkpoints, name: str) -> None:
    """Save the state of a descent."""
    steps = descent.trace
    arrays = {"pixels": descent.pixels, "n_queries": np.array([descent.n_queries])}
    arrays |= {"candidates": np.stack([step.candidate for step in steps])}
    arrays |= {"found_after": np.array([step.n_queries for step in steps])}
    checkpoints.write(name, arrays | {"scores": np.array([step.score for step in steps])})


def read_descent(checkpoints: Checkpoints, name: str) -> Descent | None:
    """Read the state of a descent; None if there is none."""
    saved = checkpoints.read(name)
    if saved is None:
        return None
    steps = zip(saved["found_after"].tolist(), saved["candidates"], saved["scores"].tolist(), strict=True)
    trace = tuple(Improvement(n, pixels, score) for n, pixels, score in steps)
    return Descent(saved["pixels"], trace, int(saved["n_queries"][0]))


@dataclass(frozen=True, eq=False)
class PixelGradient:
    """The gradient of a defence's refusal at the pixels of one picture that all prompts share."""

    target: AttackTarget
    model: CachedModel
    prompts: Sequence[Prompt]
    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]

    @classmethod
    def of(cls, target: AttackTarget, model: CachedModel, prompts: Sequence[Prompt], start: Pixels) -> "PixelGradient":
        """Check that the processor does to the picture what is differentiated here: scale, shift, and nothing else.

        Args:
            target: the defence that the attacker goes through.
            model: the attacked model.
            prompts: one batch of requests; all of them get the picture.
            start: a picture of the size that the model sees.

        Raises:
            AttackSetupError: a text-only model, or a processor that also resizes, cuts or rearranges pictures.
        """
        vlm = model.vlm
        if isinstance(vlm, LLM):
            raise AttackSetupError(
                f"{vlm.name!r} is a text-only model; a picture attack needs a VLM: choose other attacks"
            )
        processor = vlm.processor.image_processor
        mean, std = (
            torch.tensor(getattr(processor, name, None) or [0.5] * 3).float()[:, None, None]
            for name in ("image_mean", "image_std")
        )
        gradient = cls(target, model, prompts, mean, std)
        given = collate(vlm, [with_pixels(prompts[0], start)]).get("pixel_values")
        ours = gradient.pixel_values(torch.from_numpy(start.transpose(2, 0, 1).copy()).float() / LEVELS, 1)
        if given is None or given.shape != ours.shape or (given.float().cpu() - ours).abs().max() > SAME_PIXELS:
            raise AttackSetupError(
                f"the processor of {vlm.name!r} does more to a picture of {start.shape[0]} pixels than to scale it; a "
                "picture attack can't be differentiated there: choose other attacks"
            )
        return gradient

    def pixel_values(self, pixels: Float[Tensor, "3 height width"], n: int) -> Float[Tensor, "n 3 height width"]:
        """Return what the processor makes of the picture, n times."""
        return ((pixels - self.mean) / self.std).expand(n, *pixels.shape)

    def __call__(
        self, pixels: Float[Tensor, "3 height width"], step: int
    ) -> tuple[float, Float[Tensor, "3 height width"]]:
        """Return the mean of `expected_refusal` over the prompts, and its gradient.

        Screens have no say in it, since what they read does not depend on the picture, or not in a way that is
        differentiated. Where a guard is drawn at random, they take turns.

        Raises:
            AttackSetupError: the model gives no gradient.
        """
        pixels = pixels.clone().requires_grad_()
        total, slope = 0.0, torch.zeros_like(pixels)
        with frozen(self.model.vlm.model):
            for start in range(0, len(self.prompts), ROWS):
                loss = self.loss(pixels, self.prompts[start : start + ROWS], step) / len(self.prompts)
                if not loss.requires_grad:
                    raise AttackSetupError(
                        f"{self.model.vlm.name!r} gives no gradient at its pixels, which a picture attack needs; "
                        "choose other attacks"
                    )
                slope += torch.autograd.grad(loss, pixels)[0]
                total += loss.item()
        return total, slope

    def loss(self, pixels: Float[Tensor, "3 height width"], prompts: Sequence[Prompt], step: int) -> Float[Tensor, ""]:
        """Return the sum of `expected_refusal` over some prompts that get these pixels.

        Args:
            pixels: from 0 to 1.
            prompts: one batch.
            step: decides which guard takes its turn.
        """
        vlm, target = self.model.vlm, self.target
        batch = collate(vlm, target.shown(vlm, prompts))
        batch["pixel_values"] = self.pixel_values(pixels, len(prompts)).to(batch["pixel_values"])
        guard, states = target.guards[step % len(target.guards)], target.states(self.model, prompts)
        with guard.on(vlm, states) if guard else nullcontext():
            logits = vlm.model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
        scores = refusal_scores(log_probabilities(logits), first_tokens(self.model.openings))
        return expected_refusal(scores[None]).sum().cpu()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keep nothing for gradients of weights inside the block; those need the states of every layer."""
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_()


def first_tokens(openings: RefusalOpenings) -> RefusalOpenings:
    """Return the first token of every opening as an opening: one pass tells of them all."""
    first = dict.fromkeys(opening.tokens[0] for opening in openings.openings)
    return RefusalOpenings(tuple(Opening((token,)) for token in first))


def pixels_of(prompt: Prompt) -> Pixels:
    """Return the pixels of a prompt's first picture."""
    return np.array(open_picture(prompt.pictures[0]).convert("RGB"))


def with_pixels(prompt: Prompt, pixels: Pixels) -> Prompt:
    """Return the prompt with another picture in place of its own."""
    return replace(prompt, pictures=(Image.fromarray(pixels),))
