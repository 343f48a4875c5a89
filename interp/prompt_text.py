"""The text of a prompt, recovered from its token ids."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from jaxtyping import Int
from PIL import Image
from torch import Tensor, nn

from interp.families import ModelError
from interp.inputs import collate, text_prompt
from interp.vlm import LLM, VLM


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
