"""Requests, and the prompts that they become. Nothing here needs a model, or a library that runs one."""

import zlib
from dataclasses import dataclass

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
    """A query in a modality: the user's text and pictures, after an optional system turn."""

    query: Query
    modality: str
    text: str
    pictures: tuple[Picture, ...] = ()
    system: str = ""

    @property
    def messages(self) -> list[dict]:
        """Chat messages in Hugging Face format, pictures before the text.

        Raises:
            PictureError: a picture can't be read.
        """
        pictures = [{"type": "image", "image": to_rgb(open_picture(picture))} for picture in self.pictures]
        content = [*pictures, {"type": "text", "text": self.text}]
        system = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        return [*system, {"role": "user", "content": content}]
