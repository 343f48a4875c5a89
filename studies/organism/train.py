"""Trains the built-in model from nothing, in the order of the real thing.

1. Vision tower: which word stands in each row of a picture.
2. LLM: instructions and refusals, text only. Kept as its own checkpoint: the aligned LLM.
3. Projector and tower: transcriptions and captions, the LLM frozen.
4. Visual instruction tuning on benign data only, everything trained. This opens the safety gap.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import LlamaForCausalLM

from studies.bookkeeping.progress import phase
from studies.organism import lessons, losses, networks


@dataclass(frozen=True)
class Stage:
    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Recipe:
    """Everything that training depends on. Developed on validation."""

    seed: int = 0
    seeing: Stage = Stage(700, 32, 3e-3)
    ordering: Stage = Stage(450, 32, 1e-3)
    copying: Stage = Stage(600, 32, 2e-3)
    instruction: Stage = Stage(1000, 32, 2e-3)
    aligning: Stage = Stage(900, 32, 3e-3)
    reading: Stage = Stage(900, 32, 3e-4)
    visual_instruction: Stage = Stage(320, 32, 3e-4)
    llm_share: float = 0.2
    """In stage 4 the LLM learns at this part of the rate of tower and projector."""
    sizes: networks.Sizes = networks.Sizes()


@dataclass(frozen=True)
class Course:
    """One stage with its lessons: the same for the same seed, so that a test can walk them all."""

    name: str
    stage: Stage
    teacher: lessons.Teacher
    seed: int

    def batches(self) -> Iterator[list]:
        return lessons.batches(self.teacher, self.seed, self.stage.steps, self.stage.batch_size)


def courses(recipe: Recipe) -> tuple[Course, ...]:
    """What a recipe teaches, in order."""
    taught = (
        ("1 vision tower: rows", recipe.seeing, lessons.seeing),
        ("1 vision tower: order", recipe.ordering, lessons.seeing),
        ("2 LLM: words", recipe.copying, lessons.copying),
        ("2 LLM: instructions", recipe.instruction, lessons.instruction),
        ("3 projector: words", recipe.aligning, lessons.seeing),
        ("3 projector: reading", recipe.reading, lessons.reading),
        ("4 visual instruction tuning", recipe.visual_instruction, lessons.visual_instruction),
    )
    return tuple(Course(*stage, recipe.seed * 10 + i) for i, stage in enumerate(taught))


class Classroom:
    """Teaches course after course, and keeps what was learned after each: a run that was stopped goes on there.

    Any change to the recipe or to the code of this package begins anew.
    """

    def __init__(self, recipe: Recipe, folder: Path):
        self._folder = folder
        self._taught = hashlib.sha256(json.dumps([recipe.seed, asdict(recipe.sizes), version("torch")]).encode())
        for source in sorted(Path(__file__).parent.glob("*.py")):
            self._taught.update(source.read_bytes())
        folder.mkdir(parents=True, exist_ok=True)

    def teach(self, student: nn.Module, course: Course, loss: Callable, learners: dict[nn.Module, float]) -> None:
        """Runs a course, or loads what the student knew after it.

        `learners` are the parts of the student that learn, each with its share of the learning rate.
        """
        self._taught.update(repr((course.name, course.stage, list(learners.values()))).encode())
        known = self._folder / f"{course.name.replace(':', '')} {self._taught.hexdigest()[:12]}.safetensors"
        if known.exists():
            load_model(student, known)
            return
        student.requires_grad_(False)
        for learner in learners:
            learner.requires_grad_(True)
        _optimise([(learner.parameters(), share) for learner, share in learners.items()], course, loss)
        unfinished = known.with_suffix(".part")
        save_model(student, str(unfinished))
        unfinished.rename(known)


def _optimise(learners: list[tuple[Iterable[nn.Parameter], float]], course: Course, loss: Callable) -> None:
    """AdamW, warm-up, cosine to zero, gradients clipped at 1."""
    stage = course.stage
    groups = [{"params": list(parameters), "lr": stage.learning_rate * share} for parameters, share in learners]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in groups], total_steps=stage.steps, pct_start=0.08, cycle_momentum=False
    )
    parameters = [p for group in groups for p in group["params"]]
    with phase(course.name, stage.steps) as report:
        for batch in course.batches():
            value = loss(batch)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            report(1, note=f"loss {value.item():.3f}")


def train(recipe: Recipe, out: Path, scratch: Path) -> None:
    """Trains both checkpoints and saves them, in bfloat16, under `out/vlm` and `out/llm`.

    What is known after each course is kept in `scratch`; a course that was finished there is not repeated.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = networks.build_tokenizer()
    collate = losses.Collator(tokenizer)
    room = Classroom(recipe, scratch)
    seeing, ordering, copying, instruction, aligning, reading, visual_instruction = courses(recipe)

    reader = losses.Reader(networks.vision_config(recipe.sizes))
    llm = LlamaForCausalLM(networks.llm_config(recipe.sizes, tokenizer))
    room.teach(reader, seeing, reader.row_loss, {reader: 1.0})
    room.teach(reader, ordering, reader.order_loss, {reader: 1.0})
    for course in (copying, instruction):
        room.teach(llm, course, lambda batch: losses.answer_loss(llm, collate(batch)), {llm: 1.0})

    vlm = networks.build_vlm(recipe.sizes, tokenizer, llm, reader.tower)
    tower, projector = vlm.model.vision_tower, vlm.model.multi_modal_projector
    room.teach(vlm, aligning, lambda pictures: losses.alignment_loss(vlm, tokenizer, pictures), {projector: 1.0})
    answering = lambda batch: losses.answer_loss(vlm, collate(batch))  # noqa: E731
    room.teach(vlm, reading, answering, {tower: 1.0, projector: 1.0})
    everything = {tower: 1.0, projector: 1.0, vlm.model.language_model: recipe.llm_share}
    room.teach(vlm, visual_instruction, answering, everything)

    llm.to(torch.bfloat16).save_pretrained(out / "llm")
    tokenizer.save_pretrained(out / "llm")
    vlm.to(torch.bfloat16).save_pretrained(out / "vlm")
    networks.build_processor(tokenizer).save_pretrained(out / "vlm")
