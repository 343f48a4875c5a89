"""Train the built-in model from scratch, in the order in which real VLMs are trained.

1. Vision tower: which word is in each row of a picture.
2. LLM: instructions and refusals, text only. Saved as a checkpoint of its own: the aligned LLM.
3. Projector and tower: transcriptions and captions, with the LLM frozen.
4. Everything: visual instruction tuning on benign data only. This opens the safety gap.
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
    """Settings of the optimiser in one stage."""

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
    """Learning rate of the LLM in stage 4, relative to that of tower and projector."""
    sizes: networks.Sizes = networks.Sizes()


@dataclass(frozen=True)
class Course:
    """One stage with its lessons; the seed determines them, so a test can check them all."""

    name: str
    stage: Stage
    teacher: lessons.Teacher
    seed: int

    def batches(self) -> Iterator[list]:
        return lessons.batches(self.teacher, self.seed, self.stage.steps, self.stage.batch_size)


def courses(recipe: Recipe) -> tuple[Course, ...]:
    """Return the courses of a recipe, in order."""
    stages = (
        ("1 vision tower: rows", recipe.seeing, lessons.seeing),
        ("1 vision tower: order", recipe.ordering, lessons.seeing),
        ("2 LLM: words", recipe.copying, lessons.copying),
        ("2 LLM: instructions", recipe.instruction, lessons.instruction),
        ("3 projector: words", recipe.aligning, lessons.seeing),
        ("3 projector: reading", recipe.reading, lessons.reading),
        ("4 visual instruction tuning", recipe.visual_instruction, lessons.visual_instruction),
    )
    return tuple(Course(*stage, recipe.seed * 10 + i) for i, stage in enumerate(stages))


class Classroom:
    """Teaches one course after another and saves the student after each, so that an interrupted run can resume.

    Any change to the recipe or to the code of this package starts from the beginning.
    """

    def __init__(self, recipe: Recipe, folder: Path):
        self._folder = folder
        self._hash = hashlib.sha256(json.dumps([recipe.seed, asdict(recipe.sizes), version("torch")]).encode())
        for source in sorted(Path(__file__).parent.glob("*.py")):
            self._hash.update(source.read_bytes())
        folder.mkdir(parents=True, exist_ok=True)

    def teach(self, student: nn.Module, course: Course, loss: Callable, learners: dict[nn.Module, float]) -> None:
        """Run a course, or load the student as it was saved after it.

        Args:
            student: the model whose state is saved.
            course: the lessons.
            loss: loss of one batch of lessons.
            learners: parts of the student that are trained, each with its share of the learning rate.
        """
        self._hash.update(repr((course.name, course.stage, list(learners.values()))).encode())
        saved = self._folder / f"{course.name.replace(':', '')} {self._hash.hexdigest()[:12]}.safetensors"
        if saved.exists():
            load_model(student, saved)
            return
        student.requires_grad_(False)
        for learner in learners:
            learner.requires_grad_(True)
        _optimise([(learner.parameters(), share) for learner, share in learners.items()], course, loss)
        unfinished = saved.with_suffix(".part")
        save_model(student, str(unfinished))
        unfinished.rename(saved)


def _optimise(learners: list[tuple[Iterable[nn.Parameter], float]], course: Course, loss: Callable) -> None:
    """Optimise with AdamW: warm-up, cosine decay to zero, gradients clipped at 1."""
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
    """Train both checkpoints and save them, in bfloat16, as `out/vlm` and `out/llm`.

    The state after each course is saved in `scratch`; courses that are finished there are not repeated.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = networks.build_tokenizer()
    collate = losses.Collator(tokenizer)
    classroom = Classroom(recipe, scratch)
    seeing, ordering, copying, instruction, aligning, reading, visual_instruction = courses(recipe)

    reader = losses.Reader(networks.vision_config(recipe.sizes))
    llm = LlamaForCausalLM(networks.llm_config(recipe.sizes, tokenizer))
    classroom.teach(reader, seeing, reader.row_loss, {reader: 1.0})
    classroom.teach(reader, ordering, reader.order_loss, {reader: 1.0})
    for course in (copying, instruction):
        classroom.teach(llm, course, lambda batch: losses.answer_loss(llm, collate(batch)), {llm: 1.0})

    vlm = networks.build_vlm(recipe.sizes, tokenizer, llm, reader.tower)
    tower, projector = vlm.model.vision_tower, vlm.model.multi_modal_projector
    classroom.teach(vlm, aligning, lambda pictures: losses.alignment_loss(vlm, tokenizer, pictures), {projector: 1.0})

    def answer_loss(batch: list[lessons.Lesson]) -> torch.Tensor:
        return losses.answer_loss(vlm, collate(batch))

    classroom.teach(vlm, reading, answer_loss, {tower: 1.0, projector: 1.0})
    everything = {tower: 1.0, projector: 1.0, vlm.model.language_model: recipe.llm_share}
    classroom.teach(vlm, visual_instruction, answer_loss, everything)

    llm.to(torch.bfloat16).save_pretrained(out / "llm")
    tokenizer.save_pretrained(out / "llm")
    vlm.to(torch.bfloat16).save_pretrained(out / "vlm")
    networks.build_processor(tokenizer).save_pretrained(out / "vlm")
