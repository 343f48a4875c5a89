"""Queries, the prompts they become in each modality, and the left-padded batches that a model is given."""

import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock
from weakref import WeakSet

import torch
from jaxtyping import Int
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import BatchEncoding, BatchFeature

from interp import typography
from interp.control_tokens import check_prompts
from interp.errors import ModelError
from interp.pictures import LazyPicture, open_picture, read_picture
from interp.queries import Prompt, Query
from interp.resource_limits import TooMuchError, limited
from interp.vlm import LLM, VLM

Inputs = Mapping[str, Tensor]
"""Inputs of a model's forward pass, by name."""

TEMPLATE_SECONDS, TEMPLATE_MEGABYTES = 10.0, 64
"""Time that a chat template has for a prompt of one word; it takes a millisecond."""
_SOUND_TEMPLATES: WeakSet[nn.Module] = WeakSet()
"""Models whose templates have been tried."""
TYPOGRAPHIC_REQUEST = "Read the request in the picture and answer it."
"""Text next to a picture that shows the request. Harmless by itself, as in FigStep."""
TRANSCRIPTION_REQUEST = "Write down the text in the picture, and nothing else."
CAPTION_REQUEST = "Describe the picture."


@dataclass(frozen=True)
class _Modality:
    picture: Callable[[Query, int], LazyPicture] | None
    in_picture: bool = False
    """True if the picture shows the request, False if the text does."""


