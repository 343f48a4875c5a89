"""Train `llava-qwen-0.5b`: give eyes to an LLM that others aligned, and see what each kind of teaching does.

a. The vision tower learns to spell, the projector the LLM's embeddings of what is spelled; the LLM is not run.
b. The projector learns captions and transcriptions through the frozen LLM. Not one weight of the LLM has changed.
c. Benign visual instructions whose answers the LLM wrote itself as text, at three doses: low-rank updates of the LLM.
d. The same instructions with short answers from templates, as early visual instruction data had them.

No lesson is about safety, and no variant is chosen by what it does to refusals.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM

from studies.llava_qwen import QWEN, answers, instructions, networks, reading, updates
from studies.llava_qwen.built_model import EYES, ChatFormat
from studies.llava_qwen.lessons import Teacher
from studies.llava_qwen.texts import RareWords, Texts
from studies.organism.classroom import Classroom, Course, Stage
from studies.organism.losses import Collator, answer_loss

READING = ("answers", "instructions", "networks", "reading", "texts", "tower")
"""Modules that course a depends on; the others depend on all."""


@dataclass(frozen=True)
class VisualRecipe:
    """Everything that training depends on. Developed on validation."""

    seed: int = 0
    sizes: networks.VisionSizes = networks.VisionSizes()
    spelling: Stage = Stage(1600, 48, 1e-3)
    naming: Stage = Stage(300, 96, 2e-3)
    reading: Stage = Stage(600, 48, 1e-3)
    words: Stage = Stage(600, 48, 7e-4)
    tower_share: float = 0.3
    """Learning rate of the tower, relative to that of the projector, once tokens are learned."""
    looking: Stage = Stage(100, 8, 5e-4)
    own: tuple[Stage, ...] = (Stage(20, 8, 4e-4), Stage(60, 8, 4e-4), Stage(180, 8, 4e-4))
    """Doses of the LLM's own answers."""
    short: Stage = Stage(60, 8, 4e-4)
    rank: int = 8
    """Rank of the updates of the LLM, on the queries, values and outputs of its attention."""


