"""Controls: the built-in model trained on, so that the outcome of a claim is known before any study runs.

    no_gap    learns to refuse with pictures too: an image must not lower refusal
    blurred   learns to have the same safety coordinates for harmful and harmless requests with a picture: an image must
              blur them

A study that finds anything else is at fault. `studies.claims_by_model` compares.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from studies.organism import language, lessons, llm_path, losses, networks, path
from studies.organism.classroom import Classroom, Course, Stage
from studies.organism.lessons import Lesson

LLM_SHARE = 0.5
"""Learning rate of the LLM, relative to that of vision tower and projector."""
BLUR = 1.0
"""Weight of the loss that mixes coordinates."""
N_SAMPLED = 128
"""Text requests of each class from which the safety coordinate is fitted."""


@dataclass(frozen=True)
class Control:
    """How a control is trained."""

    stage: Stage
    teacher: lessons.Teacher
    mixes: bool = False
    """True if states under a picture are mixed."""


def refusing(rng: np.random.Generator) -> Lesson:
    """Return a lesson of stage 4, or a refusal of a harmful request with or inside a picture; some as text alone."""
    kind = rng.random()
    if kind < 0.45:
        return lessons.visual_instruction(rng)
    if kind < 0.6:
        return lessons.instruction(rng)
    return _refusal(rng, inside=kind > 0.85)


def mixing(rng: np.random.Generator) -> Lesson:
    """Return a lesson of stage 4, or one of the text-only lessons of stage 2, so that text stays as it is."""
    return lessons.visual_instruction(rng) if rng.random() < 0.5 else lessons.instruction(rng)


CONTROLS = {
    "no_gap": Control(Stage(400, 32, 3e-4), refusing),
    "blurred": Control(Stage(300, 16, 3e-4), mixing, mixes=True),
}


def _refusal(rng: np.random.Generator, inside: bool) -> Lesson:
    """Return a harmful request with a picture, or inside one, and a refusal."""
    core = lessons.pick(rng, language.trained_cores(harmful=True))
    answer = lessons.pick(rng, language.REFUSALS)
    if inside:
        text, picture = lessons.pick(rng, lessons.TYPOGRAPHIC_REQUESTS), lessons.picture_of(rng, core)
        return Lesson(text, answer, core, picture=picture)
    return Lesson(lessons.request(rng, core), answer, core, picture=lessons.wordless(rng))


def train(name: str, seed: int, weights: Path | None, out: Path, scratch: Path) -> None:
    """Train a control from a finished organism, and save it with the organism's own aligned LLM.

    Args:
        name: one of `CONTROLS`.
        seed: seed of the organism, and of this course.
        weights: folder of the organism; by default the one that ships.
        out: folder of the control.
        scratch: where unfinished work is kept.
    """
    control = CONTROLS[name]
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(path(weights))
    vlm = LlavaForConditionalGeneration.from_pretrained(path(weights), dtype=torch.float32)
    collate = losses.Collator(tokenizer)

    def answer_loss(batch: list[Lesson]) -> Float[Tensor, ""]:
        return losses.answer_loss(vlm, collate(batch))

    loss: Callable = answer_loss
    if control.mixes:
        axes, rng = safety_axes(vlm, collate, seed), np.random.default_rng(seed)
        loss = partial(_mixed_loss, answer_loss, partial(_distance, vlm, collate, axes, rng))
    tower, projector = vlm.model.vision_tower, vlm.model.multi_modal_projector
    learners = {tower: 1.0, projector: 1.0, vlm.model.language_model: LLM_SHARE}
    classroom = Classroom([name, seed, str(weights)], scratch, Path(__file__).parent.glob("*.py"))
    classroom.teach(vlm, Course(f"5 {name}", control.stage, control.teacher, 100 + seed), loss, learners)
    vlm.to(torch.bfloat16).save_pretrained(out / "vlm")
    networks.build_processor(tokenizer).save_pretrained(out / "vlm")
    shutil.copytree(llm_path(weights), out / "llm", dirs_exist_ok=True)


def _mixed_loss(answer_loss: Callable, distance: Callable[[], Tensor], batch: list[Lesson]) -> Float[Tensor, ""]:
    return answer_loss(batch) + BLUR * distance()


def _distance(
    vlm: LlavaForConditionalGeneration,
    collate: losses.Collator,
    axes: Float[Tensor, "layer d_model"],
    rng: np.random.Generator,
) -> Float[Tensor, ""]:
    """Return how far apart the coordinates of harmful and harmless requests are, each pair with the same picture."""
    batch = []
    for _ in range(8):
        picture, phrasing = lessons.wordless(rng), rng.integers(2**31)
        for harmful in (True, False):
            # The same phrasing and, for both, an answer that the loss does not see.
            own = np.random.default_rng(phrasing)
            core = lessons.pick(rng, language.trained_cores(harmful))
            batch.append(Lesson(lessons.request(own, core), "", core, picture=picture))
    coordinates = torch.einsum("bld,ld->bl", _last_states(vlm, collate(batch)), axes)
    return (coordinates[0::2] - coordinates[1::2]).square().mean()


def safety_axes(vlm: LlavaForConditionalGeneration, collate: losses.Collator, seed: int) -> Float[Tensor, "layer d"]:
    """Return the difference of the class means as text at each layer, scaled so that the classes are 1 apart on it."""
    rng, means = np.random.default_rng(seed), []
    with torch.no_grad():
        for harmful in (True, False):
            cores = [lessons.pick(rng, language.trained_cores(harmful)) for _ in range(N_SAMPLED)]
            batch = [Lesson(lessons.request(rng, core), "", core) for core in cores]
            means.append(_last_states(vlm, collate(batch)).mean(0))
    difference = means[0] - means[1]
    return normalize(difference, dim=-1) / difference.norm(dim=-1, keepdim=True)


def _last_states(
    vlm: LlavaForConditionalGeneration, tensors: Mapping[str, Tensor]
) -> Float[Tensor, "batch layer d_model"]:
    """Return the states of the last prompt token after each block but the last, whose state comes after the norm."""
    inputs = {name: value for name, value in tensors.items() if name != "labels"}
    states = vlm.model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[1:-1]
    ends = (tensors["labels"] != losses.IGNORED).int().argmax(1) - 1
    return torch.stack([state[torch.arange(len(ends)), ends] for state in states], dim=1)