def _scene(query: Query, size: int) -> LazyPicture:
    if query.picture is None:
        return LazyPicture(typography.scene_picture, (size, query.seed))
    # Absolute, since another process in another folder may open it.
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
    """Turn a query into the prompt that reaches the model.

    Args:
        query: the request.
        modality: one of `MODALITIES`.
        picture_size: side of the picture in pixels; `VLM.picture_size` is what the model sees without resizing.
        template: text around the user's own, with `{request}` in its place; for jailbreaks and reminders.
        system: system turn, empty for none.

    Raises:
        ValueError: the modality does not exist, or the template has no `{request}`.
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
    """Return `to_prompt` of each query."""
    return [to_prompt(query, modality, picture_size, **kwargs) for query in queries]


def text_prompt(text: str) -> Prompt:
    """Return bare text as a prompt of the text modality, as the LLM is given references."""
    return Prompt(Query(text, harmful=False), "text", text)


def transcription_prompt(prompt: Prompt) -> Prompt:
    """Return a prompt that asks for the text in another prompt's picture.

    Raises:
        ValueError: the prompt has no picture.
    """
    return _about_picture(prompt, TRANSCRIPTION_REQUEST)


def caption_prompt(prompt: Prompt) -> Prompt:
    """Return a prompt that asks what another prompt's picture shows.

    Raises:
        ValueError: the prompt has no picture.
    """
    return _about_picture(prompt, CAPTION_REQUEST)


def _about_picture(prompt: Prompt, request: str) -> Prompt:
    if not prompt.pictures:
        raise ValueError(f"a prompt of modality {prompt.modality!r} has no picture to read")
    return replace(prompt, text=request, system="", earlier=())


def collate(model: VLM | LLM, prompts: Sequence[Prompt]) -> BatchFeature | BatchEncoding:
    """Return prompts as one left-padded batch on the model's device.

    Either all prompts have pictures, or none has. Left padding puts the last prompt token of every row at position -1,
    where states are read and changed.

    Raises:
        ValueError: no prompts, prompts with and without pictures mixed, or pictures for a text-only model.
        ModelError: different numbers of pictures, in a family that pads them to the largest number in the batch; or a
            prompt holds a control token of the model.
    """
    check_prompts(model, prompts)
    kinds = {bool(prompt.pictures) for prompt in prompts}
    if len(kinds) != 1:
        raise ValueError(
            f"a batch of {len(prompts)} prompts, {sum(bool(p.pictures) for p in prompts)} of them with a picture; "
            "expected at least one prompt, and pictures for all or for none"
        )
    has_pictures = kinds.pop()
    if has_pictures and isinstance(model, LLM):
        raise ValueError(f"{model.name!r} is a text-only model; its prompts can't have pictures")
    if isinstance(model, VLM) and not model.family.pictures_in_sequence:
        counts = sorted({len(prompt.pictures) for prompt in prompts})
        if len(counts) > 1:
            raise ModelError(
                f"a batch of prompts with {' and '.join(map(str, counts))} pictures; {model.name!r} needs the same "
                "number in every prompt of a batch"
            )
    batch = _apply_template(model, [prompt.messages for prompt in prompts])
    # Some processors add training labels, all of them masked.
    batch.pop("labels", None)
    # This casts floating point tensors only: pixels take the model's dtype, token ids stay integers.
    return batch.to(model.device, **({"dtype": model.model.dtype} if has_pictures else {}))


def collate_same_pictures(vlm: VLM, prompts: Sequence[Prompt]) -> tuple[BatchFeature, list[Int[Tensor, " _"]]]:
    """Tokenize prompts about the same pictures, which are opened and processed only once.

    Returns:
        The first prompt as a batch of one on the model's device, and the token ids of every prompt without padding, on
        the CPU.
    """
    check_prompts(vlm, prompts)
    pictures = tuple(map(open_picture, prompts[0].pictures))
    prompts = [replace(prompt, pictures=pictures) for prompt in prompts]
    with mock.patch.object(vlm.processor, "image_processor", _CachedImageProcessor(vlm.processor.image_processor)):
        first = collate(vlm, prompts[:1])
        ids = first["input_ids"][0].cpu()
        if len(prompts) == 1:
            return first, [ids]
        # Splicing is fast, and is trusted only if it reproduces the last prompt, which is processed in full.
        last = _full_ids(vlm, prompts[-1])
        rows = _spliced_ids(vlm, prompts, ids)
        if rows is None or not torch.equal(rows[-1], last):
            rows = [ids, *(_full_ids(vlm, prompt) for prompt in prompts[1:-1]), last]
    return first, rows


def _full_ids(vlm: VLM, prompt: Prompt) -> Int[Tensor, " pos"]:
    return _apply_template(vlm, [prompt.messages])["input_ids"][0]


def _spliced_ids(vlm: VLM, prompts: Sequence[Prompt], first: Int[Tensor, " pos"]) -> list[Int[Tensor, " _"]] | None:
    """Join the first prompt's tokens up to the end of its pictures with each prompt's own tokens after them.

    This avoids tokenizing hundreds of image tokens again for each prompt. None if the processor does more than replace
    a picture by tokens.
    """
    texts = vlm.processor.apply_chat_template(
        [prompt.messages for prompt in prompts], tokenize=False, add_generation_prompt=True
    )
    for adds_special in (False, True):
        # Tokens of the rendered template, where a placeholder is all that there is of a picture.
        unexpanded = vlm.tokenizer(texts, add_special_tokens=adds_special)["input_ids"]
        template = unexpanded[0]
        n_before = len(os.path.commonprefix([template, first.tolist()]))
        n_after = min(len(os.path.commonprefix([template[::-1], first.tolist()[::-1]])), len(template) - n_before)
        n_same = len(template) - n_after
        if n_before and all(row[:n_same] == template[:n_same] for row in unexpanded):
            head = first[: len(first) - n_after]
            rows = [torch.cat([head, torch.tensor(row[n_same:], dtype=head.dtype)]) for row in unexpanded]
            if torch.equal(rows[0], first):
                return rows
    return None


class _CachedImageProcessor:
    """An image processor that is given the same pictures at every call, and processes them once."""

    def __init__(self, image_processor):
        self._image_processor, self._features = image_processor, None

    def __call__(self, *args, **kwargs) -> BatchFeature:
        if self._features is None:
            self._features = self._image_processor(*args, **kwargs)
        # A copy, since some processors remove entries.
        return copy(self._features)

    def __getattr__(self, name: str):
        return getattr(self._image_processor, name)


def _apply_template(model: VLM | LLM, turns: list[list[dict]]) -> BatchFeature | BatchEncoding:
    """Apply the chat template and the processor to conversations.

    Raises:
        ModelError: the chat template rejects the turns, as templates without a system role do; or it does not end.
    """
    _check_template(model)
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
            f"the chat template of {model.name!r} rejects turns of {roles} ({error}); if it has no system role, put "
            "those words before the request: template='... {request}'"
        ) from error


def _check_template(model: VLM | LLM) -> None:
    """Check what the chat template takes for a short prompt: it is a program that came with the checkpoint.

    Raises:
        ModelError: it takes too much time or memory.
    """
    if model.model in _SOUND_TEMPLATES:
        return
    processor = model.tokenizer if isinstance(model, LLM) else model.processor
    turns = [{"role": "user", "content": "How?" if isinstance(model, LLM) else [{"type": "text", "text": "How?"}]}]
    try:
        with limited(TEMPLATE_SECONDS, TEMPLATE_MEGABYTES):
            processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TooMuchError as error:
        raise ModelError(f"the chat template of {model.name!r} is unusable: {error} for one word") from None
    except (TemplateError, ValueError, TypeError, AttributeError, KeyError):
        # What it rejects is reported for the prompts themselves.
        pass
    _SOUND_TEMPLATES.add(model.model)


def _bare_text(vlm: VLM, turns: list[list[dict]]) -> BatchEncoding:
    """Format text the way a processor that requires a picture in every prompt would do it without one."""
    rendered = vlm.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    frame = vlm.family.bare_text.replace("<bos>", vlm.tokenizer.bos_token)
    texts = [frame.replace("{text}", text) for text in rendered]
    return text_batch(vlm, vlm.tokenizer(texts, add_special_tokens=False)["input_ids"])


def text_batch(vlm: VLM | LLM, rows: Sequence[Sequence[int]]) -> BatchEncoding:
    """Return token ids of prompts without pictures as one left-padded batch on the model's device."""
    batch = vlm.tokenizer.pad({"input_ids": list(rows)}, padding_side="left", return_tensors="pt")
    if vlm.family.bare_text:
        # Such a family marks the prompt, which attends to all of itself, with 0 and generated tokens with 1.
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    return batch.to(vlm.device)


def _as_text(turn: dict) -> dict:
    """Return a turn with its content as one string, as templates of text-only models expect it."""
    return {"role": turn["role"], "content": "".join(part["text"] for part in turn["content"])}
