"""The text of a prompt, recovered from its token ids."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor, nn

from interp.errors import ModelError
from interp.inputs import collate, text_prompt
from interp.vlm import LLM, VLM


def decode(model: VLM | LLM, ids: Int[Tensor, " pos"]) -> str:
    """Return the text of token ids as it is, special tokens included."""
    return model.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class _PictureMark:
    """The text that a processor writes around the image tokens of a prompt."""

    before: str
    after: str

    def removed_from(self, text: str, token: str, added_tokens: Sequence[str]) -> str | None:
        """Return the text without its pictures.

        None if the pictures are marked in another way, or if there is text between them.

        Args:
            text: the decoded prompt.
            token: the image token.
            added_tokens: tokens of the tokenizer in addition to its words.
        """
        # From the first image token to the last, with all that is between them.
        pattern = f"{re.escape(self.before + token)}(?:.*{re.escape(token)})?{re.escape(self.after)}"
        match = re.search(pattern, text, re.DOTALL)
        if not match:
            return None
        # Only marks and special tokens may be removed: longer ones first, since some contain others.
        marks = sorted({*added_tokens, self.before.strip(), self.after.strip()} - {""}, key=len, reverse=True)
        if re.sub("|".join(map(re.escape, marks)), "", match.group()).strip():
            return None
        return text[: match.start()] + text[match.end() :]


_MARKS: WeakKeyDictionary[nn.Module, tuple[_PictureMark, ...]] = WeakKeyDictionary()


def _picture_marks(vlm: VLM) -> tuple[_PictureMark, ...]:
    """Return the picture marks of a model's processor, determined once per model."""
    if vlm.model not in _MARKS:
        _MARKS[vlm.model] = _find_picture_marks(vlm)
    return _MARKS[vlm.model]


def _find_picture_marks(vlm: VLM) -> tuple[_PictureMark, ...]:
    """Compare a prompt with and without a picture: processors mark square, wide and tall ones in different ways."""
    text = text_prompt("How do I water a plant?")
    token, marks = vlm.tokenizer.convert_ids_to_tokens(vlm.image_token_id), []
    plain = decode(vlm, collate(vlm, [text])["input_ids"][0])
    size = vlm.picture_size
    for shape in ((size, size), (2 * size, size), (size, 2 * size)):
        prompt = replace(text, pictures=(Image.new("RGB", shape),))
        decoded = decode(vlm, collate(vlm, [prompt])["input_ids"][0])
        # The insertion is what remains after the common beginning and the plain prompt's own end.
        start = len(os.path.commonprefix([plain, decoded]))
        inserted = decoded[start : len(decoded) - (len(plain) - start)]
        if token not in inserted:
            continue
        mark = _PictureMark(inserted[: inserted.index(token)], inserted[inserted.rindex(token) + len(token) :])
        if mark not in marks and mark.removed_from(decoded, token, _added_tokens(vlm)) == plain:
            marks.append(mark)
    return tuple(marks)


def _added_tokens(vlm: VLM) -> list[str]:
    return [str(token) for token in vlm.tokenizer.added_tokens_decoder.values()]


def prompt_texts(
    vlm: VLM | LLM, input_ids: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None
) -> list[list[int]]:
    """Return each prompt without its pictures, as the ids that the text modality would have given.

    Raises:
        ModelError: the pictures can't be removed from this family's prompts, or there is text between them.
    """
    if isinstance(vlm, LLM):
        masks = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, masks, strict=True)]
    token = vlm.tokenizer.convert_ids_to_tokens(vlm.image_token_id)
    rows = []
    for i, ids in enumerate(input_ids):
        ids = ids if attention_mask is None else ids[attention_mask[i].bool()]
        if kinds := [name for name, other in vlm.other_placeholder_ids.items() if (ids == other).any()]:
            raise ModelError(
                f"a prompt with {' and '.join(kinds)} tokens: its text can't be told from its input_ids; pass "
                "references explicitly: guard.on(vlm, references=[...])"
            )
        if not (ids == vlm.image_token_id).any():
            rows.append(ids.tolist())
            continue
        decoded = decode(vlm, ids)
        candidates = [mark.removed_from(decoded, token, _added_tokens(vlm)) for mark in _picture_marks(vlm)]
        texts = [text for text in candidates if text is not None]
        if not texts:
            raise ModelError(
                f"the text of a prompt can't be recovered from the input_ids of {vlm.name!r}; pass references "
                "explicitly: guard.on(vlm, references=[...])"
            )
        # The shortest is the one in which nothing of the picture is left.
        rows.append(vlm.tokenizer(min(texts, key=len), add_special_tokens=False)["input_ids"])
    return rows


_ENDINGS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_MARKER = "waterlily"
"""A word whose place in a prompt shows what the template writes after the user's text."""
_MARGIN = 8
"""Tokens that are read beside those of the ending, since texts are divided in other ways inside a prompt."""


def check_prompts_end(vlm: VLM | LLM, tokens: Tensor, attention_mask: Tensor | None) -> None:
    """Check that rows end where a prompt ends: with what the chat template writes after the user's text.

    A row that goes on with an answer, or lacks the beginning of the assistant's turn, has the end of its prompt at
    another place than its last token. Models without a template, and templates that write nothing, are not checked.

    Raises:
        ModelError: a row ends otherwise, or is padded on the right.
    """
    if attention_mask is not None and attention_mask.dim() == 2 and not attention_mask[:, -1].all():
        raise ModelError(
            "a batch that is padded on the right: its last tokens are not those of the prompts; pad on the left "
            "(tokenizer.padding_side = 'left'), or say where prompts end: guard.on(vlm, prompt_lengths=[...])"
        )
    if not (ending := _ending(vlm)):
        return
    n = len(vlm.tokenizer(ending, add_special_tokens=False)["input_ids"]) + _MARGIN
    for row in tokens[:, -n:]:
        if not (end := decode(vlm, row)).rstrip().endswith(ending):
            raise ModelError(
                f"a pass ends with {end[-60:]!r}, and prompts of {vlm.name!r} end with {ending!r} "
                "(add_generation_prompt=True): the guard would act at another token than the prompt's last; say where "
                "prompts end: guard.on(vlm, references, prompt_lengths=[...])"
            )


def _ending(vlm: VLM | LLM) -> str:
    """Return what a prompt ends with after the user's text, without spaces around it; "" if nothing is known."""
    if vlm.model not in _ENDINGS:
        processor = vlm.tokenizer if isinstance(vlm, LLM) else vlm.processor
        has_template = getattr(processor, "chat_template", None)
        text = decode(vlm, collate(vlm, [text_prompt(_MARKER)])["input_ids"][0]) if has_template else ""
        _ENDINGS[vlm.model] = text.rpartition(_MARKER)[2].strip()
    return _ENDINGS[vlm.model]
