"""Query -> prompt in each modality -> one left-padded batch; and back: positions and text of a prompt."""

import os
import zlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from jaxtyping import Int
from jinja2 import TemplateError
from torch import Tensor
from transformers import BatchEncoding, BatchFeature

from interp import typography
from interp.families import ModelError
from interp.pictures import LazyPicture, Picture, open_picture, read_picture, to_rgb
from interp.vlm import LLM, VLM

TYPOGRAPHIC_REQUEST = "Read the request in the picture and answer it."
"""What stands beside a picture that carries the request. Harmless by itself, as in FigStep."""
TRANSCRIPTION_REQUEST = "Write down the text in the picture, and nothing else."
CAPTION_REQUEST = "Describe the picture."


@dataclass(frozen=True)
class Query:
    """One request, before it is decided how it reaches the model."""

    text: str
    harmful: bool
    category: str = ""
    pair: str | None = None
    """A harmful and a harmless partner share it; None where queries are not paired."""
    written: str | None = None
    """What a picture shows of the request; by default its text."""
    picture: str | None = None
    """Path of the query's own picture, shown in modality `scene` instead of a drawn one."""
    split: str = ""
    """`anchors`, `validation` or `test`, where queries are divided."""

    @property
    def rendered(self) -> str:
        return self.written or self.text

    @property
    def group(self) -> str:
        """What must not be divided between folds or splits: a pair, or the same text standing there twice."""
        return f"pair {self.pair}" if self.pair else f"text {self.text}"

    @property
    def seed(self) -> int:
        """For pictures with chance in them: the same query gets the same picture everywhere."""
        return zlib.crc32(self.text.encode())


@dataclass(frozen=True)
class Prompt:
    """A query in a modality: what the user says, after an optional system turn, and the pictures."""

    query: Query
    modality: str
    text: str
    pictures: tuple[Picture, ...] = ()
    system: str = ""

    @property
    def messages(self) -> list[dict]:
        """Chat messages in Hugging Face form, the pictures before the text.

        Raises:
            PictureError: a picture can't be read.
        """
        shown = [{"type": "image", "image": to_rgb(open_picture(picture))} for picture in self.pictures]
        content = [*shown, {"type": "text", "text": self.text}]
        system = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        return [*system, {"role": "user", "content": content}]


@dataclass(frozen=True)
class _Modality:
    picture: Callable[[Query, int], LazyPicture] | None
    in_picture: bool = False
    """Whether the request is in the picture rather than beside it."""


def _scene(query: Query, size: int) -> LazyPicture:
    if query.picture is None:
        return LazyPicture(typography.scene_picture, (size, query.seed))
    # Whoever reads it may be another process, in another folder.
    return LazyPicture(read_picture, (str(Path(query.picture).absolute()),))


MODALITIES = {
    "text": _Modality(None),
    "blank": _Modality(lambda query, size: LazyPicture(typography.blank_picture, (size,))),
    "noise": _Modality(lambda query, size: LazyPicture(typography.noise_picture, (size, query.seed))),
    "scene": _Modality(_scene),
    "typographic": _Modality(
        lambda query, size: LazyPicture(typography.text_picture, (query.rendered, size)), in_picture=True
    ),
    "typographic_scene": _Modality(
        lambda query, size: LazyPicture(typography.scene_with_text, (query.rendered, size, query.seed)), in_picture=True
    ),
}
IMAGE_AUGMENTED = ("blank", "noise", "scene")
TYPOGRAPHIC = tuple(name for name, modality in MODALITIES.items() if modality.in_picture)


