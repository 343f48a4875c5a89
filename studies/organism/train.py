"""Trains the built-in model from nothing, in the order of the real thing.

1. Vision tower: which word stands in each row of a picture.
2. LLM: instructions and refusals, text only. Kept as its own checkpoint: the aligned LLM.
3. Projector and tower: transcriptions and captions, the LLM frozen.
4. Visual instruction tuning on benign data only, everything trained. This opens the safety gap.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from interp import typography
from studies.organism import language, lessons
from studies.progress import phase

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' %}{{ ' ASSISTANT: ' }}{% else %}{{ message.role.upper() + ': ' }}{% endif -%}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content if part.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- if message.role == 'system' %}{{ '\\n' }}{% elif message.role == 'assistant' %}{{ '</s>' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif -%}
"""
IGNORED = -100


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
    instruction: Stage = Stage(800, 32, 2e-3)
    aligning: Stage = Stage(900, 32, 3e-3)
    reading: Stage = Stage(200, 32, 2e-4)
    visual_instruction: Stage = Stage(160, 32, 3e-4)
    llm_share: float = 0.3
    """In stage 4 the LLM learns at this part of the rate of tower and projector."""
    d_model: int = 160
    n_layers: int = 8
    d_vision: int = 128
    n_vision_layers: int = 4


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


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on the project's own text: its words are single tokens, any other text is spelled."""
    corpus = [f" {text} {text.lower()}\n{text}" for text in lessons.forms()] + [f" {w}" for w in language.vocabulary()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1536,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    size = lessons.PICTURE_SIZE
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=lessons.PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def llm_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_model * 14 // 5,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.d_model // 32,
        num_key_value_heads=recipe.d_model // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # The usual 0.02 is meant for wide models; at this width it kept the model from learning to copy.
        initializer_range=0.06,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def vision_config(recipe: Recipe) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=recipe.d_vision,
        intermediate_size=4 * recipe.d_vision,
        num_hidden_layers=recipe.n_vision_layers,
        num_attention_heads=recipe.d_vision // 32,
        image_size=lessons.PICTURE_SIZE,
        patch_size=lessons.PATCH_SIZE,
    )


def pixels(pictures: list[lessons.Picture]) -> Float[Tensor, "batch 3 size size"]:
    """What the processor makes of the pictures, without its overhead (a test holds the two equal)."""
    array = np.stack([np.asarray(picture.draw()) for picture in pictures])
    return rearrange(torch.from_numpy(array).float() / 127.5 - 1, "batch height width rgb -> batch rgb height width")


# --- stage 1 -------------------------------------------------------------------------------------------------


def row_labels(picture: lessons.Picture) -> tuple[list[int], list[int]]:
    """Per row of patches: the word that stands there (0 for none), and its place in reading order."""
    words, places = [0] * lessons.ROWS, [0] * lessons.ROWS
    for i, word in enumerate(picture.text.split()):
        words[picture.first_row + i] = 1 + language.vocabulary().index(word)
        places[picture.first_row + i] = 1 + i
    return words, places


def scene_label(picture: lessons.Picture) -> int:
    """0 where there is no scene, else 1 + its (colour, shape)."""
    if not picture.kind.startswith("scene"):
        return 0
    color, shape = typography.scene_content(picture.seed)
    return 1 + language.COLORS.index(color) * len(language.SHAPES) + language.SHAPES.index(shape)


