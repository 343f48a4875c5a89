"""The loss of each stage of training."""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from interp import typography
from studies.organism import language, lessons

IGNORED = -100


def pixels(
    pictures: list[lessons.LessonPicture], size: int = lessons.PICTURE_SIZE
) -> Float[Tensor, "batch 3 size size"]:
    """Return the same pixel values as the processor, without its overhead; a test checks that they are equal."""
    array = np.stack([np.asarray(picture.draw(size)) for picture in pictures])
    return rearrange(torch.from_numpy(array).float() / 127.5 - 1, "batch height width rgb -> batch rgb height width")


def row_labels(picture: lessons.LessonPicture) -> tuple[list[int], list[int]]:
    """Return the word in each row of patches (0 for none), and its place in reading order."""
    words, places = [0] * lessons.ROWS, [0] * lessons.ROWS
    for i, word in enumerate(picture.text.split()):
        words[picture.first_row + i] = 1 + language.vocabulary().index(word)
        places[picture.first_row + i] = 1 + i
    return words, places


def scene_label(picture: lessons.LessonPicture) -> int:
    """Return the class of a picture: 0 without a scene, else 1 + the index of its colour and shape."""
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

    def patches(self, pictures: list[lessons.LessonPicture]) -> Float[Tensor, "batch patch d_vision"]:
        return self.tower(pixels(pictures)).last_hidden_state[:, 1:]

    def row_loss(self, pictures: list[lessons.LessonPicture]) -> Float[Tensor, ""]:
        """Return the loss that makes every patch encode the word of its row, and the scene."""
        rows = rearrange(self.patches(pictures), "batch (row column) d -> batch row column d", row=lessons.ROWS)
        words, places = (torch.tensor(labels) for labels in zip(*map(row_labels, pictures), strict=True))
        scenes = torch.tensor([scene_label(picture) for picture in pictures])
        return (
            _row_loss(self.word(rows), words)
            + 0.3 * _row_loss(self.place(rows), places)
            + 0.3 * cross_entropy(self.scene(rows[:, 0].mean(1)), scenes)
        )

    def order_loss(self, pictures: list[lessons.LessonPicture]) -> Float[Tensor, ""]:
        """Return the loss that puts the words in reading order into the first patches, wherever they are written."""
        labels = torch.tensor([_reading_order(picture) for picture in pictures])
        return cross_entropy(self.order(self.patches(pictures)[:, : lessons.ROWS]).flatten(0, 1), labels.flatten())


def _reading_order(picture: lessons.LessonPicture) -> list[int]:
    """Return the words of the picture, then 0 for nothing, one label per row."""
    labels = [1 + language.vocabulary().index(word) for word in picture.text.split()]
    return labels + [0] * (lessons.ROWS - len(labels))


def _row_loss(logits: Float[Tensor, "batch row column label"], labels: Int[Tensor, "batch row"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of every patch against the label of its row."""
    n_columns = logits.shape[2]
    return cross_entropy(
        rearrange(logits, "batch row column label -> (batch row column) label"),
        labels.flatten().repeat_interleave(n_columns),
    )


def words_seen(picture: lessons.LessonPicture) -> list[str]:
    """Return a picture's words in reading order: its text, or the colour and shape of its scene, or nothing."""
    if picture.text:
        return picture.text.split()
    return list(typography.scene_content(picture.seed)) if picture.kind == "scene" else []


def alignment_loss(
    vlm: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pictures: list[lessons.LessonPicture]
) -> Float[Tensor, ""]:
    """Return how far the image tokens are from the LLM's embeddings of the words in the pictures, in reading order.

    Line breaks follow the words: the frozen LLM then sees "kill a wasp", a gap, and an instruction, in the form in
    which it learned to copy in stage 2.
    """
    embedding = vlm.get_input_embeddings().weight.detach()
    word_ids = [[tokenizer(f" {word}")["input_ids"][0] for word in words_seen(picture)] for picture in pictures]
    (line_break,) = tokenizer("\n")["input_ids"]
    targets = torch.tensor([ids + [line_break] * (lessons.ROWS**2 - len(ids)) for ids in word_ids])
    image_tokens = vlm.model.multi_modal_projector(vlm.model.vision_tower(pixels(pictures)).last_hidden_state[:, 1:])
    is_word = targets != line_break
    cosines = normalize(image_tokens, dim=-1) @ normalize(embedding, dim=-1).T
    named = cross_entropy(rearrange(20 * cosines, "batch pos token -> batch token pos"), targets, reduction="none")
    # Direction and length have terms of their own: a squared distance would be dominated by length.
    length = (image_tokens.norm(dim=-1) / embedding[targets].norm(dim=-1)).log().square()
    loss = named + length
    return loss[is_word].mean() + loss[~is_word].mean()


@dataclass(frozen=True)
class Collator:
    """Turns lessons into tensors in which the answers are labelled, with the chat template of the processor."""

    tokenizer: PreTrainedTokenizerFast
    n_image_tokens: int = lessons.ROWS**2
    picture_size: int = lessons.PICTURE_SIZE
    image_token: str = "<image>"
    answer: str = " {}</s>"
    """Form of the answer, with the end of its turn."""
    chat_template: str | None = None
    """Template of the chat; by default the tokenizer's own."""

    def _ids(self, lesson: lessons.Lesson) -> tuple[list[int], list[int]]:
        image = [{"type": "image"}] if lesson.picture else []
        messages = [{"role": "user", "content": [*image, {"type": "text", "text": lesson.text}]}]
        if lesson.system:
            messages.insert(0, {"role": "system", "content": lesson.system})
        options = {"tokenize": False, "add_generation_prompt": True, "chat_template": self.chat_template}
        prompt = self.tokenizer.apply_chat_template(messages, **options)
        prompt = prompt.replace(self.image_token, self.image_token * self.n_image_tokens)
        return self.tokenizer(prompt)["input_ids"], self.tokenizer(self.answer.format(lesson.answer))["input_ids"]

    def __call__(self, batch: list[lessons.Lesson]) -> dict[str, Tensor]:
        pairs = [self._ids(lesson) for lesson in batch]
        length = max(len(prompt) + len(answer) for prompt, answer in pairs)
        ids = torch.full((len(batch), length), self.tokenizer.pad_token_id)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for i, (prompt, answer) in enumerate(pairs):
            ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
            # Not by the id of padding: in some tokenizers it is that of the end of a turn.
            mask[i, : len(prompt) + len(answer)] = 1
        tensors = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        pictures = [lesson.picture for lesson in batch if lesson.picture]
        return tensors | ({"pixel_values": pixels(pictures, self.picture_size)} if pictures else {})


def answer_loss(model: nn.Module, tensors: dict[str, Tensor]) -> Float[Tensor, ""]:
    """Return the cross-entropy of the answers; logits are computed only where an answer token follows."""
    labels = tensors.pop("labels")[:, 1:]
    resid = model.model(**tensors, use_cache=False).last_hidden_state[:, :-1]
    return cross_entropy(model.lm_head(resid[labels != IGNORED]), labels[labels != IGNORED])