def to_prompt(query: Query, modality: str, picture_size: int, template: str = "{request}", system: str = "") -> Prompt:
    """The query as it reaches the model.

    Args:
        query: the request.
        modality: one of `MODALITIES`.
        picture_size: side of the picture in pixels; `VLM.picture_size` is what the model sees without resizing.
        template: wraps the user's text; must contain `{request}`. Jailbreaks and reminders are templates.
        system: system turn, empty for none.

    Raises:
        ValueError: no such modality, or a template without `{request}`.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality {modality!r} does not exist; expected one of {', '.join(MODALITIES)}")
    if "{request}" not in template:
        raise ValueError(f"template {template!r} has no place for the request; expected '{{request}}' in it")
    kind = MODALITIES[modality]
    text = TYPOGRAPHIC_REQUEST if kind.in_picture else query.text
    pictures = (kind.picture(query, picture_size),) if kind.picture else ()
    # Not str.format: requests may contain braces.
    return Prompt(query, modality, template.replace("{request}", text), pictures, system)


def to_prompts(queries: Sequence[Query], modality: str, picture_size: int, **kwargs) -> list[Prompt]:
    """`to_prompt` for each query."""
    return [to_prompt(query, modality, picture_size, **kwargs) for query in queries]


def text_prompt(text: str) -> Prompt:
    """Bare text in the text modality's chat template, as references are shown to the LLM."""
    return Prompt(Query(text, harmful=False), "text", text)


def transcription_prompt(prompt: Prompt) -> Prompt:
    """Asks for the text in the prompt's picture.

    Raises:
        ValueError: the prompt has no picture.
    """
    return _about_picture(prompt, TRANSCRIPTION_REQUEST)


def caption_prompt(prompt: Prompt) -> Prompt:
    """Asks what the prompt's picture shows.

    Raises:
        ValueError: the prompt has no picture.
    """
    return _about_picture(prompt, CAPTION_REQUEST)


def _about_picture(prompt: Prompt, request: str) -> Prompt:
    if not prompt.pictures:
        raise ValueError(f"a prompt of modality {prompt.modality!r} has no picture to be read")
    return replace(prompt, text=request, system="")


def collate(model: VLM | LLM, prompts: Sequence[Prompt]) -> BatchFeature | BatchEncoding:
    """One left-padded batch on the model's device; every prompt has a picture, or none has.

    Left padding puts the last prompt token of every row at position -1, where it is read and written.

    Raises:
        ValueError: no prompts, prompts with and without picture mixed, or pictures for a model without eyes.
        ModelError: different numbers of pictures, in a family that attends to them across the batch's longest row.
    """
    n_pictures = {bool(prompt.pictures) for prompt in prompts}
    if len(n_pictures) != 1:
        raise ValueError(
            f"a batch of {len(prompts)} prompts, {sum(bool(p.pictures) for p in prompts)} of them with a picture; "
            "expected at least one prompt, and pictures for all or for none"
        )
    has_pictures = n_pictures.pop()
    if has_pictures and isinstance(model, LLM):
        raise ValueError(f"{model.name!r} is a text-only model; its prompts can have no pictures")
    if isinstance(model, VLM) and not model.family.pictures_in_sequence:
        counts = sorted({len(prompt.pictures) for prompt in prompts})
        if len(counts) > 1:
            raise ModelError(
                f"a batch of prompts with {' and '.join(map(str, counts))} pictures; {model.name!r} needs the same "
                "number in every prompt of a batch"
            )
    batch = _apply_template(model, [prompt.messages for prompt in prompts])
    # Some processors add labels for training, all of them masked.
    batch.pop("labels", None)
    # Token ids stay integers: only floating point tensors, the pixels, take the model's dtype.
    return batch.to(model.device, **({"dtype": model.model.dtype} if has_pictures else {}))


def collate_alike(vlm: VLM, prompts: Sequence[Prompt]) -> tuple[BatchFeature, list[Int[Tensor, " _"]]]:
    """Prompts about the same pictures, which are looked at and processed once.

    Returns:
        The first prompt as a batch of one on the model's device, and the token ids of every prompt, without padding,
        on the CPU.
    """
    pictures = tuple(map(open_picture, prompts[0].pictures))
    prompts = [replace(prompt, pictures=pictures) for prompt in prompts]
    with mock.patch.object(vlm.processor, "image_processor", _Remembered(vlm.processor.image_processor)):
        first = collate(vlm, prompts[:1])
        ids = first["input_ids"][0].cpu()
        if len(prompts) == 1:
            return first, [ids]
        slow = lambda prompt: _apply_template(vlm, [prompt.messages])["input_ids"][0]  # noqa: E731
        last = slow(prompts[-1])
        rows = _spliced(vlm, prompts, ids)
        if rows is None or not torch.equal(rows[-1], last):
            rows = [ids, *map(slow, prompts[1:-1]), last]
    return first, rows