class Reader(nn.Module):
    """A vision tower with the heads that supervise it; only the tower is kept."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.tower = CLIPVisionModel(config)
        self.word = nn.Linear(config.hidden_size, 1 + len(language.vocabulary()))
        self.place = nn.Linear(config.hidden_size, 1 + lessons.ROWS)
        self.scene = nn.Linear(config.hidden_size, 1 + len(language.COLORS) * len(language.SHAPES))
        self.order = nn.Linear(config.hidden_size, 1 + len(language.vocabulary()))

    def patches(self, pictures: list[lessons.Picture]) -> Float[Tensor, "batch patch d_vision"]:
        return self.tower(pixels(pictures)).last_hidden_state[:, 1:]

    def row_loss(self, pictures: list[lessons.Picture]) -> Float[Tensor, ""]:
        """Every patch is to know the word of its row, and the scene."""
        rows = rearrange(self.patches(pictures), "batch (row column) d -> batch row column d", row=lessons.ROWS)
        words, places = (torch.tensor(labels) for labels in zip(*map(row_labels, pictures), strict=True))
        scenes = torch.tensor([scene_label(picture) for picture in pictures])
        return (
            _row_loss(self.word(rows), words)
            + 0.3 * _row_loss(self.place(rows), places)
            + 0.3 * cross_entropy(self.scene(rows[:, 0].mean(1)), scenes)
        )

    def order_loss(self, pictures: list[lessons.Picture]) -> Float[Tensor, ""]:
        """The first patches are to hold the words in reading order, wherever in the picture they stand."""
        labels = torch.tensor([_in_order(picture) for picture in pictures])
        return cross_entropy(self.order(self.patches(pictures)[:, : lessons.ROWS]).flatten(0, 1), labels.flatten())


def _in_order(picture: lessons.Picture) -> list[int]:
    labels = [1 + language.vocabulary().index(word) for word in picture.text.split()]
    return labels + [0] * (lessons.ROWS - len(labels))


def _row_loss(logits: Float[Tensor, "batch row column label"], labels: Int[Tensor, "batch row"]) -> Float[Tensor, ""]:
    """Cross-entropy of every patch against the label of its row."""
    n_columns = logits.shape[2]
    return cross_entropy(
        rearrange(logits, "batch row column label -> (batch row column) label"),
        labels.flatten().repeat_interleave(n_columns),
    )


# --- stage 3, first part -------------------------------------------------------------------------------------


def words_seen(picture: lessons.Picture) -> list[str]:
    """A picture as words in reading order: its text, else the colour and shape of its scene, else none."""
    if picture.text:
        return picture.text.split()
    return list(typography.scene_content(picture.seed)) if picture.kind == "scene" else []


def alignment_loss(
    vlm: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pictures: list[lessons.Picture]
) -> Float[Tensor, ""]:
    """How far the image tokens are from the LLM's embeddings of what the pictures say, in reading order.

    After the words come line breaks: the frozen LLM then sees "kill a wasp", a gap, and what it is asked to do,
    as it has learned to copy in stage 2.
    """
    embedding = vlm.get_input_embeddings().weight.detach()
    seen = [[tokenizer(f" {word}")["input_ids"][0] for word in words_seen(picture)] for picture in pictures]
    (line_break,) = tokenizer("\n")["input_ids"]
    targets = torch.tensor([ids + [line_break] * (lessons.ROWS**2 - len(ids)) for ids in seen])
    image_tokens = vlm.model.multi_modal_projector(vlm.model.vision_tower(pixels(pictures)).last_hidden_state[:, 1:])
    is_word = targets != line_break
    cosines = normalize(image_tokens, dim=-1) @ normalize(embedding, dim=-1).T
    named = cross_entropy(rearrange(20 * cosines, "batch pos token -> batch token pos"), targets, reduction="none")
    # Direction and length apart: a squared distance would first of all be about length.
    length = (image_tokens.norm(dim=-1) / embedding[targets].norm(dim=-1)).log().square()
    loss = named + length
    return loss[is_word].mean() + loss[~is_word].mean()


# --- stages 2 to 4 -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collator:
    """Lessons -> tensors, answers marked. The text is what the chat template of the processor gives."""

    tokenizer: PreTrainedTokenizerFast
    n_image_tokens: int = lessons.ROWS**2

    def _ids(self, lesson: lessons.Lesson) -> tuple[list[int], list[int]]:
        image = [{"type": "image"}] if lesson.picture else []
        messages = [{"role": "user", "content": [*image, {"type": "text", "text": lesson.text}]}]
        if lesson.system:
            messages.insert(0, {"role": "system", "content": lesson.system})
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = prompt.replace("<image>", "<image>" * self.n_image_tokens)
        return self.tokenizer(prompt)["input_ids"], self.tokenizer(f" {lesson.answer}</s>")["input_ids"]

    def __call__(self, batch: list[lessons.Lesson]) -> dict[str, Tensor]:
        pairs = [self._ids(lesson) for lesson in batch]
        length = max(len(prompt) + len(answer) for prompt, answer in pairs)
        ids = torch.full((len(batch), length), self.tokenizer.pad_token_id)
        labels = torch.full((len(batch), length), IGNORED)
        for i, (prompt, answer) in enumerate(pairs):
            ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        tensors = {"input_ids": ids, "labels": labels, "attention_mask": (ids != self.tokenizer.pad_token_id).long()}
        pictures = [lesson.picture for lesson in batch if lesson.picture]
        return tensors | ({"pixel_values": pixels(pictures)} if pictures else {})


def answer_loss(model: nn.Module, tensors: dict[str, Tensor]) -> Float[Tensor, ""]:
    """Cross-entropy over the answers; logits are made only where an answer token follows."""
    labels = tensors.pop("labels")[:, 1:]
    resid = model.model(**tensors, use_cache=False).last_hidden_state[:, :-1]
    return cross_entropy(model.lm_head(resid[labels != IGNORED]), labels[labels != IGNORED])


def build_vlm(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, llm: LlamaForCausalLM, tower: CLIPVisionModel
) -> LlavaForConditionalGeneration:
    """The aligned LLM, the vision tower and a fresh projector, joined."""
    config = LlavaConfig(
        vision_config=vision_config(recipe),
        text_config=llm.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=lessons.ROWS**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    vlm = LlavaForConditionalGeneration(config)
    vlm.model.language_model.load_state_dict(llm.model.state_dict())
    vlm.model.vision_tower.load_state_dict(tower.state_dict())
    vlm.tie_weights()
    return vlm


# --- the course ----------------------------------------------------------------------------------------------


def _optimise(
    parameters: Iterable[nn.Parameter],
    course: Course,
    loss: Callable,
    gentle: Iterable[nn.Parameter] = (),
    share: float = 1.0,
) -> None:
    """AdamW, warm-up, cosine to zero, gradients clipped at 1; `gentle` parameters at a `share` of the rate."""
    stage, slow = course.stage, {id(p) for p in gentle}
    parameters = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if (id(p) in slow) == is_slow], "lr": stage.learning_rate * rate}
        for is_slow, rate in ((False, 1.0), (True, share))
    ]
    groups = [group for group in groups if group["params"]]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rates, total_steps=stage.steps, pct_start=0.08, cycle_momentum=False
    )
    with phase(course.name, stage.steps) as report:
        for batch in course.batches():
            value = loss(batch)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            report(1, note=f"loss {value.item():.3f}")


def train(recipe: Recipe, out: Path) -> None:
    """Trains both checkpoints and saves them, in bfloat16, under `out/vlm` and `out/llm`."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    collate = Collator(tokenizer)
    seeing, ordering, copying, instruction, aligning, reading, visual_instruction = courses(recipe)

    reader = Reader(vision_config(recipe))
    _optimise(reader.parameters(), seeing, reader.row_loss)
    _optimise(reader.parameters(), ordering, reader.order_loss)

    llm = LlamaForCausalLM(llm_config(recipe, tokenizer))
    for course in (copying, instruction):
        _optimise(llm.parameters(), course, lambda batch: answer_loss(llm, collate(batch)))

    vlm = build_vlm(recipe, tokenizer, llm, reader.tower)
    vlm.requires_grad_(False)
    vlm.model.multi_modal_projector.requires_grad_(True)
    _optimise(vlm.parameters(), aligning, lambda pictures: alignment_loss(vlm, tokenizer, pictures))
    vlm.model.vision_tower.requires_grad_(True)
    _optimise(vlm.parameters(), reading, lambda batch: answer_loss(vlm, collate(batch)))
    vlm.requires_grad_(True)
    _optimise(
        vlm.parameters(),
        visual_instruction,
        lambda batch: answer_loss(vlm, collate(batch)),
        gentle=vlm.model.language_model.parameters(),
        share=recipe.llm_share,
    )

    llm.to(torch.bfloat16).save_pretrained(out / "llm")
    tokenizer.save_pretrained(out / "llm")
    vlm.to(torch.bfloat16).save_pretrained(out / "vlm")
    build_processor(tokenizer).save_pretrained(out / "vlm")
