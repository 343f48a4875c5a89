"""Requests, and the prompts that they become. Nothing here needs a model, or a library that runs one."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from interp.pictures import Picture, open_picture, to_rgb


@dataclass(frozen=True, slots=True)
class Query:
    """One request, whatever the modality in which it reaches the model."""

    text: str
    harmful: bool
    category: str = ""
    pair: str | None = None
    """Shared by a harmful query and its harmless partner; None if queries are not paired."""
    written: str | None = None
    """The text that a typographic picture shows; by default that of the request."""
    picture: str | None = None
    """Path of the query's own picture, shown in modality `scene` instead of a drawn one."""
    split: str = ""
    """`anchors`, `validation` or `test`; empty if queries are not split."""

    @property
    def rendered(self) -> str:
        """The text that a typographic picture shows."""
        return self.written or self.text

    @property
    def group(self) -> str:
        """A name for the queries that must stay in the same fold or split: a pair, or repetitions of the same text."""
        return f"pair {self.pair}" if self.pair else f"text {self.text}"

    @property
    def seed(self) -> int:
        """Seed for random pictures: the same query gets the same picture everywhere."""
        return zlib.crc32(self.text.encode())


@dataclass(frozen=True)
class Prompt:
    """A query in a modality: the user's text and pictures, after an optional system turn and earlier turns."""

    query: Query
    modality: str
    text: str
    pictures: tuple[Picture, ...] = ()
    system: str = ""
    earlier: tuple[tuple[str, str], ...] = ()
    """Earlier turns of the conversation, without pictures: what the user said, and what the model answered."""

    @property
    def n_characters(self) -> int:
        """Length of all texts together, by which batches are sorted."""
        return sum(map(len, (self.system, *chain.from_iterable(self.earlier), self.text)))

    @property
    def messages(self) -> list[dict]:
        """Chat messages in Hugging Face format, pictures before the text.

        Raises:
            PictureError: a picture can't be read.
        """
        pictures = [{"type": "image", "image": to_rgb(open_picture(picture))} for picture in self.pictures]
        turns = [_turn("system", self.system)] if self.system else []
        for request, answer in self.earlier:
            turns += [_turn("user", request), _turn("assistant", answer)]
        return [*turns, _turn("user", self.text, pictures)]


def _turn(role: str, text: str, pictures: Sequence[dict] = ()) -> dict:
    """Return a chat message in Hugging Face format."""
    return {"role": role, "content": [*pictures, {"type": "text", "text": text}]}