def train(
    recipe: VisualRecipe, llm: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path, scratch: Path
) -> None:
    """Train all variants, and save vision tower, projector and updates in `out`, in bfloat16.

    What is finished in `scratch` is not repeated; an unfinished course resumes at its last snapshot.

    Args:
        recipe: the settings.
        llm: the aligned LLM, in bfloat16.
        tokenizer: its tokenizer, with padding on the left.
        out: folder of what is trained.
        scratch: folder of answers and courses.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    benign = [(split, text) for split, texts in instructions.splits().items() for text in texts]
    own = answers.write(llm, tokenizer, benign, scratch / "answers.jsonl")
    useful = [answer for answer in own if answer.split == "train" and answer.is_useful]
    texts = Texts.of(instructions.splits()["train"], [answer.answer for answer in useful], tokenizer)
    labels = reading.PageLabels(recipe.sizes, tokenizer)

    reader = teach_reading(recipe, llm.get_input_embeddings().weight.detach(), labels, texts, scratch)
    vlm = frozen_vlm(reader, recipe.sizes, llm, tokenizer, QWEN.chat)
    projector = vlm.model.multi_modal_projector
    teacher = Teacher(useful, texts, labels)
    loss = partial(answer_loss_of, vlm, collator(recipe.sizes, tokenizer, QWEN.chat))
    course = Course("b projector: looking", recipe.looking, teacher.looking, recipe.seed + 1)
    _classroom(recipe, scratch).teach(projector, course, loss, {projector: 1.0})
    out.mkdir(parents=True, exist_ok=True)
    save_file(in_bfloat16(networks.eyes_of(vlm)), out / EYES)

    courses = {
        f"c{i}": Course(f"c own answers {i}", dose, teacher.own_style, i) for i, dose in enumerate(recipe.own, 1)
    }
    courses["d"] = Course("d short answers", recipe.short, teacher.short_style, 0)
    for name, course in courses.items():
        torch.manual_seed(recipe.seed)
        with updates.updates_on(vlm, recipe.rank) as learner:
            _classroom(recipe, scratch).teach(learner, course, loss, {learner: 1.0})
            save_file(in_bfloat16(learner), out / f"{name}.safetensors")


def teach_reading(
    recipe: VisualRecipe,
    embedding: Float[torch.Tensor, "token d_model"],
    labels: reading.PageLabels,
    texts: Texts,
    scratch: Path,
) -> reading.PageReader:
    """Return vision tower and projector after course a.

    Args:
        recipe: the settings.
        embedding: the LLM's input embedding.
        labels: tokens by patch.
        texts: what is read.
        scratch: folder of courses.
    """
    torch.manual_seed(recipe.seed)
    reader = reading.PageReader(recipe.sizes, embedding, labels, texts)
    seeing = partial(reading.seeing, texts=texts, labels=labels)
    classroom = Classroom([recipe.seed, recipe.sizes], scratch, [Path(__file__).with_name(f"{n}.py") for n in READING])
    tower, projector = reader.tower, reader.projector
    heads = {reader.nearby: 1.0, reader.spelled: 1.0}
    spelling = Course("a vision tower: spelling", recipe.spelling, seeing, recipe.seed)
    classroom.teach(reader, spelling, reader.spelling_loss, {tower: 1.0} | heads)
    naming = Course("a projector: tokens", recipe.naming, seeing, recipe.seed + 1)
    classroom.teach(reader, naming, reader.loss, {projector: 1.0})
    for course in (
        Course("a both: tokens", recipe.reading, seeing, recipe.seed + 2),
        # Validation showed that what is still misread are words that lessons seldom have.
        Course("a both: rare words", recipe.words, partial(seeing, texts=RareWords(**vars(texts))), recipe.seed + 3),
    ):
        classroom.teach(reader, course, reader.loss, {projector: 1.0, tower: recipe.tower_share} | heads)
    return reader


def _classroom(recipe: VisualRecipe, scratch: Path) -> Classroom:
    """Return a classroom for one of the courses after a, which don't depend on each other."""
    settings = [recipe.seed, recipe.sizes, recipe.spelling, recipe.naming, recipe.reading, recipe.tower_share]
    settings += [recipe.words, recipe.looking, recipe.rank]
    return Classroom(settings, scratch, Path(__file__).parent.glob("*.py"))


def frozen_vlm(
    reader: reading.PageReader,
    sizes: networks.VisionSizes,
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatFormat,
) -> LlavaForConditionalGeneration:
    """Return the VLM that lessons run through, with a reader's eyes; no part of it is trained yet.

    Args:
        reader: vision tower and projector.
        sizes: those of the vision tower.
        llm: the LLM.
        tokenizer: its tokenizer.
        chat: the form of its chats.
    """
    vlm = networks.build_vlm(sizes, llm, tokenizer, chat).requires_grad_(False)
    # Backwards, PyTorch's fused attention is the slower one on a CPU.
    vlm.set_attn_implementation("eager")
    vlm.model.vision_tower.load_state_dict(reader.tower.state_dict())
    vlm.model.multi_modal_projector.load_state_dict(reader.projector.state_dict())
    return vlm


def collator(sizes: networks.VisionSizes, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> Collator:
    """Return what turns lessons into tensors, with the processor's template."""
    return Collator(
        tokenizer,
        n_image_tokens=sizes.n_rows**2,
        picture_size=sizes.picture,
        image_token=chat.image_token,
        answer="{}<|im_end|>",
        chat_template=chat.template,
    )


def answer_loss_of(model: PreTrainedModel, collate: Collator, batch: list) -> Float[torch.Tensor, ""]:
    """Return the loss of a batch of lessons in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return answer_loss(model, collate(batch))


def in_bfloat16(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a module, as it ships."""
    return {name: value.to(torch.bfloat16).contiguous() for name, value in module.state_dict().items()}
