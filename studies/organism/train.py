"""Train the built-in model from scratch, in the order in which real VLMs are trained.

1. Vision tower: which word is in each row of a picture.
2. LLM: instructions and refusals, text only. Saved as a checkpoint of its own: the aligned LLM.
3. Projector and tower: transcriptions and captions, with the LLM frozen.
4. Everything: visual instruction tuning on benign data only. This opens the safety gap.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from studies.organism import lessons, losses, networks
from studies.organism.classroom import Classroom, Course, Stage


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


def train(recipe: Recipe, out: Path, scratch: Path) -> None:
    """Train both checkpoints and save them, in bfloat16, as `out/vlm` and `out/llm`.

    The state after each course is saved in `scratch`; courses that are finished there are not repeated.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = networks.build_tokenizer()
    collate = losses.Collator(tokenizer)
    classroom = Classroom([recipe.seed, asdict(recipe.sizes)], scratch, Path(__file__).parent.glob("*.py"))
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