def _spliced(vlm: VLM, prompts: Sequence[Prompt], first: Int[Tensor, " pos"]) -> list[Int[Tensor, " _"]] | None:
    """The first prompt's tokens up to the end of its pictures, and each prompt's own behind them.

    So hundreds of picture tokens are not put through the tokenizer again for each prompt. None where the processor does
    more than to write tokens in the place of a picture.
    """
    texts = vlm.processor.apply_chat_template(
        [prompt.messages for prompt in prompts], tokenize=False, add_generation_prompt=True
    )
    for special in (False, True):
        bare = vlm.tokenizer(texts, add_special_tokens=special)["input_ids"]
        n_before = len(os.path.commonprefix([bare[0], first.tolist()]))
        n_after = min(len(os.path.commonprefix([bare[0][::-1], first.tolist()[::-1]])), len(bare[0]) - n_before)
        n_same = len(bare[0]) - n_after
        if n_before and all(row[:n_same] == bare[0][:n_same] for row in bare):
            shown = first[: len(first) - n_after]
            rows = [torch.cat([shown, torch.tensor(row[n_same:], dtype=shown.dtype)]) for row in bare]
            if torch.equal(rows[0], first):
                return rows
    return None


class _Remembered:
    """An image processor that is asked about the same pictures again and again."""

    def __init__(self, image_processor):
        self._asked, self._answer = image_processor, None

    def __call__(self, *args, **kwargs) -> BatchFeature:
        if self._answer is None:
            self._answer = self._asked(*args, **kwargs)
        # Some processors take things out of it.
        return copy(self._answer)

    def __getattr__(self, name: str):
        return getattr(self._asked, name)


def _apply_template(model: VLM | LLM, turns: list[list[dict]]) -> BatchFeature | BatchEncoding:
    """Raises:
    ModelError: the chat template refuses the turns, as most do that know no system role.
    """
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    try:
        if isinstance(model, LLM):
            turns = [[_as_text(turn) for turn in conversation] for conversation in turns]
            return model.tokenizer.apply_chat_template(turns, padding=True, **options)
        if model.family.bare_text and not any(part["type"] == "image" for part in turns[0][-1]["content"]):
            return _bare_text(model, turns)
        return model.processor.apply_chat_template(turns, processor_kwargs={"padding": True}, **options)
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns[0])
        raise ModelError(
            f"the chat template of {model.name!r} refuses turns of {roles} ({error}); where it knows no system role, "
            "put those words before the request: template='... {request}'"
        ) from error


def _bare_text(vlm: VLM, turns: list[list[dict]]) -> BatchEncoding:
    """What a processor that wants a picture in every prompt would write around text."""
    rendered = vlm.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    frame = vlm.family.bare_text.replace("<bos>", vlm.tokenizer.bos_token)
    texts = [frame.replace("{text}", text) for text in rendered]
    return text_batch(vlm, vlm.tokenizer(texts, add_special_tokens=False)["input_ids"])


def text_batch(vlm: VLM, rows: Sequence[Sequence[int]]) -> BatchEncoding:
    """Token ids of prompts without pictures -> one left-padded batch on the model's device."""
    batch = vlm.tokenizer.pad({"input_ids": list(rows)}, padding_side="left", return_tensors="pt")
    if vlm.family.bare_text:
        # By these such a family tells the prompt, which attends to all of itself, from what it writes.
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    return batch.to(vlm.device)


def _as_text(turn: dict) -> dict:
    """A turn with its content as one string, as the templates of text-only models want it."""
    return {"role": turn["role"], "content": "".join(part["text"] for part in turn["content"])}
