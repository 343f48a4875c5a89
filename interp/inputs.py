"""Query -> prompt in each modality -> one left-padded batch; and back: positions and text of a prompt."""

import os
import re
import zlib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Int
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor, nn
from transformers import BatchEncoding, BatchFeature

from interp import typography
from interp.families import ModelError
from interp.pictures import Drawn, Picture, look_at, read_picture, to_rgb
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
        shown = [{"type": "image", "image": to_rgb(look_at(picture))} for picture in self.pictures]
        content = [*shown, {"type": "text", "text": self.text}]
        system = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        return [*system, {"role": "user", "content": content}]


@dataclass(frozen=True)
class _Modality:
    picture: Callable[[Query, int], Drawn] | None
    in_picture: bool = False
    """Whether the request is in the picture rather than beside it."""


def _scene(query: Query, size: int) -> Drawn:
    if query.picture is None:
        return Drawn(typography.scene_picture, (size, query.seed))
    # Whoever reads it may be another process, in another folder.
    return Drawn(read_picture, (str(Path(query.picture).absolute()),))


MODALITIES = {
    "text": _Modality(None),
    "blank": _Modality(lambda query, size: Drawn(typography.blank_picture, (size,))),
    "noise": _Modality(lambda query, size: Drawn(typography.noise_picture, (size, query.seed))),
    "scene": _Modality(_scene),
    "typographic": _Modality(
        lambda query, size: Drawn(typography.text_picture, (query.rendered, size)), in_picture=True
    ),
    "typographic_scene": _Modality(
        lambda query, size: Drawn(typography.scene_with_text, (query.rendered, size, query.seed)), in_picture=True
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
    pictures = tuple(map(look_at, prompts[0].pictures))
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


def batches(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Rows of each batch: the same number of pictures in all of its prompts, similar lengths together."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].text) + len(prompts[i].system), i))
    counts = sorted({len(prompt.pictures) for prompt in prompts})
    alike = [[i for i in order if len(prompts[i].pictures) == n] for n in counts]
    return [rows[start : start + size] for rows in alike for start in range(0, len(rows), size)]


def in_batches(
    prompts: Sequence[Prompt],
    batch_size: int,
    run: Callable[[list[int]], Mapping[str, np.ndarray]],
    advance: Callable[[int], None] = lambda n_prompts: None,
) -> dict[str, np.ndarray]:
    """Runs prompts in `batches`; the results come in the order of the prompts.

    Args:
        prompts: any mixture of modalities.
        batch_size: prompts in one call of `run`.
        run: from the rows of a batch to arrays, each with one row a prompt.
        advance: called with the number of prompts done after each batch.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("no prompts; expected at least one")
    plan, found = batches(prompts, batch_size), []
    for rows in plan:
        found.append(run(rows))
        advance(len(rows))
    back = np.argsort(np.concatenate(plan))
    return {name: np.concatenate([batch[name] for batch in found])[back] for name in found[0]}


def labels(prompts: Sequence[Prompt]) -> dict[str, tuple[str, np.ndarray]]:
    """What is known of each prompt, as coordinates along `prompt`: everything downstream selects by them."""
    known = list(map(known_of, prompts))
    return columns({name: [one[name] for one in known] for name in known[0]})


def known_of(prompt: Prompt) -> dict[str, str | bool]:
    """What a prompt is labelled with."""
    query = prompt.query
    return {
        "text": query.text,
        "harmful": query.harmful,
        "category": query.category,
        "pair": query.pair or "",
        "split": query.split,
        "modality": prompt.modality,
    }


def columns(known: Mapping[str, list]) -> dict[str, tuple[str, np.ndarray]]:
    """Lists with one entry a prompt -> coordinates along `prompt`."""
    return {
        name: ("prompt", np.array(values, dtype=bool if isinstance(values[0], bool) else object))
        for name, values in known.items()
    }


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


# --- back from tokens ----------------------------------------------------------------------------------------


def instruction_positions(
    model: VLM | LLM, prompts: Sequence[Prompt], input_ids: Int[Tensor, "prompt pos"]
) -> Int[Tensor, " prompt"]:
    """Where the user's own text ends: the position of its last token in each row of a batch.

    Found by decoding the very ids that the model is given, whatever its processor adds before and after.

    Raises:
        ModelError: the tokenizer changes the text, so that it is not found again.
    """
    found = [instruction_position(model, prompt.text, row) for prompt, row in zip(prompts, input_ids, strict=True)]
    return torch.tensor(found)


def instruction_position(model: VLM | LLM, text: str, ids: Int[Tensor, " pos"]) -> int:
    """`instruction_positions` for one row.

    Raises:
        ModelError: the tokenizer changes the text, so that it is not found again.
    """
    start = 0
    if isinstance(model, VLM) and (ids == model.image_token_id).any():
        start = int((ids == model.image_token_id).nonzero().max()) + 1
    shown, text = _decode(model, ids[start:]), text.strip()
    if text not in shown:
        raise ModelError(f"the text {text!r} is not found in the tokens of its prompt, which say {shown!r}")
    end = shown.rindex(text) + len(text)
    length_of = lambda n: len(_decode(model, ids[start : start + n]))  # noqa: E731
    return start + bisect_left(range(1, len(ids) - start + 1), end, key=length_of)


def _decode(model: VLM | LLM, ids: Int[Tensor, " pos"]) -> str:
    return model.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class _PictureMark:
    """What a processor writes around the image tokens of a prompt, as text."""

    before: str
    after: str

    def take_out(self, token: str, shown: str, added: Sequence[str]) -> str | None:
        """The text without its pictures; None where they are not marked like this, or text stands between them.

        Args:
            token: of a picture.
            shown: the prompt as text.
            added: every token that the tokenizer knows beside its words.
        """
        pattern = f"{re.escape(self.before + token)}(?:.*{re.escape(token)})?{re.escape(self.after)}"
        found = re.search(pattern, shown, re.DOTALL)
        if not found:
            return None
        marks = sorted({*added, self.before.strip(), self.after.strip()} - {""}, key=len, reverse=True)
        if re.sub("|".join(map(re.escape, marks)), "", found.group()).strip():
            return None
        return shown[: found.start()] + shown[found.end() :]


_MARKS: WeakKeyDictionary[nn.Module, tuple[_PictureMark, ...]] = WeakKeyDictionary()


def _picture_marks(vlm: VLM) -> tuple[_PictureMark, ...]:
    """Found out once for each model."""
    if vlm.model not in _MARKS:
        _MARKS[vlm.model] = _find_picture_marks(vlm)
    return _MARKS[vlm.model]


def _find_picture_marks(vlm: VLM) -> tuple[_PictureMark, ...]:
    """Every way in which this processor marks a picture, tried on a square, a wide and a high one."""
    text = text_prompt("How do I water a plant?")
    token, marks = vlm.tokenizer.convert_ids_to_tokens(vlm.image_token_id), []
    plain = _decode(vlm, collate(vlm, [text])["input_ids"][0])
    size = vlm.picture_size
    for shape in ((size, size), (2 * size, size), (size, 2 * size)):
        prompt = replace(text, pictures=(Image.new("RGB", shape),))
        shown = _decode(vlm, collate(vlm, [prompt])["input_ids"][0])
        start = len(os.path.commonprefix([plain, shown]))
        inserted = shown[start : len(shown) - (len(plain) - start)]
        if token not in inserted:
            continue
        mark = _PictureMark(inserted[: inserted.index(token)], inserted[inserted.rindex(token) + len(token) :])
        if mark not in marks and mark.take_out(token, shown, _added(vlm)) == plain:
            marks.append(mark)
    return tuple(marks)


def _added(vlm: VLM) -> list[str]:
    return [str(token) for token in vlm.tokenizer.added_tokens_decoder.values()]


def prompt_texts(
    vlm: VLM, input_ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"] | None = None
) -> list[list[int]]:
    """Each prompt without its pictures, as the ids that the text modality would have given.

    Raises:
        ModelError: the pictures can't be taken out of this family's prompts, or text stands between them.
    """
    token = vlm.tokenizer.convert_ids_to_tokens(vlm.image_token_id)
    rows = []
    for i, ids in enumerate(input_ids):
        ids = ids if attention_mask is None else ids[attention_mask[i].bool()]
        if not (ids == vlm.image_token_id).any():
            rows.append(ids.tolist())
            continue
        shown = _decode(vlm, ids)
        taken_out = [mark.take_out(token, shown, _added(vlm)) for mark in _picture_marks(vlm)]
        texts = [text for text in taken_out if text is not None]
        if not texts:
            raise ModelError(
                f"the text of a prompt can't be taken out of the input_ids of {vlm.name!r}; pass references "
                "explicitly: guard.on(vlm, references=[...])"
            )
        # The mark that takes out most leaves nothing of the picture behind.
        rows.append(vlm.tokenizer(min(texts, key=len), add_special_tokens=False)["input_ids"])
    return rows
