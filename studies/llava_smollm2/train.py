"""Train `llava-smollm2-135m`: align the LLM in two ways, and give it the eyes of `llava-qwen-0.5b`.

1. The LLM writes answers to harmless requests and to instructions.
2. Low-rank updates align it, by examples and by preferences (`align.py`).
3. A projector learns the LLM's embeddings of what the vision tower reads, then captions and transcriptions through the
   LLM as it came. So both variants see with the same eyes, and no picture has taught them anything about refusing.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from studies.llava_qwen import answers, instructions, networks, reading, requests
from studies.llava_qwen.answers import OwnAnswer
from studies.llava_qwen.built_model import EYES
from studies.llava_qwen.lessons import Teacher
from studies.llava_qwen.texts import Texts
from studies.llava_qwen.train import answer_loss_of, collator, frozen_vlm, in_bfloat16
from studies.llava_smollm2 import SMOLLM2
from studies.llava_smollm2.align import AlignmentRecipe, AlignmentTeacher, align
from studies.organism.classroom import Classroom, Course, Stage


@dataclass(frozen=True)
class SecondRecipe:
    """Everything that training depends on. Developed on validation."""

    seed: int = 0
    sizes: networks.VisionSizes = networks.VisionSizes()
    """Those of the vision tower."""
    alignment: AlignmentRecipe = AlignmentRecipe()
    naming: Stage = Stage(300, 96, 2e-3)
    looking: Stage = Stage(120, 8, 5e-4)


def train(
    recipe: SecondRecipe,
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tower: Path,
    out: Path,
    scratch: Path,
) -> None:
    """Train both variants, and save projector and updates in `out`, in bfloat16.

    What is finished in `scratch` is not repeated; an unfinished course resumes at its last snapshot.

    Args:
        recipe: the settings.
        llm: the LLM as it came, in bfloat16.
        tokenizer: its tokenizer, with padding on the left.
        tower: file with the trained vision tower.
        out: folder of what is trained.
        scratch: folder of answers and courses.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    anchors = requests.queries("anchors")
    benign = [("train", text) for text in instructions.splits()["train"]]
    partners = [("anchors", query.text) for query in anchors if not query.harmful]
    useful = [
        own for own in answers.write(llm, tokenizer, [*partners, *benign], scratch / "answers.jsonl") if own.is_useful
    ]
    by_split = {split: [own for own in useful if own.split == split] for split in ("anchors", "train")}
    collate = collator(recipe.sizes, tokenizer, SMOLLM2.chat)
    harmful = [query for query in anchors if query.harmful]
    teacher = AlignmentTeacher(harmful, by_split["anchors"], by_split["train"])
    sources = [*_sources(), requests.FILE, scratch / "answers.jsonl"]
    align(recipe.alignment, llm, collate, teacher, out, scratch, sources)
    _teach_projector(recipe, llm, tokenizer, by_split["train"], tower, out, scratch)


def _sources() -> list[Path]:
    """Return the code that courses depend on."""
    folders = ("llava_smollm2", "llava_qwen", "organism")
    return [path for name in folders for path in Path(__file__).parents[1].joinpath(name).glob("*.py")]


def _teach_projector(
    recipe: SecondRecipe,
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    own: list[OwnAnswer],
    tower: Path,
    out: Path,
    scratch: Path,
) -> None:
    """Train the projector while vision tower and LLM are frozen, and save it."""
    texts = Texts.of(instructions.splits()["train"], [answer.answer for answer in own], tokenizer)
    labels = reading.PageLabels(recipe.sizes, tokenizer)
    torch.manual_seed(recipe.seed)
    reader = reading.PageReader(recipe.sizes, llm.get_input_embeddings().weight.detach(), labels, texts)
    seen = {name.removeprefix("vision_tower."): value.float() for name, value in load_file(tower).items()}
    reader.tower.load_state_dict({name: seen[name] for name in reader.tower.state_dict()})
    classroom = Classroom(recipe, scratch, [*_sources(), scratch / "answers.jsonl", tower])
    seeing = partial(reading.seeing, texts=texts, labels=labels)
    naming = Course("projector: tokens", recipe.naming, seeing, recipe.seed)
    classroom.teach(reader, naming, reader.loss, {reader.projector: 1.0})

    vlm = frozen_vlm(reader, recipe.sizes, llm, tokenizer, SMOLLM2.chat)
    projector = vlm.model.multi_modal_projector
    looking = Course("projector: looking", recipe.looking, Teacher(own, texts, labels).looking, recipe.seed + 1)
    loss = partial(answer_loss_of, vlm, collator(recipe.sizes, tokenizer, SMOLLM2.chat))
    classroom.teach(projector, looking, loss, {projector: 1.0})
    save_file(in_bfloat16(nn.ModuleDict({"multi_modal_projector": projector})), out / EYES)
