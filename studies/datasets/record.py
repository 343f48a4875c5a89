"""One row of a published benchmark, whatever its file looks like."""

from dataclasses import dataclass, field

from interp import Prompt, Query
from interp.pictures import Picture

REFUSE, ANSWER, CAVEAT = "refuse", "answer", "caveat"
"""Expected behaviour of a safe and useful model; `caveat`: it warns, or says that it is not qualified to advise."""
EXPECTED = (REFUSE, ANSWER, CAVEAT)
PICTURE_DECIDES = "the picture decides what is right"
"""Reason why no picture is drawn in place of a missing one."""


@dataclass(frozen=True)
class Source:
    """Origin and licence of a benchmark."""

    name: str
    url: str
    licence: str
    """The licence that its publisher states, or `none stated`."""
    test_only: bool = False
    """The licence forbids training: nothing may be fitted on the benchmark."""


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row, file or record that is left out, and why."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """One row: what is asked, how it is shown to a model, and what is expected of the model."""

    query: Query
    """The true request, which judges are shown, with its label, category and pair."""
    id: str
    """The published id, or the row's number from 0; unique in its benchmark."""
    expected: str
    """One of `EXPECTED`."""
    source: Source
    modality: str = "text"
    """How the row is published: `text`; `scene`, `blank` or `noise` (a picture next to the request); `typographic` or
    `typographic_scene` (the request, or a part of it, inside the picture)."""
    said: str = ""
    """Text in the chat, next to the picture if there is one; empty if it is the request itself."""
    picture: Picture | None = None
    picture_path: str = ""
    """Published path of the picture, relative to the folder of pictures."""
    picture_file: str = ""
    """Path on this machine, whether or not the picture is there; equal names in two folders are two pictures."""
    needs_picture: bool = False
    """The picture decides what is right, so none is drawn in its place."""
    is_stand_in: bool = False
    """The published picture was missing; one was drawn in its place."""
    answers: tuple[str, ...] = ()
    """Correct answers, for benchmarks of ability."""
    choices: tuple[str, ...] = ()
    """Options of a multiple-choice question; the correct ones are in `answers`."""
    extra: dict[str, str] = field(default_factory=dict)
    """Other columns, by their published names."""

    @property
    def is_missing_picture(self) -> bool:
        return bool(self.picture_path) and self.picture is None

    def prompt(self) -> Prompt:
        """Return the prompt that is shown to a model.

        Raises:
            ValueError: the picture is missing.
        """
        if self.is_missing_picture:
            others = f"; none is drawn instead: {PICTURE_DECIDES}" if self.needs_picture else ", or stand-ins"
            raise ValueError(
                f"{self.source.name}, row {self.id}: its picture {self.picture_path!r} is missing; expected the folder "
                f"of pictures next to the file{others}"
            )
        pictures = () if self.picture is None else (self.picture,)
        return Prompt(self.query, self.modality, self.said or self.query.text, pictures)
